"""The command `search`: by images and by rows, what it prints, its page, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.store import Store
from runtime.store.array_pair import export_array
from runtime.store.writer import open_writer


def run(*arguments: object) -> int:
    return main(["search", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(make_model, tmp_path_factory) -> Path:
    """A model, six pictures in two folders that share a name, and their store."""
    place = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/3.png", "b/4.png"):
        (place / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(place / name)
    shutil.copy(place / "a/1.png", place / "b/copy.png")
    make_model(place)
    assert main(["embed", *map(str, (place / "tiny.onnx", place / "a", place / "b", "--out", place / "store"))]) == 0
    return place


def found(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def names(query: dict) -> list[str]:
    return [f"{Path(one['root']).name}/{one['path']}" for one in query["neighbours"]]


def test_an_image_finds_itself_and_its_copy_first(place, capsys):
    result = found(capsys, place / "store", place / "a/1.png", place / "b/4.png", "--top", 3)
    assert (result["rows"], result["method"], result["model"]) == (7, "exact", str(place / "tiny.onnx"))
    first, second = result["queries"]
    assert (first["image"], second["image"]) == (str(place / "a/1.png"), str(place / "b/4.png"))
    assert names(first)[:2] == ["a/1.png", "b/copy.png"]
    assert [one["similarity"] for one in first["neighbours"]][:2] == pytest.approx([1, 1], abs=1e-5)
    assert names(second)[0] == "b/4.png"
    assert len(names(second)) == 3


def test_a_row_is_named_by_its_path_and_needs_no_model(place, capsys, tmp_path):
    store = shutil.copytree(place / "store", tmp_path / "store")  # the model is not beside this one
    result = found(capsys, store, "--row", "1.png", "--row", f"{place / 'b'}/0.png")
    assert result["model"] is None
    assert names(result["queries"][0])[0] == "b/copy.png"
    assert [query["row"] for query in result["queries"]] == ["1.png", f"{place / 'b'}/0.png"]
    assert "b/0.png" not in names(result["queries"][1])
    assert len(names(result["queries"][1])) == 6
    for query, row in zip(result["queries"], ("1.png", "0.png"), strict=True):
        number = next(n for n, (_, path) in enumerate(Store(store).images()) if path == row and n in (1, 3))
        direct = [one.row for one in Store(store).search(number)[0]]
        assert [one["row"] for one in query["neighbours"]] == direct


def test_the_text_has_similarity_and_place_of_each_neighbour(place, capsys):
    assert run(place / "store", "--row", "copy.png", "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["copy.png", f"  1.0000  {place / 'a/1.png'}"]
    assert len(lines) == 3


def test_an_array_is_searched_with_a_model_that_is_named(place, capsys, tmp_path):
    export_array(Store(place / "store"), tmp_path / "x.npy")
    words = tmp_path / "x.npy", place / "a/2.png", "--model", place / "tiny.onnx"
    assert run(*words) == 0
    captured = capsys.readouterr()
    assert "does not say which model made it: similarities mean nothing if" in captured.err
    assert captured.out.splitlines()[1].endswith("a/2.png")


def test_an_index_can_be_asked_for(place, capsys, tmp_path):
    pytest.importorskip("faiss")
    store = shutil.copytree(place / "store", tmp_path / "store")
    result = found(capsys, store, "--row", "1.png", "--top", 1, "--method", "index")
    assert result["method"] == "index"
    assert names(result["queries"][0]) == ["b/copy.png"]
    assert list(store.glob("_search-*.faiss"))


def test_the_page_shows_queries_and_neighbours(place, tmp_path, capsys):
    page = tmp_path / "near.html"
    moved = shutil.copytree(place / "a", tmp_path / "moved")
    (moved / "0.png").unlink()
    root = f"{place / 'a'}={moved}"
    words = ("--row", "1.png", "--top", 5, "--report", page, "--images-root", root)
    assert run(place / "store", place / "b/0.png", *words) == 0
    captured = capsys.readouterr()
    assert str(moved / "2.png") in captured.out
    assert "report" in captured.err
    html = page.read_text()
    assert html.count("query</span>") == 2
    assert html.count("<img") == 10  # five each, less what is gone, and the queries
    assert html.count("can&#x27;t be read any more") == 2
    assert "python -m runtime search" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to search for: give an IMAGE, or --row PATH"),
        (["--row", "0.png"], "--row 0.png: 2 roots of the store have this path: give root and path"),
        (["--row", "9.png"], "has no image of this path"),
        (["--row", "1.png", "--top", "0"], "--top 0: must be 1 or more"),
        (["--row", "1.png", "--model", "tiny.onnx"], "--model is to embed an IMAGE"),
        (["--row", "1.png", "--report", "near.pdf"], "must end in .html"),
        (["no.png"], "no.png can't be searched for"),
        (["--row", "1.png", "--method", "fast"], "invalid choice"),
    ],
)
def test_bad_use_is_one_line(place, words, message, capsys, monkeypatch):
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert run("store", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_another_model_is_refused_and_none_is_asked_for(place, make_model, tmp_path, capsys):
    store = shutil.copytree(place / "store", tmp_path / "store")
    capsys.readouterr()
    assert run(store, place / "a/0.png") == 2
    assert "was made by tiny.onnx, which is not here or beside it: give --model MODEL" in capsys.readouterr().err
    make_model(tmp_path, dtype="uint8")
    assert run(store, place / "a/0.png") == 2
    assert "is not the model that made" in (error := capsys.readouterr().err)
    assert "model_sha256 is" in error


def test_rows_of_another_width_are_refused(place, tmp_path, capsys):
    with open_writer(tmp_path / "wide", {"provider": "cpu"}) as writer:
        writer.add(["/r"], ["x"], np.ones((1, 9), np.float32))
    assert run(tmp_path / "wide", place / "a/0.png", "--model", place / "tiny.onnx") == 2
    assert "queries of width 6, embeddings of width 9" in capsys.readouterr().err
