"""Folders of parquet files, as Spark, pandas and the Hugging Face hub write data sets."""

import json

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from runtime.__main__ import main
from runtime.contract.errors import InputError
from runtime.evaluation.datasets import open_dataset
from runtime.sources import Columns, Selection, load_item, open_sources, read_image
from runtime.store import Store


@pytest.fixture
def spark(tmp_path, picture):
    """A partitioned output of Spark: four pictures in three parts, one of them empty, and what Spark puts beside."""
    folder = tmp_path / "out.parquet"
    parts = {"day=1/part-00000-a.parquet": [1, 2], "day=1/part-00001-b.parquet": [], "day=2/part-00000-c.parquet": [3]}
    for name, numbers in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images = pa.array([picture(number) for number in numbers], pa.binary())
        parquet.write_table(pa.table({"id": pa.array(numbers, pa.int64()), "image": images}), folder / name)
    (folder / "_SUCCESS").touch()
    (folder / "_metadata").write_bytes(b"PAR1")
    (folder / ".part.crc").write_bytes(b"crc")
    (folder / "_temporary" / "0").mkdir(parents=True)
    (folder / "_temporary" / "0" / "part-00009.parquet").write_bytes(b"half of a part")
    return folder


def test_a_folder_of_parts_is_the_images_of_its_parts(spark, number_of):
    sources = open_sources([str(spark)])
    assert sources.total == 3
    found = list(sources.items())
    assert [(item.root.removeprefix(f"{spark}/"), item.path) for item in found] == [
        ("day=1/part-00000-a.parquet", "0"),
        ("day=1/part-00000-a.parquet", "1"),
        ("day=2/part-00000-c.parquet", "0"),
    ]
    assert [number_of(load_item(item)) for item in found] == [1, 2, 3]
    assert [number_of(read_image(item.root, item.path)) for item in found] == [1, 2, 3]
    assert sources.skipped == {"data": 1, "system or hidden": 1, "empty": 1, "unknown format": 1}


def test_a_remote_folder_of_parts_too(spark, number_of):
    files = fsspec.filesystem("memory")
    files.put(f"{spark}/", "/parts-of-spark/", recursive=True)
    try:
        found = list(open_sources(["memory://parts-of-spark"]).items())
        assert [number_of(load_item(item)) for item in found] == [1, 2, 3]
    finally:
        files.rm("/parts-of-spark", recursive=True)


def test_the_command_takes_such_a_folder_and_its_options(tiny, spark, tmp_path, capsys):
    command = ["embed", str(tiny), str(spark), "--out", str(tmp_path / "out"), "--key-column", "id", "--json"]
    assert main([*command, "--exclude", "day=2/"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["embedded"], found["failed"]) == (2, 0)
    assert sorted(Store(tmp_path / "out").read().paths) == ["0/1", "1/2"]


def test_parquet_files_beside_pictures_are_passed_over(spark):
    Image.new("RGB", (8, 8)).save(spark / "a.png")
    sources = open_sources([str(spark)])
    assert [item.path for item in sources.items()] == ["a.png"]
    assert sources.skipped["data"] == 4


def test_a_part_without_images_is_refused_with_its_columns(spark, tmp_path):
    parquet.write_table(pa.table({"x": [1]}), spark / "part-9.parquet")
    with pytest.raises(InputError, match=r"part-9\.parquet: no column of images .* its 1 column: x \(int64\)"):
        open_sources([str(spark)])
    assert open_sources([str(spark)], selection=Selection(exclude=["part-9*"]), columns=Columns("image")).total == 3


def test_evaluate_says_how_such_a_folder_is_given(spark):
    with pytest.raises(InputError, match="holds parquet files and no image: give them by --data parquet:FILE"):
        open_dataset(f"folder:{spark}")


def test_a_store_is_embedded_again_from_its_images(tiny, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((9, 9, 3), number * 50, np.uint8)).save(folder / f"{number}.png")
    assert main(["embed", str(tiny), str(folder), "--out", str(tmp_path / "one")]) == 0
    assert main(["embed", str(tiny), str(tmp_path / "one"), "--out", str(tmp_path / "two")]) == 0
    one, two = Store(tmp_path / "one").read(), Store(tmp_path / "two").read()
    assert (one.roots, one.paths) == (two.roots, two.paths)
