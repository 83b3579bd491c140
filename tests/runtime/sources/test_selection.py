"""What is taken from folders and tars, and what is passed over, with its reason."""

import io
import os
import tarfile
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image

from runtime.contract.errors import InputError, UsageError
from runtime.sources import Item, Selection, Unreadable, load_item, open_sources

MARKS = {
    "a video": b"\0\0\0\x20ftypqt  \0\0\0\0qt  ",
    "text": b"a caption",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
}


def picture(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(file, format)
    return file.getvalue()


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.encode("RGB", (8, 8), Image.new("RGB", (8, 8)).tobytes(), file)
    return file.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def found(*arguments: object, **options: object) -> tuple[list[str], dict[str, int]]:
    """Paths of the images, and what was passed over."""
    sources = open_sources([str(one) for one in arguments], selection=Selection(**options))
    paths = []
    for one in sources.items():
        assert isinstance(one, Item), one
        paths.append(one.path)
    return paths, sources.skipped


def files_in(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


JPEG = picture("JPEG")


@pytest.fixture
def phone(tmp_path) -> Path:
    return fill(
        tmp_path / "phone",
        {
            "IMG_1.jpg": JPEG,
            "IMG_2.HEIC": heic(),
            "IMG_3.avif": picture("AVIF"),
            "photo.jpg.1": JPEG,
            "view.jpg?w=200": JPEG,
            "0a1b2c": picture("PNG"),
            "scan.dat": picture("TIFF"),
            "shot": heic(),
            "wrong.jpg": picture("WEBP"),
            "clip.MOV": MARKS["a video"],
            "clip": MARKS["a video"],
            "old.jp2": MARKS["JPEG 2000"],
            "IMG_1.AAE": b"<?xml",
            "IMG_4.DNG": picture("TIFF"),
            "readme": MARKS["text"],
            "_SUCCESS": b"",
            ".DS_Store": b"x",
            "._IMG_1.jpg": b"\0\x05\x16\x07",
            "Thumbs.db": b"x",
        },
    )


def test_content_decides_where_the_name_says_nothing(phone) -> None:
    paths, skipped = found(phone)
    taken = ["0a1b2c", "IMG_1.jpg", "IMG_2.HEIC", "IMG_3.avif", "photo.jpg.1", "scan.dat", "shot", "view.jpg?w=200"]
    assert paths == [*taken, "wrong.jpg"]
    assert skipped == {
        "system or hidden": 3,
        "video": 2,
        "JPEG 2000": 1,
        "text": 1,
        "raw file of a camera": 1,
        "unknown format": 1,
        "empty": 1,
    }
    assert len(paths) + sum(skipped.values()) == files_in(phone)
    for one in open_sources([str(phone)]).items():
        assert load_item(one).size == (8, 8)


def test_a_remote_folder_is_searched_as_a_local_one(phone) -> None:
    assert found(f"file://{phone}") == found(phone)
    for one in open_sources([f"file://{phone}"]).items():
        assert load_item(one).size == (8, 8)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_searched_as_a_folder(mode, phone, tmp_path) -> None:
    path = tmp_path / ("phone.tar" if mode == "w" else "phone.tar.gz")
    with tarfile.open(path, mode) as tar:
        tar.add(phone, ".")
    paths, skipped = found(path)
    assert (sorted(one.removeprefix("./") for one in paths), skipped) == found(phone)
    for one in open_sources([str(path)]).items():
        assert load_item(one).size == (8, 8)


SYSTEM = [
    *["@eaDir/SYNOPHOTO_THUMB_M.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/a/._0.jpg", "a/.hidden.jpg", "._0.jpg"],
    *["a/@eadir/b/c.jpg", "$RECYCLE.BIN/0.jpg", ".git/objects/0.jpg", "lost+found/0.jpg", "#recycle/0.jpg"],
    *[".trashed-1699999999-IMG_1.jpg", ".pending-1699999999-IMG_2.jpg", "a/.IMG_3.jpg.Xa8Uq1"],  # Android, rsync
    *["a/desktop.ini", "a/Thumbs.db", ".Trash-1000/files/0.jpg", ".picasaoriginals/0.jpg", "a/.thumbnails/0.jpg"],
]


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("form", ["folder", "tar", "remote folder"])
def test_what_systems_make_is_passed_over_and_counted(form, name, tmp_path) -> None:
    folder = fill(tmp_path / "x", {"a/1.jpg": JPEG, "2.jpg": JPEG, name: JPEG})
    argument: object = f"file://{folder}" if form == "remote folder" else folder
    if form == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(folder, ".")  # names begin with ./
        argument = tmp_path / "x.tar"
    paths, skipped = found(argument)
    assert sorted(path.removeprefix("./") for path in paths) == ["2.jpg", "a/1.jpg"]
    assert skipped == {"system or hidden": 1}


def test_a_hidden_folder_that_is_named_is_searched(tmp_path) -> None:
    fill(tmp_path, {".cache/0.jpg": JPEG, ".cache/.x.jpg": JPEG})
    assert found(tmp_path / ".cache") == (["0.jpg"], {"system or hidden": 1})
    assert found(tmp_path / ".cache" / ".x.jpg") == ([".x.jpg"], {})


def test_a_folder_of_only_system_files_says_what_it_passed_over(tmp_path) -> None:
    fill(tmp_path, {"._0.jpg": b"x", "._1.jpg": b"x", "a.mp4": b"x"})
    with pytest.raises(InputError, match=r"; 3 files passed over: 2 system or hidden, 1 video$"):
        found(tmp_path)


PHOTOS = {
    "a.jpg": JPEG,
    "b.png": JPEG,
    "raw/c.jpg": JPEG,
    "raw/s.jpg/d.jpg": JPEG,
    "x/s.jpg/e.jpg": JPEG,
    "s.jpg": JPEG,
}
PATTERNS = {
    "name": ({"exclude": ["*.png"]}, "b.png"),
    "folder's name": ({"exclude": ["raw"]}, "raw/c.jpg raw/s.jpg/d.jpg"),
    "folders alone": ({"exclude": ["s.jpg/"]}, "raw/s.jpg/d.jpg x/s.jpg/e.jpg"),
    "files and folders": ({"exclude": ["s.jpg"]}, "raw/s.jpg/d.jpg x/s.jpg/e.jpg s.jpg"),
    "path": ({"exclude": ["x/*"]}, "x/s.jpg/e.jpg"),
    "path of a folder": ({"exclude": ["./raw/s.jpg"]}, "raw/s.jpg/d.jpg"),
    "path from the root": ({"exclude": ["s.jpg/d.jpg"]}, ""),
    "file of the folder itself": ({"exclude": ["/s.jpg"]}, "s.jpg"),
    "case counts": ({"exclude": ["*.PNG"]}, ""),
    "several": ({"exclude": ["a.*", "?.png"]}, "a.jpg b.png"),
}
INCLUDED = {
    "name": (["*.png"], "b.png"),
    "folder": (["raw/"], "raw/c.jpg raw/s.jpg/d.jpg"),
    "path": (["x/*.jpg"], "x/s.jpg/e.jpg"),
    "several": (["a.jpg", "b.png"], "a.jpg b.png"),
}


@pytest.mark.parametrize("form", ["folder", "tar", "remote folder"])
@pytest.mark.parametrize("case", PATTERNS)
def test_what_is_excluded_is_counted(case, form, tmp_path) -> None:
    options, left_out = PATTERNS[case]
    paths, skipped = found(given(tmp_path, form), **options)
    assert sorted(paths) == sorted(set(PHOTOS) - set(left_out.split()))
    assert skipped.get("excluded", 0) == len(left_out.split())


@pytest.mark.parametrize("form", ["folder", "tar", "remote folder"])
@pytest.mark.parametrize("case", INCLUDED)
def test_what_is_not_included_is_counted(case, form, tmp_path) -> None:
    patterns, taken = INCLUDED[case]
    paths, skipped = found(given(tmp_path, form), include=patterns)
    assert sorted(paths) == sorted(taken.split())
    assert skipped == {"not included": len(PHOTOS) - len(taken.split())}


def given(tmp_path: Path, form: str) -> object:
    folder = fill(tmp_path / "photos", PHOTOS)
    if form == "tar":
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for name in PHOTOS:
                tar.add(folder / name, name)
        return tmp_path / "photos.tar"
    return f"file://{folder}" if form == "remote folder" else folder


def test_exclude_wins_over_include(tmp_path) -> None:
    fill(tmp_path, PHOTOS)
    assert found(tmp_path, include=["*.jpg"], exclude=["raw", "x"])[0] == ["a.jpg", "s.jpg"]


@pytest.mark.parametrize("pattern", ["", "/", "./"])
def test_a_pattern_that_names_nothing_is_refused(pattern) -> None:
    with pytest.raises(UsageError, match=r"--exclude .* names nothing"):
        Selection(exclude=[pattern])


@pytest.mark.parametrize("wrong", [{"exclude": "*.jpg"}, {"include": [1]}, {"follow_links": "yes"}, {"include": None}])
def test_a_selection_of_a_wrong_type_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=r"--\w+(-links)?"):
        Selection(**wrong)


def test_patterns_are_not_for_files_that_are_named(tmp_path) -> None:
    fill(tmp_path, PHOTOS)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/b.png\n")
    assert found(tmp_path / "a.jpg", tmp_path / "list.txt", exclude=["*"])[0] == ["a.jpg", "b.png"]


# Links


@pytest.fixture
def linked(tmp_path) -> Path:
    fill(tmp_path, {"data/train/0.jpg": JPEG, "far/1.jpg": JPEG, "far/deep/2.jpg": JPEG, "far/.x/3.jpg": JPEG})
    (tmp_path / "data" / "val").symlink_to("../far")
    return tmp_path / "data"


def test_a_linked_folder_is_passed_over_with_a_word_or_followed(linked) -> None:
    assert found(linked) == (["train/0.jpg"], {"link to a folder": 1})
    paths, skipped = found(linked, follow_links=True)
    assert (paths, skipped) == (["train/0.jpg", "val/1.jpg", "val/deep/2.jpg"], {"system or hidden": 1})
    for one in open_sources([str(linked)], selection=Selection(follow_links=True)).items():
        assert load_item(one).size == (8, 8)


def test_followed_links_go_round_no_circle_and_take_each_folder_once(linked, tmp_path) -> None:
    (linked / "train" / "up").symlink_to(linked)
    (linked / "train" / "self").symlink_to(".")
    (linked / "a_train").symlink_to("train")  # comes first by name, but a folder has its own path
    (tmp_path / "far" / "back").symlink_to(linked / "train")
    (linked / "zal").symlink_to("../far/deep")
    paths, skipped = found(linked, follow_links=True)
    assert paths == ["train/0.jpg", "val/1.jpg", "val/deep/2.jpg"]
    assert skipped == {"folder that is searched already": 5, "system or hidden": 1}


def test_links_that_lead_above_the_folder_end(tmp_path) -> None:
    fill(tmp_path, {"x/data/0.jpg": JPEG, "x/1.jpg": JPEG})
    (tmp_path / "x" / "data" / "up").symlink_to(tmp_path / "x")
    assert found(tmp_path / "x" / "data", follow_links=True)[0] == ["0.jpg", "up/1.jpg"]


def test_links_that_are_excluded_or_hidden_are_not_followed(linked) -> None:
    (linked / ".cache").symlink_to("../far")
    paths, skipped = found(linked, follow_links=True, exclude=["val/"])
    assert (paths, skipped) == (["train/0.jpg"], {"excluded": 1, "system or hidden": 1})


def test_what_cannot_be_opened_or_is_no_file_is_passed_over_without_waiting(tmp_path) -> None:
    fill(tmp_path, {"0.jpg": JPEG})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    assert found(tmp_path) == (["0.jpg"], {"broken link": 2, "no regular file": 1})


def test_a_system_folder_that_cannot_be_listed_is_no_failure(tmp_path, monkeypatch) -> None:
    fill(tmp_path, {"0.jpg": JPEG, "lost+found/1.jpg": JPEG})
    real = os.scandir

    def scandir(path):
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found(tmp_path) == (["0.jpg"], {"system or hidden": 1})


def test_folders_that_were_listed_before_an_error_are_searched(tmp_path, monkeypatch) -> None:
    fill(tmp_path, {"a/0.jpg": JPEG})
    real = os.scandir

    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __iter__(self):
            with real(tmp_path) as entries:
                yield from entries
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", lambda path: real(path) if str(path).endswith("a/") else Broken())
    problem, item = open_sources([str(tmp_path)]).items()
    assert (item.path, problem.error) == ("a/0.jpg", "folder can't be listed: Input/output error")


# Counts


def test_only_the_beginning_of_a_file_is_read(tmp_path) -> None:
    fill(tmp_path, {"0.jpg": JPEG})
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert found(tmp_path) == (["0.jpg"], {"unknown format": 1})


def test_a_folder_named_twice_is_counted_once(phone) -> None:
    assert found(phone, phone, phone / "IMG_1.jpg")[1] == found(phone)[1]


def test_members_of_a_tar_are_all_accounted_for(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.txt", "0.cls", "0.mp4", "._0.jpg", "0.jpg", "x.unknown"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))
    sources = open_sources([str(tmp_path / "a.tar")])
    assert sources.total == 2
    for _ in range(2):  # a second pass counts anew
        assert [one.path for one in sources.items() if not isinstance(one, Unreadable)] == ["0.jpg", "x.unknown"]
        assert sum(sources.skipped.values()) == 5
    assert sources.skipped["text"] == 2
