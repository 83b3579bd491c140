"""Write 200 real images, handwritten digits that ship inside scikit-learn: `make_digits.py FOLDER`.

They become FOLDER/<digit>/<number>.png, 20 of each digit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PER_DIGIT = 20
SIDE = 64
"""Pixels; the originals have 8, too few to look at."""


def main(folder: Path) -> None:
    """Write the images into `folder`, over what an earlier run left there."""
    images, digits = load_digits(return_X_y=True)  # (n, 64) from 0 to 16, (n,)
    for digit in range(10):
        target = folder / str(digit)
        target.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(digits == digit)[:PER_DIGIT]:
            pixels = np.round(images[index].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            enlarged = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            enlarged.save(target / f"{index:04d}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_digits.py FOLDER")
    main(Path(sys.argv[1]))
