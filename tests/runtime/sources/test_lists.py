"""Lists of paths: text, standard input, parquet."""

import io
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from runtime.contract.errors import InputError, ItaeError, UsageError
from runtime.contract.keys import location
from runtime.sources import Item, Unreadable, load_item, open_sources
from runtime.sources.lists import text_list


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return (tmp_path / "here").resolve()


def keys(*arguments, stdin=None) -> list[tuple[str, str]]:
    found = list(open_sources(arguments, stdin=stdin).items())
    assert all(isinstance(one, Item) and one.data is None for one in found), found
    return [(one.root, one.path) for one in found]


@pytest.mark.parametrize(
    "data",
    [
        b"b.png\ncats/1.png\n",
        b"b.png\r\ncats/1.png\r\n",
        b"b.png\n\n  \n\ncats/1.png",
        b"\xef\xbb\xbfb.png\ncats/1.png\n",
        b"b.png\0cats/1.png\0",
        b"./b.png\ncats//./1.png\nb.png\n",
        b"cats/../b.png\ncats/1.png\n",
    ],
    ids=["lines", "CRLF", "blank lines", "byte order mark", "NUL", "dots and a repetition", "back again"],
)
def test_relative_paths_are_below_the_current_folder(data, here) -> None:
    (here / "list.txt").write_bytes(data)
    expected = [(str(here), "b.png"), (str(here), "cats/1.png")]
    assert keys("list.txt") == expected
    assert keys("-", stdin=io.BytesIO(data)) == expected


def test_list_in_another_folder_is_still_relative_to_the_current_one(here, tmp_path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    assert keys("../list.txt") == [(str(here), "a.png")]


def test_absolute_paths_and_those_that_leave_have_their_folder_as_root(here, tmp_path) -> None:
    (here / "list.txt").write_text(f"{tmp_path}/there/a.png\n../b.png\nfile:///data/c.png\ns3://bucket/d/e.png\n")
    assert keys("list.txt") == [
        (f"{tmp_path.resolve()}/there", "a.png"),
        (str(tmp_path.resolve()), "b.png"),
        ("file:///data", "c.png"),
        ("s3://bucket/d", "e.png"),
    ]


def test_a_link_on_the_way_back_is_followed_as_the_system_does(here, tmp_path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (here / "link").symlink_to(tmp_path / "far" / "deep")
    (here / "list.txt").write_text("link/../a.png\n")
    assert keys("list.txt") == [(f"{tmp_path.resolve()}/far", "a.png")]


def test_newlines_and_spaces_in_names_survive_between_nuls(here) -> None:
    names = ["a\nb.png", " c .png", "d\r.png", "猫.png"]
    assert keys("-", stdin=io.BytesIO("\0".join(names).encode())) == [(str(here), name) for name in names]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b"cats/", "names a folder|is a folder"),
        (b".", "names a folder"),
        (b"..", "names a folder"),
        (b"/", "names a folder"),
        (b"caf\xe9.png", "not UTF-8"),
        (b"x" * 20_000, "has 20,000 characters"),
        (b"nowhere.png", "does not exist"),
        (b"cats", "is a folder or a device"),
    ],
    ids=["slash", "dot", "dots", "root", "Latin-1", "long", "missing", "folder"],
)
def test_entry_that_is_no_image_is_told(entry, reason, here) -> None:
    (one,) = open_sources(["-"], stdin=io.BytesIO(entry + b"\n")).items()
    assert len(one.path) < 300
    if isinstance(one, Unreadable):
        assert re.search(reason, one.error)
        return
    with pytest.raises(InputError, match=reason):
        load_item(one)


def test_listed_images_are_read(here, picture, number_of) -> None:
    for number in (1, 2):
        (here / "cats" / f"{number}.png").write_bytes(picture(number))
    (here / "list.txt").write_text(f"cats/2.png\nfile://{here}/cats/1.png\n")
    sources = open_sources(["list.txt"])
    assert sources.total == 2
    assert [number_of(load_item(item)) for item in sources.items()] == [2, 1]


def test_empty_list_is_refused(here) -> None:
    with pytest.raises(InputError, match=r"no image in -"):
        open_sources(["-"], stdin=io.BytesIO(b"\n\n"))


def test_utf_16_is_refused(here) -> None:
    (here / "list.txt").write_text("a.png\n", "utf-16")
    with pytest.raises(InputError, match=r"list.txt: is UTF-16"):
        open_sources(["list.txt"])


def test_a_terminal_is_not_waited_for() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(UsageError, match=r"pipe one in"):
        open_sources(["-"], stdin=Terminal())


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_refused(data) -> None:
    try:
        source = text_list(data, "list.txt", "/nowhere")
    except ItaeError:
        return
    found = list(source.items(lambda root, path: True))
    assert len(found) == source.count()
    for one in found:
        (one.root + one.path).encode()
        assert isinstance(one, Item | Unreadable)


# Parquet


def write(path, /, **columns) -> None:
    parquet.write_table(pa.table(columns), path)


@pytest.mark.parametrize("name", ["path", "image_path", "file_path", "file", "filename", "file_name", "url", "image"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_paths_are_found_by_the_name_of_their_column(name, kind, here) -> None:
    write("list.parquet", number=[1, 2], **{name: pa.array(["a.png", "cats/b.png"]).cast(kind)})
    assert keys("list.parquet") == [(str(here), "a.png"), (str(here), "cats/b.png")]


def test_of_several_columns_of_paths_one_is_taken_and_named(here, caplog) -> None:
    write("list.parquet", url=["s3://b/a.png"], file_name=["a.png"])
    assert keys("list.parquet") == [(str(here), "a.png")]
    assert "paths are taken from column `file_name`, not from ['url']" in caplog.text


def test_null_paths_are_told(here) -> None:
    write("list.parquet", path=["a.png", None, "b.png"])
    found = list(open_sources(["list.parquet"]).items())
    assert found == [
        Item(str(here), "a.png"),
        Unreadable(f"{here}/list.parquet", "1", "holds no path (null)"),
        Item(str(here), "b.png"),
    ]


def test_parquet_without_images_or_paths_is_refused(here) -> None:
    write("list.parquet", label=[1], name=["x"])
    expected = (
        r"list.parquet: no column of images .* of paths .* its 2 columns: label \(int64\), name \(string\); name one"
    )
    with pytest.raises(InputError, match=expected):
        open_sources(["list.parquet"])


def test_embeddings_are_a_list_of_their_images(here) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4, np.float32)), 2)
    write("part-00000.parquet", root=["/a", "/b.tar"], path=["c/d.png", "e.png"], embedding=vectors)
    assert keys("part-00000.parquet") == [("/a", "c/d.png"), ("/b.tar", "e.png")]
    assert location("/b.tar", "e.png") == "/b.tar/e.png"
