"""Pictures whose pixels are whole though Pillow refuses the file, and 16 bits of which few are used."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiffs import written

from runtime.contract.errors import InputError
from runtime.images.decode import Note, decode_file, decode_image

SIZE = (37, 21)
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS).resize((70, 50), Image.Resampling.BICUBIC))
BITS = (8, 10, 12, 14)


def decoded(data: bytes, sixteen_bit: str = "full") -> tuple[np.ndarray, list[Note]]:
    notes: list[Note] = []
    return np.asarray(decode_image(data, sixteen_bit=sixteen_bit, on_note=notes.append)), notes


# PNG: metadata


def chunk(kind: bytes, content: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + content) ^ (not sound)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    before: bytes = b"", after: bytes = b"", *, depth: int = 8, colour: int = 2, rows: np.ndarray = PIXELS
) -> bytes:
    """A PNG with chunks before and after its pixels."""
    data = rows.astype(">u2" if depth == 16 else np.uint8)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes().removeprefix(b"Exif\0\0")


PROFILE = b"icc\0\0" + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
LARGE = zlib.compress(bytes(1_500_000))
METADATA = {
    "iCCP with a bad checksum": (chunk(b"iCCP", PROFILE, sound=False), b""),
    "tEXt with a bad checksum": (chunk(b"tEXt", b"note\0text", sound=False), b""),
    "tEXt with a bad checksum after the pixels": (b"", chunk(b"tEXt", b"note\0text", sound=False)),
    "iTXt with a bad checksum": (chunk(b"iTXt", b"note\0\0\0\0\0text", sound=False), b""),
    "pHYs and gAMA with bad checksums": (
        chunk(b"pHYs", bytes(9), sound=False) + chunk(b"gAMA", bytes(4), sound=False),
        b"",
    ),
    "profile of 1.5 MB": (chunk(b"iCCP", b"icc\0\0" + LARGE), b""),
    "text of 1.5 MB": (chunk(b"zTXt", b"note\0\0" + LARGE), b""),
    "text of 1.5 MB after the pixels": (b"", chunk(b"iTXt", b"note\0\1\0\0\0" + LARGE)),
    "profile that does not unpack": (chunk(b"iCCP", b"icc\0\0damaged"), b""),
    "profile of no byte": (chunk(b"iCCP", b""), b""),
    "pHYs of 1 byte": (chunk(b"pHYs", b"\1"), b""),
    "gAMA of no byte": (chunk(b"gAMA", b""), b""),
    "animation control of 1 byte": (chunk(b"acTL", b"\1"), b""),
    "cHRM of 3 bytes": (chunk(b"cHRM", b"\1\2\3"), b""),
    "chunk of nobody": (chunk(b"abCd", b"x", sound=False), b""),
    "damaged EXIF": (chunk(b"eXIf", exif(6), sound=False), b""),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_loses_no_picture(name) -> None:
    got, notes = decoded(png(*METADATA[name]))
    np.testing.assert_array_equal(got, PIXELS)
    assert notes == []


def test_sound_exif_is_kept_beside_damaged_text() -> None:
    data = png(chunk(b"tEXt", b"a\0b", sound=False) + chunk(b"eXIf", exif(6)))
    np.testing.assert_array_equal(decoded(data)[0], np.rot90(PIXELS, -1))


def test_transparency_is_kept_beside_damaged_text() -> None:
    white = bytes(6)
    data = png(chunk(b"tEXt", b"a\0b", sound=False) + chunk(b"tRNS", white), rows=np.zeros((4, 4, 3)))
    assert (decoded(data)[0] == 255).all()


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"tRNS", bytes(6), sound=False)),
        png(chunk(b"tEXt", b"a\0b", sound=False))[:-200],
        png(chunk(b"tEXt", b"a\0b", sound=False)).replace(b"IHDR", b"IHDS"),
        png().replace(struct.pack(">II", *SIZE), struct.pack(">II", SIZE[0], SIZE[1] + 1)),
    ],
    ids=["transparency", "pixels", "header's name", "header's size"],
)
def test_damage_of_a_png_that_its_pixels_feel_is_refused(data) -> None:
    with pytest.raises(InputError):
        decode_image(data)


# JPEG: the end marker


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, "JPEG", **options)
    return file.getvalue()


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "full resolution of colours": {"subsampling": 0, "quality": 100},
}


@pytest.mark.parametrize("lost", [1, 2], ids=["half of it", "all of it"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_note(kind, lost, tmp_path) -> None:
    data = jpeg(**JPEGS[kind])
    want, notes = decoded(data)
    assert notes == []
    got, notes = decoded(data[:-lost])
    np.testing.assert_array_equal(got, want)
    assert notes == [Note.NO_END_MARKER]
    (tmp_path / "a.jpg").write_bytes(data[:-lost])
    np.testing.assert_array_equal(np.asarray(decode_file(tmp_path / "a.jpg")), want)


def test_zeros_in_place_of_the_end_marker_are_padding() -> None:
    data = jpeg(progressive=True)
    np.testing.assert_array_equal(decoded(data[:-2] + bytes(500))[0], decoded(data)[0])


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_a_byte_of_its_pixels_is_refused(kind) -> None:
    data = jpeg(**JPEGS[kind])
    for lost in [3, 4, 5, 6, 9, *range(12, len(data) - 2, max(1, len(data) // 12))]:
        with pytest.raises(InputError):
            decode_image(data[:-lost])


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    data = jpeg(progressive=True)
    with pytest.raises(InputError, match="truncated"):
        decode_image(data[: data.rindex(b"\xff\xda")])


# 16 bits


def wide(values: np.ndarray, form: str) -> bytes:
    """16-bit values (H, W, 3) in a file; the grey forms hold the first band."""
    alpha = np.full((*values.shape[:2], 1), 65535, np.uint16)
    if form == "grey PNG":
        return png(depth=16, colour=0, rows=values[..., :1])
    if form == "grey PNG with alpha":
        return png(depth=16, colour=4, rows=np.dstack([values[..., :1], alpha]))
    if form == "RGB PNG":
        return png(depth=16, colour=2, rows=values)
    if form == "RGB PNG with alpha":
        return png(depth=16, colour=6, rows=np.dstack([values, alpha]))
    if form == "grey TIFF":
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(values[..., 0])).save(file, "TIFF")
        return file.getvalue()
    return written(values)


FORMS = ("grey PNG", "grey PNG with alpha", "RGB PNG", "RGB PNG with alpha", "grey TIFF", "RGB TIFF")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", BITS)
def test_few_of_16_bits_are_noted_and_widened(bits, form) -> None:
    values = PIXELS.astype(np.uint16) << (bits - 8) if bits > 8 else PIXELS.astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    data = wide(values, form)
    want = values * (255 / ((1 << bits) - 1))
    if "grey" in form:
        want = want[..., :1].repeat(3, axis=2)
    got, notes = decoded(data, "auto")
    assert np.abs(got - want).max() <= 0.5
    assert notes == [Note.WIDENED]
    dark, notes = decoded(data)
    assert dark.max() <= 64
    assert notes == [Note.FEW_BITS]


@pytest.mark.parametrize("form", FORMS)
def test_all_of_16_bits_are_taken_as_they_are(form) -> None:
    data = wide(PIXELS.astype(np.uint16) * 257, form)
    want = PIXELS[..., :1].repeat(3, axis=2) if "grey" in form else PIXELS
    for how in ("full", "auto"):
        got, notes = decoded(data, how)
        np.testing.assert_array_equal(got, want)
        assert notes == []


def test_a_black_picture_of_16_bits_is_black() -> None:
    data = wide(np.zeros((9, 9, 3), np.uint16), "grey PNG")
    got, notes = decoded(data, "auto")
    assert (got.max(), notes) == (0, [])
