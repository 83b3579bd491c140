"""Made pictures with clear classes: striped textures, in which some patches are flat."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

PATCH = 14
"""Side of a patch in pixels."""
CLASSES = 8
MAX_FLAT_SIDE = 3
"""Patches; a flat rectangle is 1 to this many patches wide and high."""


@dataclass(frozen=True)
class Picture:
    """One made picture."""

    name: str
    """Its path in the folder of pictures: `CLASS/NUMBER.png`."""
    pixels: npt.NDArray[np.uint8]
    """(side, side, 3). The centre of S x S pixels, which the runtime crops without resizing, is a grid of patches."""
    flat: npt.NDArray[np.bool_]
    """(P,): the patches of that grid, row by row, that have one colour only."""


def side_of(image_size: int) -> int:
    """Side of a picture that the preprocessing for S x S pixels crops and doesn't resize."""
    return round(image_size * 256 / 224)


def make(seed: int, per_class: int, image_size: int = 224) -> list[Picture]:
    """Make pictures of `CLASSES` classes from a seed, for a model of S x S pixels.

    A class is a hue and the direction and width of stripes. Position, width, brightness and hue of the stripes vary a
    little between the pictures of a class; place, size and colour of the flat rectangles are random in every picture.
    """
    rng = np.random.default_rng([seed, 1])
    first_hue, first_angle = rng.random(2)
    pictures = []
    for kind in range(CLASSES):
        hue = first_hue + kind / CLASSES
        angle = np.pi * (first_angle + kind * 3 / CLASSES)
        width = 9.0 + 5.0 * (kind % 3)
        names = (f"{kind}/{number:04d}.png" for number in range(per_class))
        pictures += [_picture(name, hue, angle, width, image_size, rng) for name in names]
    return pictures


def _picture(name: str, hue: float, angle: float, width: float, image_size: int, rng: np.random.Generator) -> Picture:
    side = side_of(image_size)
    y, x = np.mgrid[:side, :side]  # stripes are as wide at every size: wider ones would leave patches almost flat
    along = x * np.cos(angle) + y * np.sin(angle)
    wave = np.sin(2 * np.pi * (along / (width * rng.uniform(0.9, 1.1)) + rng.random()))  # (side, side), -1 to 1
    hue += rng.uniform(-0.03, 0.03)
    light, dark = (
        np.array(colorsys.hsv_to_rgb((hue + shift) % 1, 0.7, value)) for shift, value in ((0, 0.95), (0.1, 0.25))
    )
    share = (wave[:, :, None] + 1) / 2
    picture = (light * share + dark * (1 - share)) * rng.uniform(0.8, 1.0)
    picture += rng.normal(0, 0.03, picture.shape)
    grid, start = image_size // PATCH, (side - image_size) // 2
    flat = np.zeros((grid, grid), dtype=bool)
    for _ in range(rng.integers(1, 4)):
        rows, columns = rng.integers(1, MAX_FLAT_SIDE + 1, 2)
        top, left = rng.integers(0, grid - rows + 1), rng.integers(0, grid - columns + 1)
        area = slice(top, top + rows), slice(left, left + columns)
        colour = rng.random(3)
        flat[area] = True
        picture[tuple(slice(start + PATCH * one.start, start + PATCH * one.stop) for one in area)] = colour
    return Picture(name, np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), flat.reshape(-1))


def write(pictures: list[Picture], folder: Path) -> None:
    """Write the pictures as PNG files into `folder`, a folder per class."""
    for picture in pictures:
        path = folder / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixels).save(path)


def write_noise(folder: Path, count: int, side: int) -> Path:
    """Write `count` seeded pictures of smooth noise in every colour to `folder`, which is made; returns it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder
