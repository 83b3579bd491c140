"""Pictures from files, good and hostile."""

import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.contract.errors import InputError
from runtime.images.decode import decode_image, load_image, to_rgb

GRADIENT = np.stack(np.meshgrid(np.arange(40) * 6, np.arange(30) * 8, indexing="xy"), -1).astype(np.uint8)
PICTURE = np.concatenate([GRADIENT, np.full((30, 40, 1), 77, np.uint8)], axis=-1)  # (30, 40, 3), smooth

LOSSLESS = {
    "png": {},
    "bmp": {},
    "tiff": {},
    "gif": None,  # 256 colours
    "webp": {"lossless": True},
    "jpg": None,
}


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_format_is_read(suffix, tmp_path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path, **(LOSSLESS[suffix] or {}))
    got = load_image(path)
    assert (got.mode, got.size) == ("RGB", (40, 30))
    tolerance = 0 if LOSSLESS[suffix] is not None else 40
    assert np.abs(np.asarray(got).astype(int) - PICTURE).max() <= tolerance


def test_first_frame_of_an_animation_is_read(tmp_path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((4, 4)) == (255, 0, 0)


def test_first_picture_of_a_phones_jpeg_with_several_is_read(tmp_path) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    red.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[blue])
    assert load_image(tmp_path / "a.jpg").getpixel((8, 8)) == (254, 0, 0)


@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_an_upright_jpeg_is_not_copied(orientation, tmp_path, monkeypatch) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = image.convert("RGB")
    copies = 0
    real = Image.Image.convert

    def convert(image, mode):
        nonlocal copies
        copies += 1
        return real(image, mode)

    monkeypatch.setattr(Image.Image, "convert", convert)
    got = load_image(tmp_path / "a.jpg")
    assert copies == (orientation == 6)
    assert (type(got), got.info) == (Image.Image, {})  # nothing of the file: EXIF would turn it again
    assert to_rgb(got) is got
    if orientation != 6:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_memory_of_pictures_is_used_again() -> None:
    script = """
from PIL import Image
from runtime.images.decode import keep_freed_memory
keep_freed_memory()
for _ in range(5):
    Image.new("RGB", (500, 500))
print(Image.core.get_stats()["reused_blocks"], Image.core.get_blocks_max() * Image.core.get_block_size() >> 20)
"""
    again, megabytes = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert int(again) == 4
    assert int(megabytes) == 64


def test_content_counts_not_the_name(tmp_path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.jpg")), PICTURE)


def test_other_formats_of_pillow_are_not_read(tmp_path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", format="PPM")
    with pytest.raises(InputError, match=r"a.png: is damaged, or none of JPEG, PNG, WEBP, BMP, TIFF, GIF"):
        load_image(tmp_path / "a.png")


# EXIF

CORNERS = np.zeros((16, 32, 3), np.uint8)
CORNERS[:8, :8] = 255  # top left is white, so that each of the eight turns is told apart
CORNERS[8:, :8, 0] = 255  # bottom left is red
UPRIGHT = {  # EXIF's own words: what row 0 and column 0 of the stored picture are to the viewer
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, -1),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNERS, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_exif_orientation_is_applied(suffix, orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(CORNERS).save(path, exif=exif, **options)
    np.testing.assert_array_equal(np.asarray(load_image(path)), UPRIGHT[orientation])


@pytest.mark.parametrize("orientation", [0, 9, 300], ids=str)
def test_orientation_that_means_nothing_is_left_alone(orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), CORNERS)


def test_damaged_exif_does_not_cost_the_picture(tmp_path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), PICTURE)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "jpg"])
def test_a_turned_picture_is_not_turned_again(suffix, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(CORNERS).save(tmp_path / f"a.{suffix}", exif=exif)
    once = load_image(tmp_path / f"a.{suffix}")
    assert once.size == (16, 32)
    np.testing.assert_array_equal(np.asarray(to_rgb(once)), np.asarray(once))


# Modes

GREY16 = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65407, 65535]], np.uint16)
GREY8 = [0, 0, 1, 1, 127, 128, 254, 255, 255]  # round(v / 257): clipped at 255, Pillow gives 0 128 129 255 ...


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_and_rounded(suffix, tmp_path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY16).save(path)
    got = np.asarray(load_image(path))
    assert got[0, :, 0].tolist() == GREY8
    assert (got == got[..., :1]).all()


def test_sixteen_bit_grey_of_the_other_byte_order_is_read(tmp_path) -> None:
    Image.frombytes("I;16B", (9, 1), GREY16.astype(">u2").tobytes()).save(tmp_path / "a.tiff")
    with Image.open(tmp_path / "a.tiff") as stored:
        assert stored.mode == "I;16B"
    assert np.asarray(load_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == GREY8


def test_every_sixteen_bit_value_is_its_rounded_share_of_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    np.testing.assert_array_equal(got, np.round(values / 257.0))


@pytest.mark.parametrize("dtype", [np.int32, np.float32], ids=["I", "F"])
def test_grey_of_unknown_range_is_refused(dtype, tmp_path) -> None:
    Image.fromarray(np.full((4, 4), 7, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(
        InputError, match=r"a.tiff: is a TIFF of 1 band \(grey\) of 32-bit .*, whose range is not known"
    ):
        load_image(tmp_path / "a.tiff")


def test_cmyk_jpeg_is_read_as_rgb(tmp_path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_image(tmp_path / "a.jpg").getpixel((8, 8))
    assert (red, green, blue) == pytest.approx((255, 0, 0), abs=4)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
    ],
    ids=str,
)
def test_transparency_is_blended_over_white(mode, colour, expected, tmp_path) -> None:
    Image.new(mode, (5, 5), colour).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((2, 2)) == expected


def test_palette_with_alpha_per_entry_is_read_without_a_warning(tmp_path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)


def test_cie_lab_is_not_taken_for_transparency() -> None:
    assert to_rgb(Image.new("LAB", (3, 3), (128, 128, 128))).getpixel((1, 1)) == (119, 119, 119)


def test_picture_of_a_mode_that_cannot_be_rgb_is_refused() -> None:
    with pytest.raises(InputError, match="can't be converted from La to RGB"):
        to_rgb(Image.new("La", (3, 3)))


# Hostile files


def good(suffix: str, tmp_path: Path) -> bytes:
    path = tmp_path / f"good.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_truncated_picture_is_refused(suffix, share, tmp_path) -> None:
    data = good(suffix, tmp_path)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=rf"^{path}: "):
        load_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_altered_picture_is_read_or_refused_but_never_anything_else(suffix, tmp_path) -> None:
    data = good(suffix, tmp_path)
    rng = np.random.default_rng(1)
    path = tmp_path / f"a.{suffix}"
    for _ in range(60):
        altered = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), 4):
            altered[place] = rng.integers(256)
        path.write_bytes(altered)
        with contextlib.suppress(InputError):
            assert load_image(path).mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and a little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1)], ids=str)
def test_decompression_bomb_is_refused(size, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(*size))
    with pytest.raises(InputError, match=r"a.png: has (more than|2,147,483,647 pixels).*178,956,970"):
        load_image(tmp_path / "a.png")


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"a.png: has 1,200 pixels \(40 x 30\), more than 1,199"):
        load_image(tmp_path / "a.png", max_pixels=1199)


def test_empty_file_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a.png: is empty \(0 bytes\)"):
        load_image(tmp_path / "a.png")


def test_dangling_link_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"a.png: does not exist, or is a link to what does not"):
        load_image(tmp_path / "a.png")


def test_link_to_itself_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: can't be decoded .*symbolic links"):
        load_image(tmp_path / "a.png")


def test_named_pipe_is_refused_and_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: is a folder or a device, not a file"):
        load_image(tmp_path / "a.png")


def test_folder_is_refused_as_a_picture(tmp_path) -> None:
    with pytest.raises(InputError, match="is a folder or a device"):
        load_image(tmp_path)


def test_file_without_permission_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def denied(*args, **rest):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(InputError, match=r"a.png: can't be decoded \(PermissionError: Permission denied\)"):
        load_image(tmp_path / "a.png")


# From a file's content


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_a_files_content_gives_what_the_file_gives(suffix, tmp_path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path, **(LOSSLESS[suffix] or {}))
    got = decode_image(path.read_bytes())
    assert (got.mode, got.tobytes()) == ("RGB", load_image(path).tobytes())


@pytest.mark.parametrize("suffix", LOSSLESS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_hostile_content_is_decoded_or_refused_without_a_path(suffix, data) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **(LOSSLESS[suffix] or {}))
    content = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities
        try:
            assert decode_image(bytes(content[:cut])).mode == "RGB"
        except InputError as error:
            assert str(error).startswith(("is ", "has ", "can't be ", "holds "))  # noqa: PT017  # either may happen


def test_content_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    with pytest.raises(InputError, match=r"^has 1,200 pixels \(40 x 30\), more than 1,199"):
        decode_image(file.getvalue(), max_pixels=40 * 30 - 1)


def test_no_content_is_refused() -> None:
    with pytest.raises(InputError, match=r"^is empty \(0 bytes\)"):
        decode_image(b"")
