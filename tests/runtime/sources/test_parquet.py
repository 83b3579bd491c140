"""Images inside parquet."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.contract.errors import InputError
from runtime.sources import Item, Unreadable, load_item, open_sources, parquet_images, read_image


@pytest.fixture
def hugging_face(tmp_path, picture) -> str:
    """Ten images as `datasets` writes them, in three row groups."""
    rows = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(10)]
    table = pa.table(
        {"label": range(10), "image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    )
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=4, write_page_checksum=True)
    return str(tmp_path / "train.parquet")


def entries(*arguments, **rest) -> list[Item | Unreadable]:
    return list(open_sources([str(argument) for argument in arguments], **rest).items())


def test_images_of_a_struct_come_by_row_and_path(hugging_face, number_of) -> None:
    sources = open_sources([hugging_face])
    found = list(sources.items())
    assert [(item.root, item.path) for item in found] == [(hugging_face, f"{n}/{n}.png") for n in range(10)]
    assert [number_of(load_item(item)) for item in found] == list(range(10))
    assert (sources.total, sources.roots) == (10, (hugging_face,))
    for number in (0, 3, 4, 9):
        assert number_of(read_image(hugging_face, f"{number}/{number}.png")) == number


@pytest.mark.parametrize("name", ["image", "bytes", "img", "jpg", "png"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_columns_of_plain_bytes_come_by_row(name, kind, tmp_path, picture, number_of) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"x": [1, 2], "file_name": ["a.png", "b.png"], name: pa.array([picture(1), picture(2)], kind)})
    parquet.write_table(table, path)
    found = entries(path)
    assert [item.path for item in found] == ["0", "1"]
    assert [number_of(load_item(item)) for item in found] == [1, 2]
    assert number_of(read_image(str(path), "1")) == 2


def test_a_struct_of_any_name_without_a_path_will_do(tmp_path, picture) -> None:
    parquet.write_table(pa.table({"photo": [{"bytes": picture(1), "width": 8}]}), tmp_path / "a.parquet")
    assert [item.path for item in entries(tmp_path / "a.parquet")] == ["0"]


def test_of_several_columns_of_images_one_is_taken_and_named(tmp_path, picture, number_of, caplog) -> None:
    table = pa.table({"mask": [{"bytes": picture(1)}], "image": [{"bytes": picture(2)}]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [number_of(load_item(item)) for item in entries(tmp_path / "a.parquet")] == [2]
    assert "images are taken from column `image`, not from ['mask']" in caplog.text


def test_nulls_are_told(tmp_path, picture) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [None, {"bytes": None, "path": "a.png"}, {"bytes": picture(1), "path": None}, {"bytes": b"", "path": ""}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": pa.array(rows, kind)}), path)
    assert entries(path) == [
        Unreadable(str(path), "0", "holds no bytes (null)"),
        Unreadable(str(path), "1/a.png", "holds no bytes (null), and there is no file a.png"),
        Item(str(path), "2", picture(1)),
        Item(str(path), "3", b""),
    ]


@pytest.mark.parametrize(
    ("stored", "path"),
    [
        ("cats/a.png", "0/cats/a.png"),
        ("/etc/a.png", "0/etc/a.png"),
        ("../../a.png", "0/a.png"),
        ("a\0b.png", "0/ab.png"),
        ("..", "0"),
        ("ä\n.png", "0/ä\n.png"),
    ],
    ids=repr,
)
def test_stored_paths_are_names_that_stay_below_the_row(stored, path, tmp_path, picture, number_of) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": [{"bytes": picture(5), "path": stored}]}), file)
    assert [item.path for item in entries(file)] == [path]
    assert number_of(read_image(str(file), path)) == 5


def test_rows_that_are_not_wanted_are_not_read(hugging_face, monkeypatch) -> None:
    groups, asked = [], []
    real = parquet_images._values

    def values(file, column, group):
        groups.append(group)
        return real(file, column, group)

    monkeypatch.setattr(parquet_images, "_values", values)

    def is_wanted(root, path):
        asked.append(path)
        return path in ("5/5.png", "6/6.png")

    assert [item.path for item in open_sources([hugging_face]).items(is_wanted)] == ["5/5.png", "6/6.png"]
    assert groups == [1]
    assert asked == [f"{number}/{number}.png" for number in range(10)]


def test_a_failure_of_who_asks_is_not_taken_for_damage(hugging_face) -> None:
    def is_wanted(root, path):
        raise RuntimeError("the store is broken")

    with pytest.raises(RuntimeError, match="the store is broken"):
        list(open_sources([hugging_face]).items(is_wanted))


def test_too_large_an_image_is_told(tmp_path, picture) -> None:
    parquet.write_table(pa.table({"image": [bytes(65 << 20), picture(1)]}), tmp_path / "a.parquet")
    found = entries(tmp_path / "a.parquet", max_pixels=1000)
    assert found[0].error == "has 68,157,440 bytes, more than 67,108,864"
    assert isinstance(found[1], Item)


def test_only_a_few_pages_are_in_memory(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    images = [rng.bytes(200_000) for _ in range(400)]  # one row group of 80 MB
    parquet.write_table(pa.table({"image": images}), path, compression=None, write_batch_size=16)
    del images
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    tracemalloc.start()  # of what pyarrow reads as Python's bytes
    for _ in open_sources([str(path)]).items():
        peak = max(peak, pool.bytes_allocated() - before)
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("path", ["99/99.png", "3/4.png", "x", "", "../3", "-1/9.png"])
def test_key_that_is_not_there_is_refused(path, hugging_face) -> None:
    with pytest.raises(InputError):
        read_image(hugging_face, path)


# Damage


def test_a_damaged_row_group_costs_no_other(hugging_face, tmp_path) -> None:
    with parquet.ParquetFile(hugging_face) as file:
        chunk = file.metadata.row_group(1).column(1)
        assert chunk.path_in_schema == "image.bytes"
        place = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray((tmp_path / "train.parquet").read_bytes())
    data[place + 60 : place + 68] = b"\xff" * 8
    (tmp_path / "train.parquet").write_bytes(data)
    found = entries(hugging_face)
    assert [item.path for item in found if isinstance(item, Item)] == [f"{n}/{n}.png" for n in (0, 1, 2, 3, 8, 9)]
    problems = {one.path: one.error for one in found if isinstance(one, Unreadable)}
    assert list(problems) == [f"{n}/{n}.png" for n in (4, 5, 6, 7)]
    assert all("can't be read (" in error for error in problems.values())


def test_a_cut_file_is_told_and_the_others_read(hugging_face, tmp_path) -> None:
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-30])
    sources = open_sources([str(tmp_path / "cut.parquet"), hugging_face])
    found = list(sources.items())
    assert sources.total == len(found) == 11
    assert (found[0].root, found[0].path) == (str(tmp_path / "cut.parquet"), "")
    assert "can't be read (ArrowInvalid: " in found[0].error


def test_a_file_cut_or_altered_anywhere_gives_our_errors_alone(hugging_face, tmp_path) -> None:
    rng = np.random.default_rng(6)
    data = (tmp_path / "train.parquet").read_bytes()
    path = tmp_path / "x.parquet"
    for number in range(200):
        altered = bytearray(data if number % 4 else data[: rng.integers(len(data))])
        for place in rng.integers(0, max(len(altered), 1), 3):
            altered[place : place + 1] = bytes([rng.integers(256)])[: len(altered)]
        path.write_bytes(altered)
        try:
            found = entries(path)
        except InputError:  # no column of images is left
            continue
        assert all(one.error for one in found if isinstance(one, Unreadable))
