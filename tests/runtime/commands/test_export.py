"""The command `export`, and `cluster` of what it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from runtime.__main__ import main
from runtime.contract import progress
from runtime.store.writer import open_writer

VECTORS = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0.2, 1]], np.float32)


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five pictures, embedded as two clusters."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.new("RGB", (30, 20), (number * 50, 0, 0)).save(pictures / f"{number}.png")
    with open_writer(tmp_path / "store", {"model_sha256": "ab" * 32}) as writer:
        writer.add([str(pictures)] * 5, [f"{number}.png" for number in range(5)], VECTORS)
    return tmp_path / "store"


def test_it_says_what_it_wrote(store, tmp_path, capsys) -> None:
    assert run("export", store, tmp_path / "x.npy") == 0
    out, err = capsys.readouterr()
    assert out == f"5 embeddings of width 2: {tmp_path / 'x.npy'} and {tmp_path / 'x.jsonl'}\n"
    assert err == ""
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), VECTORS)


def test_json(store, tmp_path, capsys) -> None:
    assert run("export", store, tmp_path / "x.npy", "--json") == 0
    expected = {"array": str(tmp_path / "x.npy"), "lines": str(tmp_path / "x.jsonl"), "rows": 5, "width": 2}
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_that_has_not_ended_and_progress_are_said_unless_quiet(quiet, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0)
    record = json.loads((store / "_store.json").read_text())
    (store / "_store.json").write_text(json.dumps({**record, "complete": False}))
    assert run("export", store, tmp_path / "x.npy", *["--quiet"] * quiet) == 0
    said = [
        f"{store} is of a run that has not ended: exporting the 5 embeddings that are there",
        "5 of 5 embeddings written",
    ]
    assert capsys.readouterr().err.splitlines() == ([] if quiet else said)


def test_bad_use_is_one_line(store, tmp_path, capsys) -> None:
    for arguments in ([tmp_path / "nowhere", tmp_path / "x.npy"], [store, tmp_path / "x"], [tmp_path / "x.npy"] * 2):
        assert run("export", *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("runtime: ")
        assert err.count("\n") == 1


def results(out: Path) -> dict[str, object]:
    found = json.loads((out / "summary.json").read_text())
    for name in ("source", "files", "assigned"):
        del found[name]
    return {"summary": found, "labels": parquet.read_table(out / "labels.parquet").to_pydict()}


@pytest.mark.parametrize("how", [["--k", "2"], ["--k", "2", "--algorithm", "minibatch"], ["--k", "auto"]])
def test_an_array_is_clustered_as_its_store_is(how, store, tmp_path, capsys) -> None:
    assert run("export", store, tmp_path / "x.npy") == 0
    for source, out in ((store, tmp_path / "of-store"), (tmp_path / "x.npy", tmp_path / "of-array")):
        assert run("cluster", source, *how, "--out", out) == 0, capsys.readouterr().err
    assert results(tmp_path / "of-array") == results(tmp_path / "of-store")
    summary = json.loads((tmp_path / "of-array/summary.json").read_text())
    assert summary["source"] == {"folder": str(tmp_path / "x.npy"), "model_sha256": None}
    assert summary["picture"]["unreadable"] == 0


def test_older_clusters_are_assigned_to_an_array(store, tmp_path, capsys) -> None:
    assert run("export", store, tmp_path / "x.npy") == 0
    assert run("cluster", store, "--k", "2", "--out", tmp_path / "old") == 0
    capsys.readouterr()
    assert run("cluster", tmp_path / "x.npy", "--assign", tmp_path / "old", "--out", tmp_path / "new") == 0
    assert "it is not known whether one model made both" in capsys.readouterr().err
    labels = [parquet.read_table(tmp_path / name / "labels.parquet").column("label") for name in ("old", "new")]
    assert labels[0] == labels[1]


def test_pictures_of_an_array_that_moved_are_found(store, tmp_path) -> None:
    assert run("export", store, tmp_path / "x.npy") == 0
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    how = ["--k", "2", "--out", tmp_path / "out", "--images-root", tmp_path / "elsewhere"]
    assert run("cluster", tmp_path / "x.npy", *how) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["picture"]["unreadable"] == 0


def test_a_report_is_made_of_an_array(store, tmp_path) -> None:
    assert run("export", store, tmp_path / "x.npy") == 0
    page = tmp_path / "page.html"
    assert run("cluster", tmp_path / "x.npy", "--k", "2", "--out", tmp_path / "out", "--report", page) == 0
    assert "Clusters of x.npy" in page.read_text()
