"""Images whose pixels lie in one array: given as PNG, so that they take the way of every other image."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError
from runtime.sources.item import Entry, IsWanted, Item


class PixelImages:
    """n RGB pictures, (n, H, W, 3) uint8. Root: their file; path: `00000.png` and so on.

    PNG is lossless: decoding, resizing and normalising then are those of image files, by the same code.
    """

    def __init__(self, root: str, pixels: npt.NDArray[np.uint8]) -> None:
        self._root, self._pixels = root, pixels
        self.keys = tuple((root, f"{row:05d}.png") for row in range(len(pixels)))
        self._rows = {key: row for row, key in enumerate(self.keys)}

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, encoded when they are come to."""
        for row, (root, path) in enumerate(self.keys):
            if is_wanted(root, path):
                yield Item(root, path, _png(self._pixels[row]))

    def read(self, root: str, path: str) -> Image.Image:
        """The image of a key; raises InputError where there is none."""
        if (row := self._rows.get((root, path))) is None:
            raise InputError("is no image of this data set")
        return Image.fromarray(np.ascontiguousarray(self._pixels[row]))


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()
