"""CIFAR-10 and CIFAR-100, the test split: the binary version, or parquet as the Hugging Face hub has it.

Source: cs.toronto.edu/~kriz/cifar.html, "Binary version". A record is one byte of label (of CIFAR-100 two: coarse,
fine) and 3,072 of pixels: 1,024 red, 1,024 green, 1,024 blue, each row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.evaluation.datasets.archives import Layout, lines, read_files
from runtime.evaluation.datasets.dataset import Dataset, check_labels, check_names, identity_of_content
from runtime.evaluation.datasets.labelled_parquet import Expected, is_parquet, load_parquet
from runtime.evaluation.datasets.pixels import PixelImages
from runtime.sources.names import printable

IMAGES = 10_000
"""Number of images in either test split."""
SIDE = 32
_PICKLED = "is the Python version, a pickle, which runs code when it is read: not opened"
_MATLAB = "is the Matlab version, which isn't read"


@dataclass(frozen=True)
class Cifar:
    """One of the data sets, by one of its labels."""

    kind: str
    layout: Layout
    file: str
    names: str
    """The file of the class names."""
    classes: int
    label_bytes: int
    """Label bytes of a record."""
    label_at: int
    """The label byte to use, counted from 0."""
    column: str
    """The label's column in parquet."""


def _layout(
    title: str, folder: str, archive: str, file: str, record: int, names: str, refused: tuple[str, ...]
) -> Layout:
    other = {name: f"{name} {_MATLAB if name.endswith('.mat') else _PICKLED}" for name in refused}
    return Layout(title, folder, archive, {file: IMAGES * record}, (names,), other)


_PIXELS = 3 * SIDE * SIDE
_100 = ("CIFAR-100's binary version", "cifar-100-binary", "cifar-100-binary.tar.gz", "test.bin", _PIXELS + 2)
_REFUSED_100 = ("cifar-100-python", "test", "cifar-100-matlab", "test.mat")
CIFAR10 = Cifar(
    "cifar10",
    _layout(
        "CIFAR-10's binary version",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "test_batch.bin",
        _PIXELS + 1,
        "batches.meta.txt",
        ("cifar-10-batches-py", "test_batch", "cifar-10-batches-mat", "test_batch.mat"),
    ),
    "test_batch.bin",
    "batches.meta.txt",
    classes=10,
    label_bytes=1,
    label_at=0,
    column="label",
)
CIFAR100 = Cifar(
    "cifar100",
    _layout(*_100, "fine_label_names.txt", _REFUSED_100),
    "test.bin",
    "fine_label_names.txt",
    classes=100,
    label_bytes=2,
    label_at=1,
    column="fine_label",
)
CIFAR100_COARSE = Cifar(
    "cifar100-coarse",
    _layout(*_100, "coarse_label_names.txt", _REFUSED_100),
    "test.bin",
    "coarse_label_names.txt",
    classes=20,
    label_bytes=2,
    label_at=0,
    column="coarse_label",
)


def load(which: Cifar, path: Path) -> Dataset:
    """Load the test split from its folder, its tar or parquet.

    Raises:
        InputError: it is not that data set, whole.
    """
    if is_parquet(path):
        return load_parquet(path, Expected(which.kind, which.column, which.classes, IMAGES, "test"))
    content = read_files(path, which.layout)
    where = printable(str(path))
    names = check_names(lines(content[which.names], f"{where}/{which.names}"), which.classes, f"{where}/{which.names}")
    records = np.frombuffer(content[which.file], np.uint8).reshape(IMAGES, -1)
    labels = check_labels(records[:, which.label_at], which.classes, f"{where}/{which.file}")
    pixels = records[:, which.label_bytes :].reshape(IMAGES, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    images = PixelImages(f"{path}/{which.file}", pixels)
    identity = identity_of_content(content[which.file])
    return Dataset(which.kind, which.kind, path, names, labels, images.keys, images, identity)
