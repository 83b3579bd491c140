"""The command `dedup`: its files, what it prints, its page, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from runtime.__main__ import main
from runtime.clustering import duplicates
from runtime.store import Store
from runtime.store.array_pair import export_array
from runtime.store.writer import open_writer

DEGREES = (0, 40, 3, 80, 41, 2)
"""Rows 0, 2 and 5 are duplicates, and rows 1 and 4."""


def run(*arguments: object) -> int:
    return main(["dedup", *map(str, arguments)])


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    angles = np.radians(DEGREES)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    paths = [f"{row}.png" for row in range(len(vectors))]
    for row, path in enumerate(paths):
        Image.new("RGB", (30, 20), (40 * row, 0, 0)).save(pictures / path)
    with open_writer(tmp_path / "embeddings", {"model": "itae.onnx"}) as writer:
        writer.add([str(pictures)] * len(vectors), paths, vectors)
        writer.add_error(str(pictures), "broken.png", "is damaged")
    return tmp_path / "embeddings"


def table(out: Path) -> dict:
    return parquet.read_table(out / "duplicates.parquet").to_pydict()


def test_the_files_say_what_is_a_duplicate_of_what(embeddings, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(embeddings, "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((out / "summary.json").read_text()) == summary
    counts = {name: summary[name] for name in ("kept", "duplicates", "groups", "largest_group")}
    assert counts == {"kept": 3, "duplicates": 3, "groups": 2, "largest_group": 3}
    assert (summary["images_without_embedding"], summary["zeros"], summary["source"]["images"]) == (1, 0, 6)
    found = table(out)
    assert found["path"] == [f"{row}.png" for row in range(6)]
    assert set(found["root"]) == {str(tmp_path / "pictures")}
    assert found["row"] == [*range(6)]
    assert found["group"] == [0, 1, 0, None, 1, 0]
    assert found["keep"] == [True, True, False, True, False, False]
    assert found["similarity"][3] is None
    assert found["similarity"][0] == 1
    assert found["similarity"][2] == pytest.approx(np.cos(np.radians(3)), abs=1e-6)
    assert sorted(one.name for one in out.iterdir()) == ["duplicates.parquet", "summary.json"]


def test_the_text_counts_and_a_second_run_replaces_the_first(embeddings, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(embeddings, "--out", out, "--threshold", 1) == 0
    assert "6 images: 6 to keep, 0 duplicates in 0 groups" in capsys.readouterr().out
    assert run(embeddings, "--out", out, "--keep", "last") == 0
    text = capsys.readouterr().out
    assert "6 images: 3 to keep, 3 duplicates in 2 groups, the largest of 3 images" in text
    assert "1 image without an embedding, not compared" in text
    assert table(out)["keep"] == [False, False, False, True, True, True]


def test_the_page_shows_the_groups(embeddings, tmp_path):
    page = tmp_path / "duplicates.html"
    assert run(embeddings, "--out", tmp_path / "out", "--report", page) == 0
    html = page.read_text()
    assert html.count("<img") == 5
    assert html.count(">kept</span>") == 2
    assert html.index("Group 0") < html.index("3 images") < html.index("Group 1")
    assert "0.999" in html


def test_an_array_is_taken_too(embeddings, tmp_path):
    export_array(Store(embeddings), tmp_path / "x.npy")
    assert run(tmp_path / "x.npy", "--out", tmp_path / "out") == 0
    assert table(tmp_path / "out")["group"] == [0, 1, 0, None, 1, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "0"], "--threshold 0.0: must be above 0, at most 1"),
        (["--threshold", "1.5"], "--threshold 1.5: must be above 0, at most 1"),
        (["--keep", "best"], "invalid choice"),
        (["--report", "x.pdf"], "must end in .html"),
        (["--out", "embeddings"], "holds embeddings"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(embeddings, tmp_path, words, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("embeddings", "--out", "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing(embeddings, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(duplicates, "_compare", fail)
    run(embeddings, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
