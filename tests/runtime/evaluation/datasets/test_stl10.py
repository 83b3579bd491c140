"""STL-10's binary files: column by column, labels from 1 on."""

from pathlib import Path

import numpy as np
import pytest

from runtime.contract.errors import InputError
from runtime.evaluation.datasets import open_dataset
from runtime.sources import load_item

IMAGE = 3 * 96 * 96
NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@pytest.fixture
def folder(tmp_path) -> Path:
    """`stl10_binary`, its pixels all 0 but for images 0 and 7,999; the rest of the file is a hole."""
    made = tmp_path / "stl10_binary"
    made.mkdir()
    rng = np.random.default_rng(0)
    with (made / "test_X.bin").open("wb") as file:
        file.write(rng.integers(0, 256, IMAGE, np.uint8).tobytes())
        file.seek(7_999 * IMAGE)
        file.write(rng.integers(0, 256, IMAGE, np.uint8).tobytes())
    (made / "test_y.bin").write_bytes((np.arange(8_000, dtype=np.int64) % 10 + 1).astype(np.uint8).tobytes())
    (made / "class_names.txt").write_text("\n".join(NAMES))
    return made


def test_pixels_go_down_the_columns_and_labels_begin_at_1(folder) -> None:
    dataset = open_dataset(f"stl10:{folder}")
    assert (len(dataset), dataset.classes) == (8_000, NAMES)
    assert dataset.labels[:11].tolist() == [*range(10), 0]
    data = (folder / "test_X.bin").read_bytes()
    for row in (0, 7_999):
        (item,) = dataset.entries([dataset.keys[row]])
        picture = np.asarray(load_item(item))
        assert picture.shape == (96, 96, 3)
        for channel, x, y in [(0, 0, 1), (0, 1, 0), (1, 5, 90), (2, 95, 95)]:
            assert picture[y, x, channel] == data[row * IMAGE + channel * 96 * 96 + x * 96 + y]


def test_the_folder_above_will_do(folder) -> None:
    assert open_dataset(f"stl10:{folder.parent}").keys[3][1] == "00003.png"


@pytest.mark.parametrize("label", [0, 11])
def test_a_label_that_is_not_1_to_10_is_refused(label, folder) -> None:
    data = bytearray((folder / "test_y.bin").read_bytes())
    data[5] = label
    (folder / "test_y.bin").write_bytes(data)
    with pytest.raises(InputError, match=rf"test_y\.bin: image 5 has the label {label}, expected 1 to 10"):
        open_dataset(f"stl10:{folder}")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_X.bin", 5_000 * IMAGE, r"has 138,240,000 bytes, expected 221,184,000: it is cut short"),
        ("test_X.bin", 100_000 * IMAGE, r"has 2,764,800,000 bytes, expected 221,184,000: it is another file"),
        ("test_y.bin", 5_000, r"has 5,000 bytes, expected 8,000"),
    ],
    ids=["the training split", "the unlabelled split", "labels of the training split"],
)
def test_another_split_is_told_by_its_size_before_it_is_read(name, size, message, folder) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        open_dataset(f"stl10:{folder}")


def test_the_matlab_version_is_refused(tmp_path) -> None:
    (tmp_path / "test.mat").write_bytes(b"MATLAB")
    with pytest.raises(InputError, match=r"holds the Matlab version, which isn't read; give stl10_binary.tar.gz"):
        open_dataset(f"stl10:{tmp_path}")
