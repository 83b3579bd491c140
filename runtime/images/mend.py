"""Files whose pixels are whole but which a decoder refuses: PNG with damaged metadata, JPEG without its end marker."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO

_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ZEROS = 16
"""Number of zeros at the end of a JPEG that are taken for padding: what a file holds before it is written in full."""
_FILLER = bytes(range(1, 255)) * 2
"""Coded data without a marker; so are its complement and both of them in turn."""


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A copy of a PNG with what its pixels need, and EXIF (which holds the orientation) if its checksum is right.

    Checksums, compression and sizes of all other ancillary chunks are thus not looked at. Transparency changes the
    pixels: its chunk is kept as it is.

    Returns:
        None if the file is no PNG with pixels, or holds nothing else.
    """
    file.seek(0)
    mended = io.BytesIO()
    mended.write(file.read(8))
    has_pixels = has_more = False
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        is_critical = not kind[0] & 0x20
        if not (kind in _PIXELS or is_critical or kind == b"eXIf"):
            file.seek(size + 4, io.SEEK_CUR)
            has_more = True
            continue
        content = file.read(size + 4)
        if kind == b"eXIf" and content[size:] != struct.pack(">I", zlib.crc32(kind + content[:size])):
            has_more = True
            continue
        has_pixels |= kind == b"IDAT"
        mended.write(head + content)
        if kind == b"IEND":
            break
    else:
        mended.write(_IEND)
    mended.seek(0)
    return mended if has_pixels and has_more else None


def with_end_marker(file: BinaryIO) -> tuple[BinaryIO, BinaryIO] | None:
    """Two files of a JPEG that lacks its end marker: it, followed by other data in each, and the marker.

    If all pixels are there, a decoder ignores the data, and both give the same picture. If the file ends earlier, the
    next bit is 0 in one and 1 in the other, and the pictures differ.

    Returns:
        None if the file is no JPEG, has an end marker, or lacks a component or bits of its coefficients.
    """
    file.seek(0)
    data = file.read()
    bare = data.rstrip(b"\0")
    if len(data) - len(bare) >= _ZEROS:
        data = bare
    data = data.rstrip(b"\xff")  # half of a marker
    scan = _last_scan(data)
    if scan is None:
        return None
    restarts = _RESTART.findall(data, scan)
    first = restarts[-1][0] + 1 if restarts else 0
    inverse = bytes(255 - value for value in _FILLER)
    return _filled(data, _FILLER, first), _filled(data, inverse, first)


def _filled(data: bytes, filler: bytes, first: int) -> BinaryIO:
    """JPEG data that goes on with `filler`, also behind each of the next restart markers, and ends."""
    intervals = b"".join(bytes((0xFF, 0xD0 | (first + number) & 7)) + filler for number in range(8))
    return io.BytesIO(data + filler + intervals + bytes((0xFF, _EOI)))


def _last_scan(data: bytes) -> int | None:
    """Offset of the coded data of the last scan, if the scans hold all bits and no end marker comes after them."""
    missing: dict[int, set[int]] = {}  # of each component, the coefficients whose last bit did not come yet
    place, scan = 2, None
    if data[:2] != bytes((0xFF, _SOI)):
        return None
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = found[1][0], found.end()
        segment = data[place + 2 : place + int.from_bytes(data[place : place + 2], "big")]
        if marker == _EOI:
            return None
        if marker in _SOF and len(segment) >= 6:
            missing = {segment[6 + 3 * n]: set(range(64)) for n in range(segment[5]) if 6 + 3 * n < len(segment)}
        if marker == _SOS:
            if not segment or len(segment) < 2 * segment[0] + 4:
                return None
            start, end, bits = segment[-3:]
            if not bits & 0x0F:
                for component in segment[1 : 1 + 2 * segment[0] : 2]:
                    missing.get(component, set()).difference_update(range(start, end + 1))
            scan = place + 2 + len(segment)
        place += 2 + len(segment)
    return scan if missing and not any(missing.values()) else None
