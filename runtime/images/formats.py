"""The format of a file by its first bytes: a picture that is read, or something else, with a name for messages."""

from __future__ import annotations

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC")
"""Formats that are decoded, by content. Pillow reads many more, each with a parser that could be attacked."""
SIXTEEN_BIT = ("full", "auto")
"""White in pictures of 16 bits: always 65535, or the largest value of the 8, 10, 12, 14 or 16 bits that a picture
uses."""
HEAD = 1024
"""Number of bytes at a file's beginning that are looked at."""

_MAGIC = (  # offset in the file, the bytes there, the name of the format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),  # with offsets of 8 bytes
    (0, b"MM\0+", "TIFF"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
"""Sizes of BMP's second header; the letters BM alone begin many texts."""
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
"""Brands of ISO/IEC 23008-12; mif1 and msf1 alone name the container, which libheif opens or not."""

_OTHERS = (
    (4, b"ftypcrx", "a camera's raw file"),
    (8, b"CR\x02", "a camera's raw file"),
    (0, b"IIU\0", "a camera's raw file"),
    (0, b"IIRO", "a camera's raw file"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (4, b"ftyp", "a video"),
    (4, b"moov", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop's PSD"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\0\x05\x16\x07", "macOS's data about a file (AppleDouble)"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (fetch the file with git lfs pull)"),
)
_TEXTS = ((b"<svg", "SVG"), (b"<html", "an HTML page"), (b"<!doctype html", "an HTML page"), (b"<?xml", "XML"))
"""Tags in the beginning of a text, and the names of the formats; the first tag that is found counts."""


def format_of(start: bytes) -> str | None:
    """The format of `FORMATS` that a file has by its first `HEAD` bytes; None if it has none of them."""
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[8:11] != b"CR\x02":  # a raw file of Canon's, in the form of a TIFF
        for place, magic, name in _MAGIC:
            if start[place:].startswith(magic):
                return name
    return _format_of_brands(start)


def _format_of_brands(start: bytes) -> str | None:
    """AVIF or HEIC by the brands of an ISO file, the major one first; a major `mif1` may be either."""
    if start[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(start[:4], "big"), len(start))
    major, others = start[8:12], {start[place : place + 4] for place in range(16, end - 3, 4)}
    if major in _AVIF_BRANDS:
        return "AVIF"
    if major not in _HEIC_BRANDS:
        return None
    of_any = major in (b"mif1", b"msf1") and not others & (_HEIC_BRANDS - {b"mif1", b"msf1"})
    return "AVIF" if of_any and others & _AVIF_BRANDS else "HEIC"


def other_format(start: bytes) -> str | None:
    """The name of what a file is by its first `HEAD` bytes, if it is known and not of `FORMATS`."""
    if format_of(start) is not None:
        return None
    for place, magic, name in _OTHERS:
        if start[place:].startswith(magic):
            return name
    if start.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(b"<"):
        for tag, name in _TEXTS:
            if tag in start.lower():
                return name
    return None
