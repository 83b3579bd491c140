"""Labelled parquet in the form of the Hugging Face hub."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from runtime.contract.errors import InputError
from runtime.evaluation.datasets import open_dataset
from runtime.sources import load_item

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(number) for number in range(100)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, labels, *, image="img", label="label", names=NAMES, metadata=None, kind=None, first=0):
    """A file of the hub: its columns, and its metadata as the library `datasets` writes them."""
    rows = range(first, first + len(labels))
    pictures = pa.array([{"bytes": PICTURES[row % 100], "path": f"{row}.png"} for row in rows], IMAGE)
    table = pa.table({image: pictures, label: pa.array(labels, kind or pa.int64())})
    if metadata is None and names is not None:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=1_000)
    return path


def labels(count: int, classes: int) -> list[int]:
    return (np.arange(count) * 7 % classes).tolist()


def test_a_file_of_the_hub_gives_images_labels_and_names(tmp_path) -> None:
    file = write(tmp_path / "test-00000-of-00001.parquet", labels(10_000, 10))
    dataset = open_dataset(f"cifar10:{file}")
    assert (dataset.name, dataset.classes, len(dataset)) == ("cifar10", NAMES, 10_000)
    assert dataset.labels.tolist() == labels(10_000, 10)
    assert dataset.keys[1_234] == (str(file), "1234/1234.png")
    (item,) = dataset.entries([dataset.keys[1_234]])
    assert np.asarray(load_item(item))[0, 0, 0] == 34


def test_a_folder_gives_the_test_split_of_several_files_in_order(tmp_path) -> None:
    every = labels(10_000, 10)
    write(tmp_path / "d" / "test-00000-of-00002.parquet", every[:4_000])
    write(tmp_path / "d" / "test-00001-of-00002.parquet", every[4_000:], first=4_000)
    write(tmp_path / "d" / "train-00000-of-00001.parquet", every[::-1])
    dataset = open_dataset(f"cifar10:{tmp_path / 'd'}")
    assert dataset.labels.tolist() == every
    assert dataset.keys[4_001][1] == "1/4001.png"
    (item,) = dataset.entries([dataset.keys[4_001]])
    assert np.asarray(load_item(item))[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("kind", "column", "classes"), [("cifar100", "fine_label", 100), ("cifar100-coarse", "coarse_label", 20)]
)
def test_cifar100_takes_the_column_that_was_asked_for(kind, column, classes, tmp_path) -> None:
    file = write(tmp_path / "a.parquet", labels(10_000, classes), label=column, names=None)
    dataset = open_dataset(f"{kind}:{file}")
    assert dataset.classes == tuple(map(str, range(classes)))  # no names in it
    assert dataset.labels.tolist() == labels(10_000, classes)


@pytest.mark.parametrize("strings", [False, True], ids=["numbers", "names"])
def test_any_file_with_images_and_labels_will_do(strings, tmp_path) -> None:
    values = ["dog", "cat", "dog"] if strings else [1, 0, 1]
    kind = pa.string() if strings else pa.int8()
    file = write(tmp_path / "pets.parquet", values, image="image", names=None, kind=kind)
    dataset = open_dataset(f"parquet:{file}")
    assert (dataset.name, dataset.classes) == ("pets", ("cat", "dog") if strings else ("0", "1"))
    assert dataset.labels.tolist() == [1, 0, 1]


def test_numbers_that_nothing_names_may_have_gaps(tmp_path) -> None:
    file = write(tmp_path / "some.parquet", [2**62, 5, 700, 5], names=None)
    dataset = open_dataset(f"parquet:{file}")
    assert dataset.classes == ("5", "700", str(2**62))
    assert dataset.labels.tolist() == [2, 0, 1, 0]


def test_categories_of_pandas_are_names(tmp_path) -> None:
    file = write(tmp_path / "some.parquet", ["b", "a"], names=None, kind=pa.dictionary(pa.int8(), pa.string()))
    dataset = open_dataset(f"parquet:{file}")
    assert (dataset.classes, dataset.labels.tolist()) == (("a", "b"), [1, 0])


def test_files_of_numbers_and_of_names_are_no_split(tmp_path) -> None:
    write(tmp_path / "test-0.parquet", [0, 1], names=None)
    write(tmp_path / "test-1.parquet", ["a", "b"], names=None, kind=pa.string())
    assert "its files have different labels" in refused(f"parquet:{tmp_path}")


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_training_split_is_refused_by_its_rows(tmp_path) -> None:
    file = write(tmp_path / "train.parquet", labels(50_000, 10))
    assert f"{file}: has 50,000 rows, expected 1 to 10,000: is it another split?" in refused(f"cifar10:{file}")
    file = write(tmp_path / "short.parquet", labels(9_999, 10))
    assert f"{file}: has 9,999 rows, the test split has 10,000: is it another?" in refused(f"cifar10:{file}")


def test_a_folder_without_the_split_is_refused(tmp_path) -> None:
    write(tmp_path / "train-0.parquet", [0])
    assert "no parquet file there begins with test: name the file itself" in refused(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 10], {}, "column `label`: image 1 has the label 10, expected 0 to 9"),
        ([-1, 0], {}, "column `label`: image 0 has the label -1, expected 0 to 9"),
        ([0, 2**64 - 1], {"kind": pa.uint64()}, "image 1 has the label 18446744073709551615"),
        ([0, -1], {"names": None}, "image 1 has the label -1: a split without labels?"),
        ([3, 3], {}, "all images are of the class 'cat', expected two at least"),
        (["cat", "yeti"], {"kind": pa.string()}, "image 1 is of 'yeti', which its metadata don't name"),
        ([0, None], {}, "row 1 has no `label` (null)"),
        ([0.5, 1.0], {"kind": pa.float32()}, "column `label` holds float, expected whole numbers or names"),
        ([0, 1], {"label": "target"}, "no column label or labels or fine_label or class, only img, target"),
        ([0, 1], {"metadata": "{"}, "its metadata `huggingface` say nothing of `label`"),
        ([0, 1], {"metadata": "[" * 5_000}, "its metadata `huggingface` say nothing of `label`"),
        ([0, 1], {"metadata": "{}"}, "its metadata `huggingface` say nothing of `label`"),
        ([0, 1], {"names": ("cat", "cat")}, "give no names for `label`, each once"),
        ([0, 1], {"metadata": " " * (5 << 20)}, "have 5,242,880 bytes: not those of the hub"),
        ([], {}, "has 0 rows"),
    ],
    ids=["above", "below", "above int64", "no label", "one class", "no such name",
         "null", "floats", "no column", "no JSON", "deep JSON", "other JSON",
         "names twice", "too much JSON", "no rows"],
)  # fmt: skip
def test_labels_that_are_wrong_are_named(values, options, message, tmp_path) -> None:
    file = write(tmp_path / "a.parquet", values, **options)
    said = refused(f"parquet:{file}")
    assert str(file) in said
    assert message in said


def test_names_of_another_number_are_refused(tmp_path) -> None:
    file = write(tmp_path / "a.parquet", labels(10_000, 9), names=NAMES[:9])
    assert "column `label` has 9 classes, expected 10" in refused(f"cifar10:{file}")


def test_images_without_bytes_are_read_from_their_paths_and_are_part_of_the_identity(tmp_path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(PICTURES[number])
    rows = [{"bytes": None, "path": "1.png"}, {"bytes": None, "path": str(tmp_path / "2.png")}]
    parquet.write_table(pa.table({"image": pa.array(rows, IMAGE), "label": [0, 1]}), tmp_path / "a.parquet")
    before = open_dataset(f"parquet:{tmp_path / 'a.parquet'}")
    assert [np.asarray(load_item(item))[0, 0, 0] for item in before.entries(before.keys)] == [1, 2]
    assert open_dataset(f"parquet:{tmp_path / 'a.parquet'}").identity == before.identity
    (tmp_path / "2.png").write_bytes(PICTURES[3] + b" ")
    assert open_dataset(f"parquet:{tmp_path / 'a.parquet'}").identity != before.identity


def test_lists_of_images_are_refused_since_a_row_has_one_label(tmp_path) -> None:
    rows = [[{"bytes": PICTURES[0], "path": "a"}]] * 2
    parquet.write_table(pa.table({"images": pa.array(rows, pa.list_(IMAGE)), "label": [0, 1]}), tmp_path / "a.parquet")
    assert "column `images` holds lists of images, not images" in refused(f"parquet:{tmp_path / 'a.parquet'}")


def test_a_file_without_images_or_damaged_is_refused(tmp_path) -> None:
    parquet.write_table(pa.table({"label": [0, 1]}), tmp_path / "a.parquet")
    assert "no column of images" in refused(f"parquet:{tmp_path / 'a.parquet'}")
    file = write(tmp_path / "b.parquet", [0, 1])
    data = file.read_bytes()
    for broken in (data[: len(data) // 2], b"PAR1", b"", b"PAR1" + b"\xff" * 200 + b"PAR1"):
        file.write_bytes(broken)
        assert refused(f"parquet:{file}").startswith(str(file))
