"""Images made small, each within its share of the file's budget."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageOps

from runtime.contract.errors import InputError
from runtime.contract.keys import Key
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Preprocessing
from runtime.images.decode import ReadImage, quiet_pillow
from runtime.images.preprocess import fitted

BUDGET = 9_000_000
"""Bytes of all thumbnails of a file, which base64 makes a third more; with the rest a report stays below 15 MB."""

_LEVELS = ((1.0, 80), (1.0, 65), (1.0, 45), (0.75, 45), (0.5, 45), (0.5, 20), (0.34, 10))
"""Scale and WebP quality, tried in turn until the share is kept; noise alone gets to the last ones."""
_THREADS = 4


@dataclass(frozen=True)
class Wanted:
    """A thumbnail to be made."""

    key: Key
    side: int
    """Pixels: the side of the square cut from the image's centre, or the longer side of the model's view."""
    model_view: Preprocessing | None = None
    """How the model gets the image, to show what it sees; None for the square."""


def make_thumbnails(wanted: Sequence[Wanted], read: ReadImage, budget: int = BUDGET) -> list[bytes | None]:
    """WebP of each image, by a few threads; None if it can't be read. The same images give the same bytes."""
    pixels = sum(one.side**2 for one in wanted)

    def make(one: Wanted) -> bytes | None:
        try:
            image = read(*one.key)
            if one.model_view is not None:
                image = fitted(image, one.model_view)
        except InputError:
            return None
        return _encode(image, one, budget * one.side**2 // pixels)

    with quiet_pillow(), ThreadPoolExecutor(min(_THREADS, usable_cores()), "itae-thumbnail") as pool:
        return list(pool.map(make, wanted))


def _encode(image: Image.Image, one: Wanted, most: int) -> bytes:
    data = b""
    for scale, quality in _LEVELS:
        side = max(1, round(one.side * scale))
        if one.model_view is not None:
            small = image.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
        else:
            # No larger than it is: the browser enlarges a picture of 32 pixels as well.
            small = ImageOps.fit(image, (min(side, max(32, *image.size)),) * 2, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=quality, method=4)
        data = file.getvalue()
        if len(data) <= most:
            break
    return data
