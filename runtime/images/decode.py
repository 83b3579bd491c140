"""Decoding of pictures of any mode and format in `FORMATS` to RGB."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.JpegImagePlugin import JpegImageFile

from runtime.contract.errors import InputError, one_line
from runtime.images.formats import FORMATS, HEAD, format_of, other_format
from runtime.images.mend import with_end_marker, without_metadata
from runtime.images.tiff import Bands, has_unnamed_bands, read_bands

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
_LYING, _FROM_THE_RIGHT, _FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""Values of that tag with which height and width change places; the last column comes first; the last row does."""


class Note(enum.StrEnum):
    """A remark on a picture that was decoded, for its user."""

    NO_END_MARKER = "jpeg_without_end_marker"
    THREE_BANDS = "three_bands_as_rgb"
    FEW_BITS = "few_of_16_bits"
    WIDENED = "widened_16_bits"

    @property
    def text(self) -> str:
        """A name for such pictures."""
        return _NOTES[self]


_NOTES = {
    Note.NO_END_MARKER: "JPEGs without their end marker, otherwise whole",
    Note.THREE_BANDS: "TIFFs of three bands that call themselves grey, taken for red, green, blue",
    Note.FEW_BITS: "images of 16 bits that use 14 or less and come out dark; --sixteen-bit auto widens them",
    Note.WIDENED: "images of 16 bits that use 14 or less, widened",
}
OnNote = Callable[[Note], None]


@dataclass(frozen=True)
class Drafted:
    """The geometry of a JPEG that was scaled while it was decoded."""

    size: tuple[int, int]
    """(H, W) of the upright picture in full."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of it in the pixels of the scaled picture."""


_DRAFTED = "itae-drafted"


def drafted(image: Image.Image) -> Drafted | None:
    """Return the geometry of a picture that was scaled while it was decoded; None if it was not."""
    found = image.info.get(_DRAFTED)
    return found if isinstance(found, Drafted) else None


def no_note(note: Note) -> None:
    """Take a note and forget it."""


Wanted = Callable[[tuple[int, int]], tuple[int, int]]
"""A function from the (H, W) of an upright picture to the (H, W) that it will be resized to."""
DRAFT_MARGIN = 2
"""A JPEG that is scaled while it is decoded stays this many times as large as what it will be resized to."""
_BLOCK_BYTES, _KEPT_BLOCKS = 1 << 20, 64
_BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class _How:
    """How to decode: the arguments of `decode_image`."""

    max_pixels: int
    sixteen_bit: str
    on_note: OnNote
    draft: Wanted | None = None


def load_image(
    path: Path, max_pixels: int = MAX_PIXELS, sixteen_bit: str = "full", on_note: OnNote = no_note
) -> Image.Image:
    """Decode a picture (its first frame) as 8-bit RGB, upright by its EXIF orientation; arguments as `decode_image`.

    Raises:
        InputError: the picture is missing, empty, truncated, too large, no regular file, or of no format in `FORMATS`.
    """
    try:
        return decode_file(path, max_pixels, sixteen_bit, on_note)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_file(
    path: Path,
    max_pixels: int = MAX_PIXELS,
    sixteen_bit: str = "full",
    on_note: OnNote = no_note,
    draft: Wanted | None = None,
) -> Image.Image:
    """Decode a picture like `decode_image`, with an error that doesn't name the file."""
    try:
        # Not Pillow by path: it maps some files into memory, and a mapped file that is cut short kills the process.
        with open(path, "rb", opener=open_without_waiting) as file:  # Path.open takes no opener
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is a folder or a device, not a file")
            return _decode(file, status.st_size, _How(max_pixels, sixteen_bit, on_note, draft))
    except FileNotFoundError as error:
        raise InputError("does not exist, or is a link to what does not") from error
    except IsADirectoryError as error:
        raise InputError("is a folder or a device, not a file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't be decoded ({_reason(error)})") from error


def decode_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    sixteen_bit: str = "full",
    on_note: OnNote = no_note,
    draft: Wanted | None = None,
) -> Image.Image:
    """Decode the content of a file like `load_image`; the error names no file.

    Args:
        data: the file's content.
        max_pixels: a larger picture is refused.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.
        on_note: called, in the caller's thread, with what a user should know of the picture.
        draft: lets a JPEG come out smaller, at a half, a quarter or an eighth of its size, where it is at least
            `DRAFT_MARGIN` times as large as `draft` says that it will be resized to.
    """
    return _decode(io.BytesIO(data), len(data), _How(max_pixels, sixteen_bit, on_note, draft))


@functools.cache
def keep_freed_memory() -> None:
    """Make Pillow keep the memory of pictures that are no longer needed, 64 MiB at most, for those that follow.

    By default it returns each picture's memory to the system, and fetches the next one's page by page: up to a third
    of the time to decode and resize a picture. A user's own PILLOW_BLOCKS_MAX is left as it is.
    """
    if not _imaging.get_blocks_max():
        _imaging.set_block_size(_BLOCK_BYTES)
        _imaging.set_blocks_max(_KEPT_BLOCKS)


def max_bytes(max_pixels: int) -> int:
    """Largest size of a picture's file in bytes: that of `max_pixels` pixels in memory, at least 64 MiB."""
    return max(4 * max_pixels, 64 << 20)


def _decode(file: BinaryIO, size: int, how: _How) -> Image.Image:
    max_pixels = how.max_pixels
    if size == 0:
        raise InputError("is empty (0 bytes)")
    if size > max_bytes(max_pixels):
        raise InputError(f"has {size:,} bytes, more than {max_bytes(max_pixels):,}")
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses more than twice as many
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2)
    try:
        return _first_frame(file, how)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # on opening: our own check comes too late
        raise InputError(f"has more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError(_what_else(file)) from error
    except Exception as error:  # a decoder fed a hostile file raises anything: KeyError, struct.error, MemoryError
        raise InputError(f"can't be decoded ({_reason(error)})") from error


def _first_frame(file: BinaryIO, how: _How) -> Image.Image:
    """The picture; raises InputError if it is too large, and any error of Pillow."""
    kind = format_of(file.read(HEAD))
    try:
        return _by_pillow(file, kind, how)
    except (InputError, Image.DecompressionBombError):
        raise
    except Exception as error:
        failure = error.with_traceback(None)  # whose frames hold the picture's memory
    if (picture := _mended(file, kind, how, failure)) is None:
        raise failure
    return picture


def _by_pillow(file: BinaryIO, kind: str | None, how: _How) -> Image.Image:
    file.seek(0)
    is_heic = kind == "HEIC"
    if is_heic:
        _add_heif_to_pillow()
    with Image.open(file, formats=("HEIF",) if is_heic else _OF_PILLOW) as image:
        if (pixels := image.width * image.height) > how.max_pixels:
            raise InputError(f"has {pixels:,} pixels ({image.width} x {image.height}), more than {how.max_pixels:,}")
        if has_unnamed_bands(image) or (kind == "TIFF" and image.mode in ("I", "F")):  # the latter are refused there
            return _of_bands(read_bands(file, how.max_pixels, max_bytes(how.max_pixels)), how)
        form = _raw_form(image)
        if form == "I;12":  # a TIFF that says so itself
            return to_rgb(Image.fromarray(_narrowed(np.asarray(image), (1 << 12) - 1)))
        if type(image) is JpegImageFile:
            return _own_to_rgb(image, how) if how.draft is None else _draft(image, how.draft, how)
        if ";16" not in form or image.mode not in ("RGB", "RGBA"):
            return _to_rgb(image, how)
        image.load()
        if int(np.asarray(image)[..., :3].max()) >= 1 << 14 - 8:  # these are the high bytes
            return _to_rgb(image, how)  # it uses more than 14 bits
        if how.sixteen_bit == "full":
            how.on_note(Note.FEW_BITS)
            return _to_rgb(image, how)
        if kind == "TIFF":
            return _of_bands(read_bands(file, how.max_pixels, max_bytes(how.max_pixels)), how)
        return _of_bands(_bands_of_png(file, image, form), how)


def _raw_form(image: Image.Image) -> str:
    """Pillow's name for how an opened picture's pixels lie in its file, as `RGB;16B`; empty if not known."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _bands_of_png(file: BinaryIO, image: Image.Image, form: str) -> Bands:
    """All 16 bits of a colour PNG, of which `image` has the high bytes: a second look reads the low ones."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as low:
        grey = form.startswith("LA")  # grey and alpha, 2 bytes each, which lie as RGBA of one byte do
        low.tile = [low.tile[0]._replace(args="RGBA" if grey else form.replace("16B", "16L"))]
        values = np.asarray(low).astype(np.uint16)
    if grey:
        high_low = values[..., ::2] << 8 | values[..., 1::2]
        return Bands(high_low[..., :1], high_low[..., 1], False, _orientation(image), False)
    values |= np.asarray(image).astype(np.uint16) << 8
    return Bands(values[..., :3], values[..., 3] if values.shape[2] == 4 else None, False, _orientation(image), False)


def _mended(file: BinaryIO, kind: str | None, how: _How, error: Exception) -> Image.Image | None:
    """The picture of a file that Pillow refuses though its pixels are whole; None if they are not, or not known to be.

    Raises:
        InputError: the file is a sound TIFF of bands that are no picture.
        Exception: any error of Pillow for a PNG without its metadata.
    """
    if kind == "PNG" and (bare := without_metadata(file)) is not None:
        return _by_pillow(bare, kind, how)
    if kind == "TIFF":
        try:
            bands = read_bands(file, how.max_pixels, max_bytes(how.max_pixels))
        except Exception as reason:
            if isinstance(reason, InputError) and isinstance(error, UnidentifiedImageError):
                raise  # it says what Pillow doesn't take
            return None  # damaged: the first error stands
        return _of_bands(bands, how)
    if kind == "JPEG" and (pair := with_end_marker(file)) is not None:
        one, other = pair
        # At an eighth of the size first: a file that lacks many rows is seen at once, in little memory.
        if all(_digest(one, whole=whole) == _digest(other, whole=whole) for whole in (False, True)):
            how.on_note(Note.NO_END_MARKER)
            return _by_pillow(one, kind, how)
    return None


def _digest(file: BinaryIO, *, whole: bool) -> bytes:
    """A hash of a JPEG's pixels, a few rows at a time: two large pictures together would take too much memory."""
    digest = hashlib.sha256()
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as image:
        if not whole:
            image.draft(None, (1, 1))
        image.load()
        for top in range(0, image.height, 64):
            digest.update(image.crop((0, top, image.width, min(top + 64, image.height))).tobytes())
    return digest.digest()


def _of_bands(bands: Bands, how: _How) -> Image.Image:
    """The picture of a TIFF's bands, or of all bits of a PNG."""
    if bands.is_guess:
        how.on_note(Note.THREE_BANDS)
    values, alpha = bands.values, bands.alpha
    if values.dtype == np.uint16:
        largest = _largest(values, how)
        values = _narrowed(values, largest)
        alpha = None if alpha is None else _narrowed(np.minimum(alpha, largest), largest)
    if values.shape[2] == 1 and alpha is not None:
        values = values.repeat(3, axis=2)
    if alpha is not None:
        mode = "RGBa" if bands.premultiplied else "RGBA"
        pixels = np.dstack([values, alpha])
        image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).convert("RGBA")
    else:
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else np.ascontiguousarray(values))
    image.getexif()[_ORIENTATION] = bands.orientation
    return to_rgb(image)


def _largest(values: npt.NDArray[Any], how: _How) -> int:
    """The 16-bit value that becomes 255."""
    largest = int(values.max())
    bits = next(bits for bits in _BITS if largest < 1 << bits)
    if bits == 16 or not largest:
        return 0xFFFF
    how.on_note(Note.FEW_BITS if how.sixteen_bit == "full" else Note.WIDENED)
    return 0xFFFF if how.sixteen_bit == "full" else (1 << bits) - 1


def _narrowed(values: npt.NDArray[Any], largest: int) -> npt.NDArray[np.uint8]:
    """16-bit values as 8-bit ones, rounded; `largest` becomes 255."""
    return ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


@functools.cache
def _add_heif_to_pillow() -> None:
    """Make Pillow read HEIC; raises InputError without pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError("is HEIC, which needs pillow-heif: pip install 'itae[heif]'") from error
    register_heif_opener(thumbnails=False)


def to_rgb(image: Image.Image, sixteen_bit: str = "full", on_note: OnNote = no_note) -> Image.Image:
    """Return the picture as 8-bit RGB, upright by its EXIF orientation, transparent parts blended over white.

    A picture that is all of this already is returned itself. 16-bit grey is divided by 257 and rounded, or as
    `sixteen_bit` says; Pillow's own conversion would clip it at 255.

    Raises:
        InputError: the picture's values have no known range (32-bit grey), or Pillow can't convert its mode.
    """
    return _to_rgb(image, _How(MAX_PIXELS, sixteen_bit, on_note))


def _to_rgb(image: Image.Image, how: _How) -> Image.Image:
    image.load()  # TIFF turns itself upright here, and drops the tag
    turn = _TRANSPOSE.get(_orientation(image))
    if image.mode == "RGB" and turn is None and type(image) is Image.Image and not image.info:
        return image  # this function returned it before
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        image = Image.fromarray(_narrowed(grey, _largest(grey, how)))
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


def _draft(image: JpegImageFile, wanted: Wanted, how: _How) -> Image.Image:
    """The picture as the JPEG library decodes it at a part of its size, from few of its frequencies, if it is large."""
    turn, size = _orientation(image), (image.height, image.width)
    upright = size[::-1] if turn in _LYING else size
    least = wanted(upright)
    parts = (8, 4, 2)
    part = next((part for part in parts if all(map(lambda a, b: a >= DRAFT_MARGIN * part * b, upright, least))), 1)
    if part == 1:
        return _own_to_rgb(image, how)
    image.draft(None, (image.width // part, image.height // part))
    rgb = _own_to_rgb(image, how)
    # The last row and column may lie partly outside of the picture; turned, they may be the first ones.
    height, width = (side / part for side in upright)
    left = rgb.width - width if turn in _FROM_THE_RIGHT else 0.0
    top = rgb.height - height if turn in _FROM_BELOW else 0.0
    rgb.info[_DRAFTED] = Drafted(upright, (left, top, left + width, top + height))
    return rgb


def _own_to_rgb(image: JpegImageFile, how: _How) -> Image.Image:
    """Like `_to_rgb`, of a JPEG that nobody else holds: one that is upright in RGB is not copied."""
    image.load()
    if image.mode != "RGB" or _orientation(image) in _TRANSPOSE:
        return _to_rgb(image, how)
    plain = image._new(image.im)  # Pillow's own way to an `Image` without its file
    plain.info.clear()
    return plain


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
