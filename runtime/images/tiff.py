"""TIFFs as instruments and maps have them, which Pillow doesn't read: more bands than three, bands without a name."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from runtime.contract.errors import InputError

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION = 256, 257, 258, 259, 262, 266, 274
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_SIZES, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_PREMULTIPLIED, _STRAIGHT = 1, 2
_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
"""None, LZW, deflate, PackBits, deflate's older number, LZMA, Zstandard: those that keep each byte."""
_KINDS = {
    1: "whole numbers",
    2: "signed numbers",
    3: "floating-point numbers",
    5: "complex numbers",
    6: "complex numbers",
}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIE Lab"}


@dataclass(frozen=True)
class Bands:
    """The bands of a TIFF that are its picture."""

    values: npt.NDArray[Any]
    """(H, W, 1 or 3) uint8 or uint16: grey, or red, green, blue."""
    alpha: npt.NDArray[Any] | None
    """(H, W) of the same dtype, if there is one."""
    premultiplied: bool
    """Whether the values are multiplied by alpha."""
    orientation: int
    """EXIF's."""
    is_guess: bool
    """Whether the file calls its three bands grey and others: they are taken for red, green, blue."""


@dataclass(frozen=True)
class _Layout:
    """The tags of a TIFF's first picture."""

    ifd: ImageFileDirectory_v2
    width: int
    height: int
    bits: tuple[int, ...]
    photometric: int
    kind: int
    extra: tuple[int, ...]
    planar: bool

    @property
    def bands(self) -> int:
        return len(self.bits)

    def __str__(self) -> str:
        bits = self.bits[0] if len(set(self.bits)) == 1 else "/".join(map(str, self.bits))
        colour = _COLOURS.get(self.photometric, f"photometric {self.photometric}")
        usual = {"RGB": 3, "CMYK": 4, "YCbCr": 3, "CIE Lab": 3}.get(colour, 1)
        more = f" and {self.bands - usual} more" if self.bands > usual else ""
        kind = _KINDS.get(self.kind, "values of no known kind")
        return f"is a TIFF of {self.bands} band{'s' * (self.bands != 1)} ({colour}{more}) of {bits}-bit {kind}"


def has_unnamed_bands(image: object) -> bool:
    """Whether an opened picture is a TIFF of three or more bands that calls itself grey: Pillow may read one."""
    if not isinstance(image, TiffImageFile):
        return False
    tags = image.tag_v2
    samples = tags.get(_SAMPLES, 1)
    return isinstance(samples, int) and samples > 2 and tags.get(_PHOTOMETRIC) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)


def read_bands(file: BinaryIO, max_pixels: int, max_bytes: int) -> Bands:
    """Read the picture of a TIFF: RGB and further bands, grey and one more, or three bands that call themselves grey.

    Raises:
        InputError: its bands are no picture of 8 or 16 bits, or it is too large; the message says what they are.
        Exception: the file is damaged: any error of Pillow.
    """
    layout = _layout(file)
    if (pixels := layout.width * layout.height) > max_pixels:
        raise InputError(f"has {pixels:,} pixels ({layout.width} x {layout.height}), more than {max_pixels:,}")
    colours, alpha = _chosen(layout)
    size = pixels * sum(layout.bits) // 8
    if size > max_bytes:
        raise InputError(f"has {size:,} bytes of {layout.bands} bands, more than {max_bytes:,}")
    numbers = [*range(colours), *([] if alpha is None else [alpha])]
    pixels_of = _planes(file, layout, numbers)
    orientation = layout.ifd.get(_ORIENTATION, 1)
    return Bands(
        pixels_of[..., :colours],
        None if alpha is None else pixels_of[..., -1],
        alpha is not None and layout.extra[alpha - (layout.bands - len(layout.extra))] == _PREMULTIPLIED,
        orientation if isinstance(orientation, int) else 1,
        layout.photometric == _BLACK_IS_ZERO and colours == 3,
    )


def _layout(file: BinaryIO) -> _Layout:
    file.seek(0)
    header = file.read(8)
    if header[2:3] == b"+":
        header += file.read(8)
    ifd = ImageFileDirectory_v2(header)
    file.seek(ifd.next)
    ifd.load(file)
    bands = ifd.get(_SAMPLES, 1)
    bits = tuple(ifd.get(_BITS, (1,)))
    if len(bits) == 1:
        bits *= min(bands, 1 << 16)
    kinds = set(ifd.get(_SAMPLE_FORMAT, (1,)))
    return _Layout(
        ifd,
        int(ifd[_WIDTH]),
        int(ifd[_LENGTH]),
        bits[:bands],
        ifd.get(_PHOTOMETRIC, _WHITE_IS_ZERO),
        kinds.pop() if len(kinds) == 1 else 0,
        tuple(ifd.get(_EXTRA, ()))[:bands],
        ifd.get(_PLANAR, 1) == 2,
    )


def _chosen(layout: _Layout) -> tuple[int, int | None]:
    """Number of colours (the first bands) and the band of alpha; raises InputError if the bands are no picture."""
    if layout.kind in (2, 3) or max(layout.bits) > 16:
        raise InputError(f"{layout}, whose range is not known: convert it to 8 or 16 bits")
    can_be_read = (
        layout.kind == 1
        and set(layout.bits) in ({8}, {16})
        and layout.ifd.get(_COMPRESSION, 1) in _COMPRESSIONS
        and layout.ifd.get(_PREDICTOR, 1) in (1, 2)
        and layout.ifd.get(_FILL_ORDER, 1) == 1
    )
    if not can_be_read or layout.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise InputError(f"{layout}, which isn't read: convert it to RGB of 8 or 16 bits")
    named = layout.bands - len(layout.extra)
    alphas = [named + n for n, meaning in enumerate(layout.extra) if meaning in (_PREMULTIPLIED, _STRAIGHT)]
    colours = layout.bands - len(alphas)
    if layout.photometric == _RGB and layout.bands >= 3:
        if layout.bands == 4 and not layout.extra:  # the fourth is alpha without a word, as Pillow takes it too
            return 3, None
        alphas = [band for band in alphas if band >= 3]
        return 3, alphas[0] if alphas else None
    if layout.photometric == _BLACK_IS_ZERO and colours in (1, 2, 3) and len(alphas) <= 1:
        return (3 if colours == 3 else 1), (alphas[0] if alphas else None)
    raise InputError(
        f"{layout}: it does not say which are red, green and blue. "
        "Write these three as a file of their own: gdal_translate -b RED -b GREEN -b BLUE -co PHOTOMETRIC=RGB"
    )


def _planes(file: BinaryIO, layout: _Layout, numbers: list[int]) -> npt.NDArray[Any]:
    """The bands `numbers`, (H, W, len(numbers)) uint8 or uint16 of this machine's byte order."""
    order = "<" if layout.ifd.prefix == b"II" else ">"
    dtype = np.dtype(f"{order}u{layout.bits[0] // 8}")
    native = dtype.newbyteorder("=")
    result = np.empty((layout.height, layout.width, len(numbers)), native)
    if not layout.planar:
        rows = _rows(file, layout, layout.bands, dtype, plane=None)
        result[:] = rows[..., numbers]
        return result
    for place, number in enumerate(numbers):
        result[..., place] = _rows(file, layout, 1, dtype, plane=number)[..., 0]
    return result


def _rows(file: BinaryIO, layout: _Layout, bands: int, dtype: np.dtype[Any], plane: int | None) -> npt.NDArray[Any]:
    """The values of `bands` bands that lie together, (H, W, bands), of one plane if they lie apart.

    Pillow reads them as a wider grey picture of single bytes: from a copy of the file with other tags.
    """
    each = bands * dtype.itemsize
    ifd = layout.ifd
    is_tiled = _TILE_OFFSETS in ifd
    tags: dict[int, Any] = {
        _WIDTH: layout.width * each,
        _LENGTH: layout.height,
        _BITS: 8,
        _COMPRESSION: ifd.get(_COMPRESSION, 1),
        _PHOTOMETRIC: _BLACK_IS_ZERO,
        _SAMPLES: 1,
        _PLANAR: 1,
    }
    if is_tiled:
        tile_width, tile_length = int(ifd[_TILE_WIDTH]), int(ifd[_TILE_LENGTH])
        tags |= {_TILE_WIDTH: tile_width * each, _TILE_LENGTH: tile_length}
        parts = math.ceil(layout.width / tile_width) * math.ceil(layout.height / tile_length)
    else:
        tile_width, length = layout.width, min(int(ifd.get(_ROWS_PER_STRIP, layout.height)), layout.height)
        tags[_ROWS_PER_STRIP] = length
        parts = math.ceil(layout.height / length)
    own = slice(None) if plane is None else slice(plane * parts, (plane + 1) * parts)
    for tag in (_TILE_OFFSETS, _TILE_SIZES) if is_tiled else (_STRIP_OFFSETS, _STRIP_SIZES):
        if tag in ifd:
            tags[tag] = tuple(ifd[tag])[own]
    with TiffImageFile(_with_tags(file, tags)) as image:
        flat = np.asarray(image)
    values = flat.view(dtype).reshape(layout.height, layout.width, bands)
    if ifd.get(_PREDICTOR, 1) == 2:  # each value is the difference to its left neighbour, in each tile
        values = values.astype(dtype.newbyteorder("="))
        for left in range(0, layout.width, tile_width):
            part = values[:, left : left + tile_width]
            np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return values


def _with_tags(file: BinaryIO, tags: dict[int, Any]) -> BinaryIO:
    """A copy of a TIFF whose first picture has these tags alone."""
    file.seek(0)
    data = bytearray(file.read())
    data += b"\0" * (len(data) % 2)
    place = len(data)
    order = "<" if data[:2] == b"II" else ">"
    entries = behind = b""
    table = place + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        several = value if isinstance(value, tuple) else (value,)
        content = struct.pack(f"{order}{len(several)}I", *several)
        if len(several) > 1:
            content, behind = struct.pack(f"{order}I", table + len(behind)), behind + content
        entries += struct.pack(f"{order}HHI", tag, TiffTags.LONG, len(several)) + content
    data += struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind
    data[:8] = data[:2] + struct.pack(f"{order}HI", 42, place)  # also of a file with offsets of 8 bytes
    return io.BytesIO(data)
