"""Pictures that choose the scales of int8 models in tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_calibration_pictures(folder: Path, count: int) -> Path:
    """Write `count` pictures of smooth noise, 64 pixels square, to `folder`, which is made; returns it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder
