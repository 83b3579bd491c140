"""The only place that turns a decoded picture into a model's input. Source: exporter/ITAE.md 5.

The result with `fit` `crop` equals transformers' Pillow-based processor of DINOv2 (`BitImageProcessorPil`), pixel by
pixel.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError
from runtime.contract.manifest import Preprocessing
from runtime.images.decode import drafted, to_rgb

Float32 = npt.NDArray[np.float32]
Resampling = Image.Resampling

FILTERS = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}
"""Pillow's filters by their names in a manifest."""
MAX_SIDE = 1 << 21
"""Pixels; a picture whose longer side would become longer is refused: at 224, a strip beyond 8,192 : 1."""
_CHUNK_PIXELS = 1 << 24
"""Number of pixels of a resized picture that are held at a time before the crop: 64 MiB in Pillow."""


def preprocess(image: Image.Image, how: Preprocessing) -> Float32 | npt.NDArray[np.uint8]:
    """One picture as a model takes it, without the batch: (3, H, W) float32, normalised, or (H, W, 3) uint8.

    Raises:
        InputError: the picture can't be made RGB, or is too narrow a strip to be cropped.
    """
    return as_input(np.asarray(fitted(image if drafted(image) else to_rgb(image), how)), how)


def as_input(pixels: npt.NDArray[np.uint8], how: Preprocessing) -> Float32 | npt.NDArray[np.uint8]:
    """The pixels of one picture that has the model's size, (H, W, 3) uint8, as `preprocess` returns them."""
    if how.dtype == "uint8":
        return pixels if how.layout == "NHWC" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    values = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel, table in enumerate(_normalised(how.scale, how.mean, how.std)):
        np.take(table, pixels[..., channel], out=values[channel], mode="clip")  # "raise" would copy `out` first
    return values if how.layout == "NCHW" else np.ascontiguousarray(values.transpose(1, 2, 0))


@functools.lru_cache(maxsize=8)
def _normalised(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> Float32:
    """The normalised form of each value of each channel, (3, 256) float32: a look-up takes a quarter of the time."""
    values = (np.arange(256, dtype=np.uint8) * np.float64(scale)).astype(np.float32)
    table: Float32 = (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table


def fitted(image: Image.Image, how: Preprocessing) -> Image.Image:
    """An RGB picture at the size of a model's input (`how.crop`), as `how.fit` says; raises as `resize_and_crop`."""
    if how.resize_cover is not None:  # fit is crop
        return resize_and_crop(image, how.resize_cover, how.crop, how.resize_filter)
    by = FILTERS[how.resize_filter]
    if how.fit == "squash":
        return _resized_part(image, how.crop, (0, 0), how.crop, by)
    size = contained_size(_full_size(image), how.crop)
    whole = Image.new("RGB", how.crop[::-1], pad_color(how))
    top, left = (how.crop[0] - size[0]) // 2, (how.crop[1] - size[1]) // 2
    whole.paste(_resized_part(image, size, (0, 0), size, by), (left, top))
    return whole


def resized_to(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """The (H, W) that `fitted` resizes a picture of `size` (H, W) to, before it is cropped or surrounded."""
    if how.resize_cover is not None:
        return resized_size(size, how.resize_cover)
    return how.crop if how.fit == "squash" else contained_size(size, how.crop)


def pad_color(how: Preprocessing) -> tuple[int, int, int]:
    """R, G, B of what surrounds a picture with `fit` `pad`: the mean, which normalisation brings to about 0."""
    red, green, blue = (math.floor(mean / how.scale + 0.5) for mean in how.mean)
    return red, green, blue


def contained_size(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest (H, W) of the aspect of `size` that `box` holds, the shorter side rounded down, at least 1."""
    (height, width), (box_height, box_width) = size, box
    if box_height * width <= box_width * height:
        return box_height, max(1, box_height * width // height)
    return max(1, box_width * height // width), box_width


def resized_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) of the aspect of `size` that covers `cover`, the longer side rounded down."""
    (height, width), (cover_height, cover_width) = size, cover
    if cover_height * width >= cover_width * height:
        return cover_height, cover_height * width // height
    return cover_width * height // width, cover_width


def resize_and_crop(
    image: Image.Image, cover: tuple[int, int], crop: tuple[int, int], resize_filter: str = "bicubic"
) -> Image.Image:
    """Resize an RGB picture to cover `cover` (H, W), antialiased, by a filter of `FILTERS`; cut its centre of `crop`.

    The result equals `resize` and `crop` of Pillow 13, bit for bit, with every version of Pillow, and the part that is
    cropped away is never held in full: rows and columns are resized separately, and rounded to 8 bits in between.
    Pillow 13 resizes the columns first if the height shrinks by more than twice as many pixels as the width; older
    versions never do.

    Raises:
        InputError: the resized picture would have a side of more than `MAX_SIDE`.
    """
    height, width = resized_size(_full_size(image), cover)
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"has {image.width} x {image.height} pixels, "
            f"too narrow a strip to be resized to cover {cover[1]} x {cover[0]}"
        )
    return _resized_part(
        image, (height, width), ((height - crop[0]) // 2, (width - crop[1]) // 2), crop, FILTERS[resize_filter]
    )


def _resized_part(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], part: tuple[int, int], by: Resampling
) -> Image.Image:
    """Resize to `size` (H, W) and keep a `part` (H, W) of it, whose first row and column are `corner`."""
    (height, width), (top, left) = size, corner
    if (small := drafted(image)) is not None:
        whole = image.resize((width, height), by, small.box)
        return whole.crop((left, top, left + part[1], top + part[0]))
    x = _exact_box(image.width, width, left, part[1])
    y = _exact_box(image.height, height, top, part[0])
    if _columns_first(image, size):
        columns = _needed(image.width, width, left, part[1])
        return _resize_rows(_resize_columns(image, height, top, part[0], by, columns), width, left, part[1], by)
    if x is not None and y is not None and not _columns_first(image, part):
        return image.resize(part[::-1], by, (x[0], y[0], x[1], y[1]))
    rows = _needed(image.height, height, top, part[0])
    return _resize_columns(_resize_rows(image, width, left, part[1], by, rows), height, top, part[0], by)


def _full_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of a picture, before it was scaled while it was decoded."""
    small = drafted(image)
    return (image.height, image.width) if small is None else small.size


def _columns_first(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes the columns before the rows, to `size` (H, W) of the result, also of a box's."""
    shrinks = image.height - size[0]
    return shrinks > 0 and shrinks > 2 * (image.width - size[1])


def _exact_box(size: int, resized: int, first: int, count: int) -> tuple[float, float] | None:
    """The original interval that `count` resized pixels from `first` on stand for, if it loses nothing in Pillow.

    Pillow takes a box in single precision, and the filter's centres follow from it: they are those of the whole picture
    where no number is rounded, as with 256 pixels of any smaller picture's shorter side. Returns None otherwise.
    """
    if resized // math.gcd(size, resized) & (resized // math.gcd(size, resized) - 1):
        return None  # not a power of two: the scale itself is rounded
    start, stop = first * size / resized, (first + count) * size / resized
    is_exact = all(float(np.float32(number)) == number for number in (start, stop, stop - start))
    return (start, stop) if is_exact else None


def _needed(size: int, resized: int, first: int, count: int) -> range:
    """The original rows or columns that `count` resized ones from `first` on are made of, or a few more."""
    scale = size / resized
    support = 2 * max(1.0, scale)  # the radius of the wider filter, bicubic
    start, stop = (first + 0.5) * scale - support, (first + count - 0.5) * scale + support
    return range(max(0, int(start) - 2), min(size, int(stop) + 3))


def _resize_rows(
    image: Image.Image, width: int, left: int, crop: int, by: Resampling, rows: range | None = None
) -> Image.Image:
    """Resize each row (or only `rows`) to `width` and keep `crop` pixels from `left` on, a few rows at a time."""
    rows = range(image.height) if rows is None else rows
    result = Image.new("RGB", (crop, image.height))
    step = max(1, _CHUNK_PIXELS // max(width, image.width))
    for y in rows[::step]:
        chunk = image.crop((0, y, image.width, min(y + step, rows.stop)))
        chunk = chunk.resize((width, chunk.height), by)
        result.paste(chunk.crop((left, 0, left + crop, chunk.height)), (0, y))
    return result


def _resize_columns(
    image: Image.Image, height: int, top: int, crop: int, by: Resampling, columns: range | None = None
) -> Image.Image:
    """Resize each column (or only `columns`) to `height` and keep `crop` pixels from `top` on, a few at a time."""
    columns = range(image.width) if columns is None else columns
    result = Image.new("RGB", (image.width, crop))
    step = max(1, _CHUNK_PIXELS // max(height, image.height))
    for x in columns[::step]:
        chunk = image.crop((x, 0, min(x + step, columns.stop), image.height))
        chunk = chunk.resize((chunk.width, height), by)
        result.paste(chunk.crop((0, top, chunk.width, top + crop)), (x, 0))
    return result
