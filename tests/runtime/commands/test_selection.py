"""Commands that read folders: what they take, and what they say of the rest."""

import json
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.__main__ import main
from runtime.store import Store


@pytest.fixture
def call(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def crowded(pictures):
    """Eight pictures; besides, a hidden copy, a thumbnail, a caption, a damaged picture and a link to a folder."""
    data = (pictures / "cats" / "0.png").read_bytes()
    for name in (".ipynb_checkpoints/0.png", "cats/@eaDir/0.png", "dogs/deep/plain"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(data)
    (pictures / "cats" / "0.txt").write_text("a cat")
    (pictures / "cats" / "bad.png").write_bytes(b"no picture")
    (pictures.parent / "far").mkdir()
    (pictures.parent / "far" / "9.png").write_bytes(data)
    (pictures / "birds").symlink_to("../far")
    return pictures


def test_the_counts_of_embed_add_up_to_the_files_that_are_there(call, tiny, crowded, tmp_path) -> None:
    command = ("embed", tiny, crowded, "--out", tmp_path / "out", "--json")
    files = sum(path.is_file() for path in crowded.rglob("*"))
    for _ in range(2):
        code, out, err = call(*command)
        summary = json.loads(out)
        assert code == 0
        assert "4 files passed over: 2 system or hidden, 1 " in err
        assert "1 link to a folder (--follow-links reads them)" in err
        assert summary["skipped"] == {"system or hidden": 2, "text": 1, "link to a folder": 1}
        counted = summary["embedded"] + summary["present"] + summary["failed"] + sum(summary["skipped"].values())
        assert counted == files + 1  # the link
    assert (summary["embedded"], summary["present"], summary["failed"]) == (0, 9, 1)


def test_embed_takes_what_is_chosen(call, tiny, crowded, tmp_path) -> None:
    chosen = ("--follow-links", "--exclude", "cats/", "--exclude", "4.*", "--include", "*.png", "--include", "*.jpg")
    code, out, _ = call("embed", tiny, crowded, "--out", tmp_path / "out", "--json", *chosen)
    assert code == 0
    expected = ["birds/9.png", *(f"dogs/deep/{number}.jpg" for number in (5, 6, 7))]
    assert sorted(Store(tmp_path / "out").read().paths) == expected
    assert json.loads(out)["skipped"] == {"excluded": 8, "system or hidden": 1, "not included": 1}


def test_embed_of_nothing_passed_over_says_nothing(call, tiny, pictures, tmp_path) -> None:
    _, out, err = call("embed", tiny, pictures, "--out", tmp_path / "out", "--json")
    assert "passed over" not in err
    assert json.loads(out)["skipped"] == {}


def test_evaluate_has_no_class_of_a_system_folder(call, tiny, crowded, tmp_path) -> None:
    data = ("--data", f"folder:{crowded}", "--no-cache", "--seeds", 1)
    code, out, err = call("evaluate", tiny, *data)
    assert code == 0
    assert "pictures: 10 images in 2 classes" in re.sub("9 of 10", "10", out)
    assert "4 files passed over: 2 system or hidden" in err
    code, out, _ = call("evaluate", tiny, *data, "--follow-links", "--exclude", "bad.*")
    assert code == 0
    assert "pictures: 10 images in 3 classes" in out


def test_verify_takes_what_is_chosen(call, tiny, crowded) -> None:
    against = ("verify", tiny, "--against", tiny, "--images", crowded)
    code, out, err = call(*against, "--exclude", "bad.png", "--json")
    assert code == 0
    assert "passed over: 2 system or hidden" in err
    assert json.loads(out)["pictures"] == 9


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "tiny", "--data", "parquet:x", "--exclude", "a"),
        ("verify", "tiny", "--follow-links"),
        ("verify", "tiny", "--exclude", "a"),
        ("embed", "tiny", ".", "--out", "x", "--include", "/"),
    ],
    ids=" ".join,
)
def test_a_choice_that_means_nothing_is_refused(arguments, call, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*(tiny if one == "tiny" else one for one in arguments))
    assert code == 2
    assert re.search(r"--(include|exclude|follow-links)", err)
    assert err.count("\n") == 1


@pytest.fixture
def table(pictures, tmp_path):
    """Three rows: a front and a back of each thing, and its number."""
    data = [(pictures / "cats" / f"{number}.png").read_bytes() for number in range(3)]
    columns = {"id": [70, 71, 72], "front": data, "back": [data[2], None, data[0]], "note": ["a", "b", "c"]}
    parquet.write_table(pa.table(columns), tmp_path / "things.parquet")
    return tmp_path / "things.parquet"


def test_embed_takes_the_columns_that_are_named(call, tiny, table, tmp_path) -> None:
    command = ("embed", tiny, table, "--out", tmp_path / "out", "--key-column", "id")
    for _ in range(2):
        assert call(*command, "--image-column", "back")[0] == 0
    assert call(*command)[0] == 0
    found = Store(tmp_path / "out").read()
    assert sorted(found.paths) == ["0/70", "0:back/70", "1/71", "2/72", "2:back/72"]  # both columns, in one store
    vectors = dict(zip(found.paths, found.vectors, strict=True))
    assert (vectors["0:back/70"] == vectors["2/72"]).all()
    assert (vectors["0/70"] != vectors["2/72"]).any()
    code, _, err = call(*command, "--image-column", "side")
    assert code == 2
    assert (
        "no column `side` (--image-column) among its 4 columns: id (int64), front (binary), back (binary), note" in err
    )
    assert err.count("\n") == 1


def test_verify_takes_the_column_that_is_named(call, tiny, table) -> None:
    command = ("verify", tiny, "--against", tiny, "--images", table, "--json", "--k", "2")
    assert json.loads(call(*command, "--image-column", "front")[1])["passed"]
    code, _, err = call("verify", tiny, "--image-column", "front")
    assert code == 2
    assert "--image-column" in err
