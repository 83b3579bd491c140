"""Images inside tars."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from runtime.contract.errors import InputError
from runtime.contract.keys import location
from runtime.sources import Item, Unreadable, load_item, open_sources, read_image, tar_members, tars
from runtime.sources.at_hand import at_hand


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def write(path, *found, format=tarfile.PAX_FORMAT, mode="w") -> str:
    with tarfile.open(path, mode, format=format) as tar:
        for info, data in found:
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def shard(tmp_path, picture) -> str:
    """A WebDataset shard of five samples: image, text, class."""
    found = []
    for number in range(5):
        found.append(member(f"cats/{number:03}.png", picture(number)))
        found.append(member(f"cats/{number:03}.txt", b"a cat"))
        found.append(member(f"cats/{number:03}.cls", b"7"))
    return write(tmp_path / "shard.tar", *found)


def entries(*arguments, **rest) -> list[Item | Unreadable]:
    return list(open_sources([str(argument) for argument in arguments], **rest).items())


def test_images_come_by_the_name_of_their_member(shard, number_of) -> None:
    sources = open_sources([shard])
    found = list(sources.items())
    assert [(item.root, item.path) for item in found] == [(shard, f"cats/{number:03}.png") for number in range(5)]
    assert [number_of(load_item(item)) for item in found] == list(range(5))
    assert (sources.total, sources.roots) == (5, (shard,))
    assert location(found[0].root, found[0].path) == f"{shard}/cats/000.png"


def zstd(path, data: bytes, frames: int = 1) -> str:
    """Pack a file's content by Zstandard, in several frames as parallel packers write them."""
    size = -(-len(data) // frames)
    path.write_bytes(b"".join(pa.Codec("zstd").compress(data[n : n + size]) for n in range(0, len(data), size)))
    return str(path)


@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("name", ["a.tar.zst", "a.tzst", "a.TAR.ZST", "a.tar"])
def test_tars_packed_by_zstandard_are_read(name, frames, shard, tmp_path, number_of) -> None:
    path = zstd(tmp_path / name, Path(shard).read_bytes(), frames)
    sources = open_sources([path])
    assert sources.total is None if name != "a.tar" else True
    found = list(sources.items())
    assert [number_of(load_item(item)) for item in found] == list(range(5))
    keys = [(item.root, item.path) for item in found]
    assert [number_of(read_image(*key)) for key in reversed(keys)] == [4, 3, 2, 1, 0]
    with at_hand(keys) as read:
        assert [number_of(read(*key)) for key in keys] == list(range(5))


def test_a_tar_of_zstandard_that_begins_with_a_frame_to_skip_is_read(shard, tmp_path, number_of) -> None:
    path = zstd(tmp_path / "a.tar.zst", Path(shard).read_bytes(), 3)
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"  # as pzstd writes it
    Path(path).write_bytes(skipped + Path(path).read_bytes() + skipped)
    assert [number_of(load_item(item)) for item in entries(path)] == list(range(5))


def test_a_damaged_or_cut_tar_of_zstandard_is_told_and_what_lies_before_is_read(tmp_path, number_of) -> None:
    rng = np.random.default_rng(0)
    made = [member(f"{number}.png", rng.bytes(300_000)) for number in range(5)]  # it can't be packed any smaller
    data = Path(zstd(tmp_path / "a.tar.zst", Path(write(tmp_path / "a.tar", *made)).read_bytes())).read_bytes()
    (tmp_path / "a.tar.zst").write_bytes(data[: len(data) // 2])
    *good, bad = entries(tmp_path / "a.tar.zst")
    assert [item.path for item in good if isinstance(item, Item)] == ["0.png", "1.png"]
    assert isinstance(bad, Unreadable)
    for _ in range(100):
        altered = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            altered[place] ^= 255
        altered[int(rng.integers(32))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.tar.zst").write_bytes(altered)
        assert all(one.error for one in entries(tmp_path / "a.tar.zst") if isinstance(one, Unreadable))


def test_a_tar_of_zstandard_that_unpacks_without_end_takes_no_memory(tmp_path) -> None:
    huge = member("huge.png")[0]
    huge.size = 1 << 28
    path = zstd(tmp_path / "a.tar.zst", huge.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 28))
    assert (tmp_path / "a.tar.zst").stat().st_size < 100_000
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    first, *_ = open_sources([path], max_pixels=1000).items()
    assert first.error == "has 268,435,456 bytes, more than 67,108,864"
    assert pool.bytes_allocated() - before < 1 << 24


@pytest.mark.parametrize("ending", [".img", ".IMG", ".image", ".picture", ".bin", ""])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_unknown_endings_are_images_by_their_content(ending, suffix, tmp_path, picture, number_of) -> None:
    found = [member(f"{number}{ending}", picture(number)) for number in range(3)]
    others = [member("3.img", b"a disk's image"), member("README", b"read me"), member("4.json", picture(1))]
    path = write(tmp_path / f"a{suffix}", *found, *others, mode="w:gz" if suffix == ".tar.gz" else "w")
    sources = open_sources([path])
    items = list(sources.items())
    assert [(item.path, number_of(load_item(item))) for item in items] == [(f"{n}{ending}", n) for n in range(3)]
    assert sources.skipped == {"unknown format": 2, "text": 1}
    assert sources.total == (None if suffix == ".tar.gz" else 3)
    assert [number_of(read_image(item.root, item.path)) for item in items] == [0, 1, 2]
    with pytest.raises(InputError, match="is not in the tar"):
        read_image(path, "3.img")


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("suffix", [None, ".tar"], ids=["its own suffix", "named .tar"])
def test_packed_tars_are_read(mode, suffix, tmp_path, picture, number_of) -> None:
    path = write(tmp_path / f"a{suffix or f'.tar.{mode}'}", member("1.png", picture(1)), mode=f"w:{mode}")
    sources = open_sources([path])
    assert sources.total is None
    assert [number_of(load_item(item)) for item in sources.items()] == [1]
    assert number_of(read_image(path, "1.png")) == 1


def test_a_pattern_with_braces_stands_for_its_shards(tmp_path, picture) -> None:
    for number in range(8, 12):
        write(tmp_path / f"s-{number:03}.tar", member("a.png", picture(number)))
    found = entries(tmp_path / "s-{008..010}.tar", tmp_path / "s-{011,010}.tar")
    assert [item.root[-7:] for item in found] == ["008.tar", "009.tar", "010.tar", "011.tar"]
    with pytest.raises(InputError, match=r"s-012.tar: No such file"):
        entries(tmp_path / "s-{008..012}.tar")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str)
@pytest.mark.parametrize(
    "name", ["a.png", "d/" * 40 + "a.png", "./a.png", "猫/ä\nö.png", "/etc/a.png", "../../a.png"], ids=str
)
def test_names_are_only_names(format, name, tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.tar", member(name, picture(3)), member("b.png", picture(4)), format=format)
    assert [item.path for item in entries(path)] == [name, "b.png"]
    assert number_of(read_image(path, name)) == 3
    assert [one.name for one in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["GNU", "pax"])
def test_long_names_are_whole(format, tmp_path, picture) -> None:
    name = "d" * 300 + "/" + "n" * 200 + ".png"
    path = write(tmp_path / "a.tar", member(name, picture(3)), format=format)
    assert [item.path for item in entries(path)] == [name]


def test_name_that_is_not_utf8_is_told(tmp_path, picture) -> None:
    path = write(tmp_path / "a.tar", member("caf\udce9.png", picture(3)), format=tarfile.GNU_FORMAT)
    assert entries(path) == [Unreadable(path, r"caf\udce9.png", "its name is not UTF-8: rename it")]


def test_links_devices_and_folders_are_no_images(tmp_path, picture) -> None:
    path = write(
        tmp_path / "a.tar",
        member("a.png", picture(1)),
        member("folder.png", type=tarfile.DIRTYPE),
        member("hard.png", type=tarfile.LNKTYPE, linkname="a.png"),
        member("soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("pipe.png", type=tarfile.FIFOTYPE),
        member("device.png", type=tarfile.CHRTYPE),
        member("link.txt", type=tarfile.SYMTYPE, linkname="x"),
        member("b.png", picture(2)),
    )
    found = {one.path: getattr(one, "error", None) for one in entries(path)}
    assert found == {
        "a.png": None,
        "hard.png": "is a hard link to `a.png` inside a tar, not a file",
        "soft.png": "is a symbolic link to `/etc/passwd` inside a tar, not a file",
        "pipe.png": "is a named pipe, not a file",
        "device.png": "is a device, not a file",
        "b.png": None,
    }
    with pytest.raises(InputError, match="symbolic link"):
        read_image(path, "soft.png")


def test_sparse_members_are_told_and_what_follows_is_read(tmp_path, picture) -> None:
    old = bytearray(member("old.png", b"")[0].tobuf(tarfile.GNU_FORMAT))
    old[156:157] = b"S"
    old[124:136] = b"00000001000\0"  # 512 bytes stored
    old[482:483] = b"\1"  # the map goes on in one more header
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + sum(old[156:512]) + 256)
    new = member("new.png", b"x" * 10, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"})
    path = write(tmp_path / "a.tar", new, member("b.png", picture(2)))
    with open(path, "rb") as file:  # noqa: PTH123
        rest = file.read()
    (tmp_path / "a.tar").write_bytes(bytes(old) + b"\0" * 512 + b"x" * 512 + rest)
    assert [(one.path, isinstance(one, Item)) for one in entries(path)] == [
        ("old.png", False),
        ("new.png", False),
        ("b.png", True),
    ]


def test_a_member_twice_counts_once_and_the_first_is_meant(tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.tar", member("a.png", picture(1)), member("a.png", picture(2)))
    sources = open_sources([path, path])
    assert [number_of(load_item(item)) for item in sources.items()] == [1]
    assert number_of(read_image(path, "a.png")) == 1


def test_what_is_not_wanted_is_not_read(shard, monkeypatch) -> None:
    read, asked = [], []
    real = tars.read_data
    monkeypatch.setattr(tars, "read_data", lambda tar, one: read.append(one.name) or real(tar, one))

    def is_wanted(root, path):
        asked.append(path)
        return path.endswith("3.png")

    assert [item.path for item in open_sources([shard]).items(is_wanted)] == ["cats/003.png"]
    assert read == ["cats/003.png"]
    assert asked == [f"cats/{number:03}.png" for number in range(5)]


def test_a_failure_of_who_asks_is_not_taken_for_damage(shard) -> None:
    def is_wanted(root, path):
        raise RuntimeError("the store is broken")

    with pytest.raises(RuntimeError, match="the store is broken"):
        list(open_sources([shard]).items(is_wanted))


# Damage


def test_images_before_the_end_of_a_cut_tar_are_given(shard, tmp_path, number_of) -> None:
    data = (tmp_path / "shard.tar").read_bytes()
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[6]
    (tmp_path / "shard.tar").write_bytes(data[: third.offset_data + 20])
    sources = open_sources([shard])
    found = list(sources.items())
    assert sources.total == len(found) == 4
    assert [number_of(load_item(item)) for item in found[:2]] == [0, 1]
    cut = f"is cut short, 20 of {third.size:,} bytes are there"
    assert found[2] == Unreadable(shard, "cats/002.png", cut)
    assert found[3].path == ""
    assert "is cut short: it ends without an end mark" in found[3].error


def test_a_tar_without_its_end_mark_is_told(shard, tmp_path) -> None:
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    (tmp_path / "shard.tar").write_bytes((tmp_path / "shard.tar").read_bytes()[:end])
    found = entries(shard)
    assert [isinstance(one, Item) for one in found] == [True] * 5 + [False]


def test_a_damaged_header_is_told_with_its_place(shard, tmp_path) -> None:
    data = bytearray((tmp_path / "shard.tar").read_bytes())
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[6].offset
    data[place + 3] ^= 1
    (tmp_path / "shard.tar").write_bytes(data)
    found = entries(shard)
    assert [one.path for one in found] == ["cats/000.png", "cats/001.png", ""]
    assert found[-1].error == f"is no tar, or damaged {place:,} bytes in (bad checksum)"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_tar_cut_or_altered_anywhere_gives_our_errors_alone(packed, shard, tmp_path) -> None:
    rng = np.random.default_rng(5)
    data = (tmp_path / "shard.tar").read_bytes()[:15_000]
    if packed:
        with tarfile.open(shard) as tar:
            files = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
        data = (write(tmp_path / "b.tar.gz", *files, mode="w:gz") and (tmp_path / "b.tar.gz")).read_bytes()
    path = tmp_path / "x.tar"
    for _ in range(150):
        altered = bytearray(data[: rng.integers(len(data))])
        for place in rng.integers(0, max(len(altered), 1), 2):
            altered[place : place + 1] = bytes([rng.integers(256)])[: len(altered)]
        path.write_bytes(altered)
        sources = open_sources([str(path)])
        found = list(sources.items())
        assert found
        assert sources.total in (None, len(found))
        assert all(one.error for one in found if isinstance(one, Unreadable))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is cut short"),
        (b"\x89PNG not a tar" * 100, "is no tar, or damaged 0 bytes in"),
        (b"\0" * 10240, "holds no member that is an image: no file at all"),
    ],
    ids=["empty", "another file", "no member"],
)
def test_what_is_no_tar_of_images_is_told(content, reason, tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (problem,) = entries(tmp_path / "a.tar")
    assert reason in problem.error


def test_a_tar_without_images_is_told(tmp_path) -> None:
    path = write(tmp_path / "a.tar", member("a.txt", b"x"))
    assert entries(path) == [Unreadable(path, "", "holds no member that is an image: 1 file passed over: 1 text")]


def test_claimed_sizes_take_no_memory(tmp_path, picture) -> None:
    huge = member("huge.png")[0]
    huge.size = 1 << 40
    for name, header in {
        "member": huge.tobuf(tarfile.GNU_FORMAT),
        "name": member("x", type=tarfile.GNUTYPE_LONGNAME)[0].tobuf().replace(b"0" * 11, b"7" * 11, 1),
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(header + b"x" * 512)
    (claimed, cut) = entries(tmp_path / "member.tar")
    assert claimed.error == "has 1,099,511,627,776 bytes, more than 715,827,880"
    assert "is cut short" in cut.error
    info = member("x", type=tarfile.GNUTYPE_LONGNAME)[0]
    info.size = 1 << 33
    (tmp_path / "name.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    (problem,) = entries(tmp_path / "name.tar")
    assert "an extended header of 8,589,934,592 bytes" in problem.error


def test_a_packed_bomb_takes_no_memory(tmp_path) -> None:
    import gzip
    import tracemalloc

    info = member("a.txt")[0]
    info.size = 200 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(200):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    tracemalloc.start()
    (problem,) = entries(tmp_path / "a.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "holds no member" in problem.error
    assert peak < 10 << 20


def test_too_large_a_member_is_told_and_the_rest_read(tmp_path, picture) -> None:
    path = write(tmp_path / "a.tar", member("a.png", bytes(70 << 20)), member("b.png", picture(1)))
    found = entries(path, max_pixels=1000)
    assert [one.path for one in found] == ["a.png", "b.png"]
    assert found[0].error == "has 73,400,320 bytes, more than 67,108,864"


def test_pax_records_that_are_none_are_refused() -> None:
    good = b"12 path=abc\n"
    assert tar_members._parse_pax(good + b"\0" * 500, 0) == {"path": "abc"}
    for bad in (b"0 path=a\n", b"99 path=a\n", b"path=a\n", b"-3 path=a\n", b"12\n", b"9 pathab\n"):
        with pytest.raises(InputError, match="an extended header that is none"):
            tar_members._parse_pax(bad, 0)


def test_member_that_is_not_there_is_refused(shard) -> None:
    with pytest.raises(InputError, match="is not in the tar"):
        read_image(shard, "cats/009.png")
    with pytest.raises(InputError, match="does not exist"):
        read_image(shard + "x.tar", "a.png")


def test_a_tar_that_changed_is_indexed_anew(tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.tar", member("a.png", picture(1)))
    assert number_of(read_image(path, "a.png")) == 1
    write(tmp_path / "a.tar", member("b.png", picture(2)), member("a.png", picture(3)))
    assert number_of(read_image(path, "a.png")) == 3


def test_few_indexes_are_kept(tmp_path, picture) -> None:
    for number in range(10):
        read_image(write(tmp_path / f"{number}.tar", member("a.png", picture(1))), "a.png")
    assert len(tars._indexes) <= tars._INDEXES


def test_tars_joined_into_one_are_told(shard, tmp_path) -> None:
    data = (tmp_path / "shard.tar").read_bytes()
    (tmp_path / "shard.tar").write_bytes(data + data)
    *found, problem = entries(shard)
    assert len(found) == 5
    assert "goes on behind its end mark" in problem.error
