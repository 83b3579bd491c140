"""STL-10, the test split: the binary files, or parquet.

Source: cs.stanford.edu/~acoates/stl10. `test_X.bin` holds 8,000 images of 96 x 96, uint8, one channel after the other
(red, green, blue), each column by column; `test_y.bin` a byte for each, 1 to 10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.evaluation.datasets.archives import Layout, lines, read_files
from runtime.evaluation.datasets.dataset import Dataset, check_labels, check_names, identity_of_content
from runtime.evaluation.datasets.labelled_parquet import Expected, is_parquet, load_parquet
from runtime.evaluation.datasets.pixels import PixelImages
from runtime.sources.names import printable

IMAGES, SIDE, CLASSES = 8_000, 96, 10
_MATLAB = "holds the Matlab version, which isn't read"
LAYOUT = Layout(
    "STL-10's binary version",
    "stl10_binary",
    "stl10_binary.tar.gz",
    {"test_X.bin": IMAGES * 3 * SIDE * SIDE, "test_y.bin": IMAGES},
    ("class_names.txt",),
    {"stl10_matlab": _MATLAB, "test.mat": _MATLAB},
)


def load(path: Path) -> Dataset:
    """Load the test split from its folder, its tar or parquet.

    Raises:
        InputError: it is not that data set, whole.
    """
    if is_parquet(path):
        return load_parquet(path, Expected("stl10", "label", CLASSES, IMAGES, "test"))
    content = read_files(path, LAYOUT)
    where = printable(str(path))
    file = f"{where}/class_names.txt"
    names = check_names(lines(content["class_names.txt"], file), CLASSES, file)
    labels = check_labels(np.frombuffer(content["test_y.bin"], np.uint8), CLASSES, f"{where}/test_y.bin", first=1)
    by_column = np.frombuffer(content["test_X.bin"], np.uint8).reshape(IMAGES, 3, SIDE, SIDE)  # n, channel, x, y
    images = PixelImages(f"{path}/test_X.bin", by_column.transpose(0, 3, 2, 1))
    return Dataset(
        "stl10", "stl10", path, names, labels, images.keys, images, identity_of_content(content["test_X.bin"])
    )
