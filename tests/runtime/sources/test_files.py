"""Which images there are in files and folders."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from runtime.contract.errors import InputError, UsageError
from runtime.contract.keys import location
from runtime.sources import Item, Unreadable, load_item, open_sources, read_image
from runtime.sources.names import expand_braces


def entries(*arguments) -> list[Item | Unreadable]:
    return list(open_sources([str(argument) for argument in arguments]).items())


def names(*arguments) -> list[str]:
    found = entries(*arguments)
    assert all(isinstance(one, Item) and one.data is None for one in found), found
    return [one.path for one in found]


def test_folders_are_searched_through_in_sorted_order(pictures) -> None:
    assert names(pictures) == [
        *[f"cats/{number}.png" for number in range(4)],
        *[f"dogs/deep/{number}.jpg" for number in range(4, 8)],
    ]
    assert {item.root for item in entries(pictures)} == {str(pictures.resolve())}


def test_folders_sort_by_the_whole_path(tmp_path) -> None:
    for name in ("b/z.png", "b-c.png", "b.png", "a/b/c.png", "a/b.png", "B.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert (
        names(tmp_path) == sorted(names(tmp_path)) == ["B.png", "a/b.png", "a/b/c.png", "b-c.png", "b.png", "b/z.png"]
    )


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jpeg", "a.Png", "a.webp", "a.bmp", "a.tif", "a.TIFF", "a.gif", "a.HEIC", "a.avif"]
)
def test_suffixes_of_any_case_count(name, tmp_path) -> None:
    (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    assert names(tmp_path) == [name]


def test_file_named_itself_needs_no_suffix_and_its_folder_is_the_root(tmp_path) -> None:
    (tmp_path / "scan").touch()
    assert entries(tmp_path / "scan") == [Item(str(tmp_path.resolve()), "scan")]


def test_arguments_keep_their_order_and_nothing_is_listed_twice(pictures) -> None:
    cat = pictures / "cats" / "1.png"
    assert names(cat, pictures / "cats", pictures / "cats") == ["1.png", "0.png", "2.png", "3.png"]


def test_relative_arguments_have_absolute_roots(pictures, monkeypatch) -> None:
    monkeypatch.chdir(pictures)
    found = entries("cats", "dogs/deep/4.jpg", "dogs/../dogs/deep/5.jpg", ".")
    assert len(found) == 4 + 1 + 1 + 8
    for item in found:
        assert Path(item.root).is_absolute()
        assert Path(location(item.root, item.path)).is_file()


def test_linked_folders_are_not_followed_unless_named(pictures, tmp_path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "link").symlink_to(pictures)
    (tmp_path / "album" / "loop").symlink_to(tmp_path / "album")
    (tmp_path / "album" / "a.png").symlink_to(pictures / "cats" / "0.png")
    assert names(tmp_path / "album") == ["a.png"]
    assert len(names(tmp_path / "album" / "link")) == 8


def test_name_that_is_not_utf8_is_recorded_as_unreadable(pictures) -> None:
    os.rename(os.fsencode(pictures / "cats" / "0.png"), os.fsencode(pictures) + b"/cats/caf\xe9.png")  # noqa: PTH104
    found = entries(pictures)
    assert len(found) == 8
    (problem,) = [one for one in found if isinstance(one, Unreadable)]
    assert problem.path == r"cats/caf\udce9.png"
    assert "not UTF-8" in problem.error


def test_folder_that_cannot_be_listed_is_recorded(pictures, monkeypatch) -> None:
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dogs/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = entries(pictures)
    assert len(found) == 5
    (problem,) = [one for one in found if isinstance(one, Unreadable)]
    assert (problem.path, problem.error) == ("dogs", "folder can't be listed: Permission denied")


@pytest.mark.parametrize("what", ["empty", "only text", "only an empty folder"])
def test_folder_without_pictures_is_refused(what, tmp_path) -> None:
    if what == "only text":
        (tmp_path / "a.txt").write_text("png")
    if what == "only an empty folder":
        (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match=r"no image in .*: looked for files that end in avif, bmp, gif"):
        entries(tmp_path)


@pytest.mark.parametrize("argument", ["nowhere", "a\0b"], ids=["missing", "NUL in the name"])
def test_argument_that_does_not_exist_is_refused(argument, pictures) -> None:
    with pytest.raises(InputError, match="give image files or folders"):
        entries(pictures, argument)


def test_a_pattern_that_the_shell_did_not_expand_is_explained(pictures) -> None:
    with pytest.raises(InputError, match=r"\*.png: No such file or directory; .* leave out the quotes"):
        entries(pictures / "*.png")


def test_links_round_a_circle_end(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "a" / "folder.png" / "x.png").touch()
    assert names(tmp_path) == ["a/dangling.png", "a/folder.png/x.png", "a/loop.png"]


def test_names_with_newlines_and_other_letters_are_kept(tmp_path) -> None:
    made = ["a\nb.png", "ä ö.jpg", "\u2028.png", "猫.webp", "-.png", " .png", "'\".png"]
    for name in made:
        (tmp_path / name).touch()
    assert sorted(names(tmp_path)) == sorted(made)


def test_is_wanted_is_asked_once_for_each_key_and_what_is_not_is_left_out(pictures) -> None:
    asked = []

    def is_wanted(root, path):
        asked.append((root, path))
        return "cats" in path

    sources = open_sources([str(pictures), str(pictures), str(pictures / "cats" / "0.png")])
    found = list(sources.items(is_wanted))
    root = str(pictures.resolve())
    assert asked == [*sorted(set(asked[:-1])), (f"{root}/cats", "0.png")]
    assert [item.path for item in found] == [f"cats/{number}.png" for number in range(4)]
    assert sources.roots == (root, f"{root}/cats")
    assert sources.total == 8 + 8 + 1  # what comes at most


def test_a_folder_of_many_names_needs_little_memory(tmp_path) -> None:
    import tracemalloc

    count = 2000
    for number in range(count):
        (tmp_path / f"{number:012}.jpg").touch()
    tracemalloc.start()
    sources = open_sources([str(tmp_path)])
    assert sources.total == sum(1 for _ in sources.items()) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / count < 300  # bytes: 300 MB for a million


@pytest.mark.parametrize("path", ["../a.png", "x/../../a.png", "/etc/a.png", "", "a\0.png"], ids=repr)
def test_a_path_that_leads_out_of_its_root_is_refused(path, tmp_path) -> None:
    (tmp_path / "root").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="leads out of its root"):
        read_image(str(tmp_path / "root"), path)
    with pytest.raises(InputError, match="leads out of its root"):
        load_item(Item(str(tmp_path / "root"), path))


def test_a_key_is_read_again_later(pictures) -> None:
    for item in entries(pictures):
        assert read_image(item.root, item.path).size == load_item(item).size


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_folder_may_be_named_like_a_tar(suffix, tmp_path) -> None:
    (tmp_path / f"a{suffix}").mkdir()
    Image.new("RGB", (3, 5)).save(tmp_path / f"a{suffix}" / "a.png")
    (item,) = entries(tmp_path / f"a{suffix}")
    assert load_item(item).size == (3, 5)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.zip", "a.json"])
def test_what_is_no_source_is_refused_at_once(name, tmp_path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match="not a source of images; give images, folders, a list"):
        entries(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.txt"])
def test_sources_in_a_folder_whose_name_is_not_utf8_are_told(name, tmp_path, monkeypatch) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    monkeypatch.chdir(folder)
    Path(name).write_text("a.png\n")
    (problem,) = entries(name)
    assert problem.error == "its name is not UTF-8: rename it"
    (problem.root + problem.path).encode()


def test_a_list_that_cannot_be_read_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").touch()

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(InputError, match=r"a.txt: Permission denied; give a list of paths"):
        entries(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s-{8..11}.tar", ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]),
        ("s-{008..010}", ["s-008", "s-009", "s-010"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a}{}{..}{1..x}", ["{a}{}{..}{1..x}"]),
    ],
)
def test_braces_stand_for_what_the_shells_make_of_them(pattern, expected) -> None:
    assert list(expand_braces(pattern)) == expected


@pytest.mark.parametrize("pattern", ["{0..100000000}", "{999999999..0}", "{0..999}{0..999}"])
def test_braces_that_stand_for_too_many_are_refused(pattern) -> None:
    with pytest.raises(UsageError, match="more than 100,000"):
        expand_braces(pattern)
