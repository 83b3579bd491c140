"""Folders of images that have moved."""

from pathlib import Path

import pytest

from runtime.contract.errors import UsageError
from runtime.store.moved import Moved


def test_a_root_alone_is_the_only_root_there_is(tmp_path) -> None:
    moved = Moved.parse([str(tmp_path)], ["/old"])
    assert moved.now("/old") == str(tmp_path)
    assert moved.recorded(str(tmp_path)) == "/old"


def test_pairs_name_each_root_and_others_stay(tmp_path) -> None:
    moved = Moved.parse([f"/a={tmp_path}", "/b=s3://bucket/b"], ["/a", "/b", "/c"])
    assert [moved.now(root) for root in ("/a", "/b", "/c")] == [str(tmp_path), "s3://bucket/b", "/c"]
    assert [moved.recorded(root) for root in (str(tmp_path), "s3://bucket/b", "/c")] == ["/a", "/b", "/c"]


def test_a_relative_folder_is_resolved(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Moved.parse(["here"], ["/old"]).now("/old") == str(Path("here").resolve())


BAD = {
    "which of two": (
        ["/new"],
        ["/a", "/b"],
        "has 2 roots; say which one has moved: OLD=NEW, OLD one of /a, /b",
    ),
    "an empty store": (["/new"], [], "the store has 0 roots"),
    "no such root": (["/x=/new"], ["/a"], "/x is no root of the store, which has /a"),
    "no root at all": (["/x=/new"], [], "/x is no root of the store, which has none"),
    "one root twice": (["/a=/n", "/a=/m"], ["/a"], "names /a twice"),
    "one place twice": (["/a=/n", "/b=/n"], ["/a", "/b"], "names /n twice"),
}


@pytest.mark.parametrize(("texts", "roots", "message"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_refused(texts, roots, message) -> None:
    with pytest.raises(UsageError, match=message):
        Moved.parse(texts, roots)


def test_images_from_where_they_moved_away_are_refused(tmp_path) -> None:
    moved = Moved.parse([f"/a={tmp_path}"], ["/a", "/b"])
    with pytest.raises(UsageError, match=f"the images of /a are at {tmp_path} now, and yet some are taken from /a"):
        moved.recorded("/a")


def test_two_folders_may_change_places(tmp_path) -> None:
    moved = Moved.parse(["/a=/b", "/b=/a"], ["/a", "/b"])
    assert [moved.recorded(root) for root in ("/a", "/b")] == ["/b", "/a"]
