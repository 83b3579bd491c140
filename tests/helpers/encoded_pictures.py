"""Pictures in all the forms of JPEG, PNG and WebP that Pillow writes, and a few that are put together here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Of each pass: first row and column, steps to the next ones."""
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's number for pixels of so many channels."""
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    """EXIF with this orientation and a few tags more."""
    exif = Image.Exif()
    exif[0x010F] = "somebody's camera"
    exif[0x0112] = orientation
    exif[0x011A] = 72.0
    return exif


def chunk(kind: bytes, content: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG; its checksum is wrong if it is not sound."""
    checksum = zlib.crc32(kind + content) ^ (not sound)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(values: npt.NDArray[np.generic], *extra: bytes, interlaced: bool = False) -> bytes:
    """A PNG of (H, W, 1 to 4) uint8 or uint16, with chunks before its pixels."""
    passes = [values[top::down, left::right] for top, left, down, right in _ADAM7] if interlaced else [values]
    dtype = values.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(dtype).tobytes() for part in passes if part.size for row in part)
    height, width, channels = values.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 8 * values.dtype.itemsize, _COLOURS[channels], 0, 0, int(interlaced)
    )
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + pixels + chunk(b"IEND", b"")


def ycck(image: Image.Image) -> bytes:
    """A JPEG whose four channels are Y, Cb, Cr, K, as Photoshop writes it: Pillow's CMYK under another name."""
    data = bytearray(saved(image.convert("CMYK"), "JPEG", quality=92))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def encodings(image: Image.Image, rng: np.random.Generator) -> dict[str, bytes]:
    """An RGB picture in every form, by name; `rng` chooses qualities, orientations and alpha."""
    pixels = np.asarray(image)
    size = pixels.shape[:2]
    alpha = rng.integers(0, 256, size, dtype=np.uint8)
    grey = image.convert("L")
    rgba, grey_alpha = image.copy(), grey.copy()
    rgba.putalpha(Image.fromarray(alpha))
    grey_alpha.putalpha(Image.fromarray(alpha))
    palette = image.quantize(int(rng.integers(2, 257)))
    quality = int(rng.integers(25, 101))
    exif = with_orientation(int(rng.integers(0, 10)))
    xmp = XMP % int(rng.integers(1, 9))
    text, packed_text, raw_profile = PngInfo(), PngInfo(), PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    packed_text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    raw_profile.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    wide = rng.integers(0, 65536, (*size, 4), dtype=np.uint16)
    flipped = image.transpose(Image.Transpose.ROTATE_180)
    return {
        "baseline 444.jpg": saved(image, "JPEG", quality=quality, subsampling=0, exif=exif),
        "baseline 422.jpg": saved(image, "JPEG", quality=quality, subsampling=1, exif=exif),
        "baseline 420.jpg": saved(image, "JPEG", quality=quality, subsampling=2, xmp=xmp),
        "progressive 444.jpg": saved(image, "JPEG", quality=quality, subsampling=0, progressive=True),
        "progressive 420.jpg": saved(image, "JPEG", quality=quality, subsampling=2, progressive=True, exif=exif),
        "restart markers.jpg": saved(image, "JPEG", quality=quality, restart_marker_blocks=3),
        "RGB.jpg": saved(image, "JPEG", quality=quality, keep_rgb=True),
        "grey.jpg": saved(grey, "JPEG", quality=quality, exif=exif),
        "grey progressive.jpg": saved(grey, "JPEG", quality=quality, progressive=True),
        "CMYK.jpg": saved(image.convert("CMYK"), "JPEG", quality=quality),
        "YCCK.jpg": ycck(image),
        "several.jpg": saved(image, "MPO", quality=quality, save_all=True, append_images=[flipped]),
        "without end marker.jpg": saved(image, "JPEG", quality=quality)[:-2],
        "progressive without end marker.jpg": saved(image, "JPEG", quality=quality, progressive=True)[:-1],
        "RGB.png": saved(image, "PNG", exif=exif),
        "RGB, XMP.png": saved(image, "PNG", pnginfo=text),
        "RGB, packed XMP.png": saved(image, "PNG", pnginfo=packed_text),
        "RGB, EXIF as text.png": saved(image, "PNG", pnginfo=raw_profile),
        "RGB, transparent colour.png": saved(image, "PNG", transparency=tuple(map(int, pixels[0, 0]))),
        "RGB interlaced.png": png(pixels, interlaced=True),
        "RGB of 16 bits.png": png(wide[..., :3]),
        "RGB, damaged text.png": png(pixels, chunk(b"tEXt", b"a\0b", sound=False)),
        "RGBA.png": saved(rgba, "PNG"),
        "RGBA of 16 bits, interlaced.png": png(wide, interlaced=True),
        "grey.png": saved(grey, "PNG"),
        "grey, transparent value.png": saved(grey, "PNG", transparency=int(np.asarray(grey)[0, 0])),
        "grey interlaced.png": png(pixels[..., :1], interlaced=True),
        "grey of 16 bits.png": saved(Image.fromarray(wide[..., 0]), "PNG"),
        "grey with alpha.png": saved(grey_alpha, "PNG"),
        "grey with alpha of 16 bits.png": png(wide[..., :2]),
        "bilevel.png": saved(image.convert("1"), "PNG"),
        "palette.png": saved(palette, "PNG"),
        "palette of 2 bits.png": saved(image.quantize(4), "PNG", bits=2),
        "palette with alpha.png": saved(palette, "PNG", transparency=rng.bytes(int(rng.integers(1, 256)))),
        "palette, transparent entry.png": saved(palette, "PNG", transparency=1),
        "animated.png": saved(image, "PNG", save_all=True, append_images=[flipped]),
        "lossy.webp": saved(image, "WEBP", quality=quality, exif=exif),
        "lossless.webp": saved(image, "WEBP", lossless=True, xmp=xmp),
        "lossy with alpha.webp": saved(rgba, "WEBP", quality=quality),
        "lossless with alpha.webp": saved(rgba, "WEBP", lossless=True, exact=True, exif=exif),
        "animated.webp": saved(image, "WEBP", quality=quality, save_all=True, append_images=[flipped]),
    }


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise, smooth shapes, or a gradient: RGB."""
    kind = rng.integers(3)
    if kind == 0:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if kind == 1:
        coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns * 3, rows * 5, columns * 7 + rows], -1).astype(np.uint8))
