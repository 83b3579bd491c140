"""Decoding of pictures of any mode and format in `FORMATS` to RGB."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from runtime.contract.errors import InputError, one_line
from runtime.images.formats import FORMATS, HEAD, format_of, other_format

MAX_PIXELS = 178_956_970
"""Default limit, as Pillow's; larger pictures are refused before they are decoded. Such a picture takes 680 MiB."""

ReadImage = Callable[[str, str], Image.Image]
"""A function that decodes the image of a root and a path; it raises InputError."""
_OF_PILLOW = tuple(name for name in FORMATS if name != "HEIC")
"""Those that Pillow itself reads; HEIC needs pillow-heif."""
_WITH_ALPHA = frozenset({"LA", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each value of EXIF's orientation tag."""


def load_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture (its first frame) as 8-bit RGB, upright by its EXIF orientation.

    Raises:
        InputError: the picture is missing, empty, truncated, too large, no regular file, or of no format in `FORMATS`.
    """
    try:
        return decode_file(path, max_pixels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_file(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture like `load_image`, with an error that doesn't name the file."""
    try:
        # Not Pillow by path: it maps some files into memory, and a mapped file that is cut short kills the process.
        with open(path, "rb", opener=open_without_waiting) as file:  # Path.open takes no opener
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is a folder or a device, not a file")
            return _decode(file, status.st_size, max_pixels)
    except FileNotFoundError as error:
        raise InputError("does not exist, or is a link to what does not") from error
    except IsADirectoryError as error:
        raise InputError("is a folder or a device, not a file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't be decoded ({_reason(error)})") from error


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the content of a file like `load_image`; the error names no file."""
    return _decode(io.BytesIO(data), len(data), max_pixels)


def max_bytes(max_pixels: int) -> int:
    """Largest size of a picture's file in bytes: that of `max_pixels` pixels in memory, at least 64 MiB."""
    return max(4 * max_pixels, 64 << 20)


def _decode(file: BinaryIO, size: int, max_pixels: int) -> Image.Image:
    if size == 0:
        raise InputError("is empty (0 bytes)")
    if size > max_bytes(max_pixels):
        raise InputError(f"has {size:,} bytes, more than {max_bytes(max_pixels):,}")
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses more than twice as many
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2)
    try:
        return _first_frame(file, max_pixels)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # on opening: our own check comes too late
        raise InputError(f"has more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError(_what_else(file)) from error
    except Exception as error:  # a decoder fed a hostile file raises anything: KeyError, struct.error, MemoryError
        raise InputError(f"can't be decoded ({_reason(error)})") from error


def _first_frame(file: BinaryIO, max_pixels: int) -> Image.Image:
    """The picture; raises InputError if it is too large, and any error of Pillow."""
    is_heic = format_of(file.read(HEAD)) == "HEIC"
    file.seek(0)
    if is_heic:
        _add_heif_to_pillow()
    with Image.open(file, formats=("HEIF",) if is_heic else _OF_PILLOW) as image:
        if (pixels := image.width * image.height) > max_pixels:
            raise InputError(f"has {pixels:,} pixels ({image.width} x {image.height}), more than {max_pixels:,}")
        return to_rgb(image)


@functools.cache
def _add_heif_to_pillow() -> None:
    """Make Pillow read HEIC; raises InputError without pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError("is HEIC, which needs pillow-heif: pip install 'itae[heif]'") from error
    register_heif_opener(thumbnails=False)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB, upright by its EXIF orientation, transparent parts blended over white.

    A picture that is all of this already is returned itself. 16-bit grey is divided by 257 and rounded; Pillow's own
    conversion would clip it at 255.

    Raises:
        InputError: the picture's values have no known range (32-bit grey), or Pillow can't convert its mode.
    """
    image.load()  # TIFF turns itself upright here, and drops the tag
    turn = _TRANSPOSE.get(_orientation(image))
    if image.mode == "RGB" and turn is None and type(image) is Image.Image and not image.info:
        return image  # this function returned it before
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"has 32-bit grey values (Pillow's mode {image.mode}), whose range is not known")
    try:
        if image.mode in _WITH_ALPHA or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        rgb = image.convert("RGB")  # a copy, also of RGB
    except ValueError as error:
        raise InputError(f"can't be converted from {image.mode} to RGB") from error
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info.clear()  # EXIF among it: the next reader must not turn the picture again
    return upright


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF: the picture is shown as it lies, as viewers do
        return 1
    return value if isinstance(value, int) else 1


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text if type(error) is OSError else f"{type(error).__name__}: {text}"


def open_without_waiting(path: str, flags: int) -> int:
    """Open without waiting, since opening a named pipe would never return."""
    return os.open(path, flags | os.O_NONBLOCK)


def _what_else(file: BinaryIO) -> str:
    """The error message for a file that no decoder takes."""
    file.seek(0)
    start = file.read(HEAD)
    what = ", ".join(FORMATS)
    if other := other_format(start):
        return f"is {other}, which isn't read, only {what}"
    if (kind := format_of(start)) in ("AVIF", "HEIC"):
        return f"is {kind}, but damaged, or of a kind that the installed library doesn't read"
    if start.count(0) == len(start):
        return "holds only zeros at its beginning: damaged"
    return f"is damaged, or none of {what}"


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about odd files off stderr: the caller reports and counts unreadable files itself."""
    logger = logging.getLogger("PIL")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
