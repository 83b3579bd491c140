"""Every kind of bad image: each ends decoded to the pixels that it shows, or refused with a reason."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from preprocessing import standard_preprocessing

from runtime.contract.errors import InputError
from runtime.images import decode as images
from runtime.images.decode import decode_image
from runtime.images.formats import format_of, other_format
from runtime.images.preprocess import preprocess
from runtime.sources import Item, Unreadable, load_item, open_sources

HEIGHT, WIDTH = 24, 32
Y, X = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([X * 7, Y * 10, np.full_like(X, 90)], -1).astype(np.uint8)
GREY = (X * 7).astype(np.uint8)
BLUE = np.full((HEIGHT, WIDTH, 3), (0, 0, 255), np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def saved(format: str, pixels: np.ndarray | Image.Image = PIXELS, **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format, **options)
    return file.getvalue()


def several(format: str, **options) -> bytes:
    """The picture, then a blue one."""
    return saved(format, save_all=True, append_images=[Image.fromarray(BLUE)], **options)


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = WIDTH, height: int = HEIGHT, *extra: bytes, bits: int = 8, colour: int = 2, data: bytes = b""
) -> bytes:
    """A PNG of what its header says."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    body = chunk(b"IDAT", zlib.compress(data or rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


def bomb(kind: bytes) -> bytes:
    """A chunk that unpacks to 200 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    return chunk(kind, b"name\0\0" + packed)


def saved_with(more: bytes) -> bytes:
    """The picture as a PNG, with one more chunk behind the header."""
    data = saved("PNG")
    return data[:33] + more + data[33:]


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"\0" * 64) -> bytes:
    """A little-endian TIFF of tags (number, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def huge_tiff(width: int, height: int, tile: int = 0) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (277, 3, 1, 1)]
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 200), (325, 4, 1, 10)]
    else:
        tags += [(273, 4, 1, 200), (278, 4, 1, height), (279, 4, 1, 10)]
    return tiff(*sorted(tags))


def jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def inverted_cmyk() -> bytes:
    """As Adobe writes it: 255 is no ink. Pillow writes so too, and says so in an APP14 segment."""
    data = saved("JPEG", Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), quality=100, subsampling=0)
    assert b"Adobe" in data
    return data


def palette_with_alpha() -> bytes:
    image = Image.fromarray(np.where(X < 16, 0, 1).astype(np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    return saved("PNG", image, transparency=bytes([0, 255]))


SUNK = np.where((X < 16)[..., None], 255, np.array([0, 200, 0])).astype(np.uint8)
"""What `palette_with_alpha` shows over white."""
TURNED = np.rot90(PIXELS, -1)
NEAR = 12
"""How far a lossy format, or one of few colours, may be from the picture."""

profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
text = PngImagePlugin.PngInfo()
text.add_text("note", "x" * 900_000, zip=True)
noisy = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
stripes = np.tile(PIXELS[:1], (1, 94, 1))[:, :3000]

DECODED: dict[str, tuple[bytes, np.ndarray | None]] = {
    "PNG named .jpg": (saved("PNG"), PIXELS),
    "TIFF": (saved("TIFF"), PIXELS),
    "grey": (saved("PNG", GREY), rgb(GREY)),
    "1 bit": (saved("PNG", Image.fromarray(GREY > 100)), rgb((GREY > 100) * 255)),
    "grey with alpha": (saved("PNG", Image.merge("LA", [Image.fromarray(GREY)] * 2)), None),
    "palette": (saved("GIF", Image.fromarray(GREY)), rgb(GREY)),
    "palette with alpha": (palette_with_alpha(), SUNK),
    "PNG whose text unpacks to 200 MB": (saved_with(bomb(b"zTXt")), PIXELS),
    "PNG whose profile unpacks to 200 MB": (saved_with(bomb(b"iCCP")), PIXELS),
    "16-bit grey PNG": (saved("PNG", GREY.astype(np.uint16) * 257), rgb(GREY)),
    "16-bit grey TIFF": (saved("TIFF", GREY.astype(np.uint16) * 257), rgb(GREY)),
    "16-bit RGB PNG": (
        png(bits=16, data=b"".join(b"\0" + np.repeat(row, 2, axis=-1).tobytes() for row in PIXELS)),
        PIXELS,
    ),
    "animated GIF": (several("GIF"), None),
    "animated PNG": (several("PNG"), PIXELS),
    "animated WebP": (several("WEBP", lossless=True), PIXELS),
    "TIFF of several pages": (several("TIFF"), PIXELS),
    "several JPEGs in one (MPO)": (several("MPO", quality=100, subsampling=0), None),
    "progressive JPEG": (saved("JPEG", progressive=True, quality=100, subsampling=0), None),
    "turned by EXIF, PNG": (saved("PNG", exif=with_exif(6)), TURNED),
    "turned by EXIF, TIFF": (saved("TIFF", exif=with_exif(6)), TURNED),
    "turned by EXIF, WebP": (saved("WEBP", lossless=True, exif=with_exif(6)), TURNED),
    "large ICC profile": (saved("PNG", icc_profile=profile + bytes(900_000)), PIXELS),
    "ICC profile that is none": (saved("PNG", icc_profile=b"no profile" * 500), PIXELS),
    "large EXIF": (saved("PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(60_000)), PIXELS),
    "large text": (saved("PNG", pnginfo=text), PIXELS),
    "data behind the end": (saved("PNG") + b"<?php" * 1000, PIXELS),
    "PNG whose pixels unpack to 200 MB": (png(data=bytes(200 << 20)), np.zeros_like(PIXELS)),
    "strip of 3000 x 1": (saved("PNG", stripes), stripes),
    "strip of 1 x 3000": (saved("PNG", stripes.transpose(1, 0, 2)), stripes.transpose(1, 0, 2)),
}
NONE = r"is damaged, or none of JPEG, PNG, WEBP, BMP, TIFF, GIF"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "one byte": (b"\xff", NONE),
    "zeros": (bytes(5000), r"holds only zeros"),
    "noise": (noisy.tobytes(), NONE),
    "JPEG cut in its header": (saved("JPEG")[:100], r"can't be decoded \(Truncated File Read"),
    "JPEG cut": (saved("JPEG", noisy)[:9000], r"can't be decoded \(image file is truncated"),
    "progressive JPEG cut": (
        saved("JPEG", noisy, progressive=True)[:9000],
        r"can't be decoded \(image file is truncated",
    ),
    "PNG cut": (saved("PNG", noisy)[:50_000], r"can't be decoded \(image file is truncated"),
    "WebP cut": (saved("WEBP", noisy)[:5000], r"can't be decoded \(could not create decoder"),
    "BMP cut": (saved("BMP", noisy)[:5000], r"can't be decoded \(image file is truncated"),
    "TIFF cut": (saved("TIFF", noisy)[:5000], r"can't be decoded|" + NONE),
    "GIF cut": (saved("GIF", noisy)[:5000], r"can't be decoded \(image file is truncated"),
    "PNG with a wrong checksum": (png().replace(b"IHDR\0\0\0\x20", b"IHDR\0\0\0\x21"), NONE),
    "HTML named .jpg": (b"<!DOCTYPE html>\n<html><body>404", r"is an HTML page, which isn't read, only JPEG, PNG"),
    "SVG": (SVG, r"is SVG, which isn't read"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"is HEIC, but damaged"),
    "AVIF": (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf", r"is AVIF, but damaged"),
    "video": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", r"is a video, which isn't read"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), r"is JPEG XL, which isn't read"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", r"is JPEG 2000, which isn't read"),
    "DICOM": (bytes(128) + b"DICM", r"is DICOM, which isn't read"),
    "OpenEXR": (b"v/1\x01" + bytes(50), r"is OpenEXR, which isn't read"),
    "PDF": (b"%PDF-1.7\n", r"is PDF, which isn't read"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), r"is a gzip file"),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", r"git lfs pull"),
    "AppleDouble": (b"\0\x05\x16\x07" + bytes(100), r"is macOS's data about a file"),
    "PPM, which Pillow could read": (saved("PPM"), NONE),
    "32-bit float TIFF": (saved("TIFF", GREY.astype(np.float32)), r"of 32-bit floating-point numbers"),
    "32-bit integer TIFF": (saved("TIFF", GREY.astype(np.int32)), r"of 32-bit signed numbers"),
    "PNG of 2,500 megapixels": (png(50_000, 50_000), r"has more than 178,956,970 pixels"),
    "PNG of 2147483647 x 1": (png(2**31 - 1, 1), r"has (more than|2,147,483,647 pixels).*178,956,970"),
    "PNG of 0 x 0": (png(0, 0), NONE + r"|can't be decoded"),
    "PNG that says more than it holds": (png(8000, 8000), r"can't be decoded \(image file is truncated"),
    "JPEG of 65,000 x 65,000": (jpeg_size(saved("JPEG"), 65_000, 65_000), r"has more than 178,956,970 pixels"),
    "JPEG that says more than it holds": (
        jpeg_size(saved("JPEG"), 9000, 9000)[:-2],
        r"can't be decoded \(image file is",
    ),
    "GIF of 65,535 x 65,535": (
        saved("GIF")[:6] + b"\xff\xff\xff\xff" + saved("GIF")[10:],
        r"has more than 178,956,970 pixels|4,294,836,225 pixels",
    ),
    "BMP of 2,147,483,647 x 1": (
        saved("BMP")[:18] + struct.pack("<ii", 2**31 - 1, 1) + saved("BMP")[26:],
        r"has (more than|2,147,483,647 pixels).*178,956,970",
    ),
    "TIFF of 4,000,000,000 x 4,000,000,000": (huge_tiff(4_000_000_000, 4_000_000_000), r"178,956,970|can't be decoded"),
    "TIFF with a tile of 60,000 x 60,000": (huge_tiff(32, 32, tile=60_000), r"can't be decoded"),
    "TIFF with a strip of 2 GB": (huge_tiff(13_000, 13_000), r"can't be decoded"),
}


def decode_in_every_way(name: str, data: bytes, folder: Path) -> Image.Image:
    """By content and by file, which must agree; raises InputError."""
    path = folder / f"{name.replace('/', '_')}.jpg"
    path.write_bytes(data)
    (item,) = open_sources([str(folder)]).items()
    outcomes: list[Image.Image | str] = []
    for decode in (lambda: decode_image(data), lambda: load_item(item), lambda: load_item(Item("x", "y", data))):
        try:
            outcomes.append(decode())
        except InputError as error:
            outcomes.append(str(error))
    if isinstance(outcomes[0], str):
        assert outcomes == outcomes[:1] * 3
        assert str(path) not in outcomes[0]
        assert len(outcomes[0].splitlines()) == 1
        raise InputError(outcomes[0])
    assert all(isinstance(one, Image.Image) for one in outcomes), outcomes
    for one in outcomes[1:]:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(outcomes[0]))
    return outcomes[0]


@pytest.mark.parametrize("name", DECODED)
def test_odd_image_is_decoded_to_what_it_shows(name, tmp_path) -> None:
    data, expected = DECODED[name]
    image = decode_in_every_way(name, data, tmp_path)
    assert image.mode == "RGB"
    got = np.asarray(image).astype(int)
    if name == "grey with alpha":
        expected = rgb(np.round(GREY * (GREY / 255) + 255 * (1 - GREY / 255)))
        assert np.abs(got - expected).max() <= 1
    elif expected is None:  # lossy, or of few colours
        assert np.abs(got - PIXELS).max() <= NEAR
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_image_is_refused_with_the_reason(name, tmp_path) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        decode_in_every_way(name, data, tmp_path)


def test_adobes_inverted_cmyk_is_red_and_not_cyan() -> None:
    pixels = np.asarray(decode_image(inverted_cmyk())).astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() <= 4


def heic(image: np.ndarray, **options) -> bytes:
    """A HEIC as pillow-heif writes it: a turn is noted twice, as by cameras, in EXIF and beside it."""
    file = io.BytesIO()
    mode = "RGBA" if image.shape[2] == 4 else "RGB"
    pillow_heif.encode(mode, image.shape[1::-1], image.tobytes(), file, quality=90, **options)
    return file.getvalue()


MODERN = {
    "HEIC": (heic(PIXELS), PIXELS),
    "HEIC turned by EXIF": (heic(PIXELS, exif=with_exif(6).tobytes()), TURNED),
    "AVIF": (saved("AVIF", quality=95), PIXELS),
    "AVIF turned by EXIF": (saved("AVIF", quality=95, exif=with_exif(6)), TURNED),
    "AVIF of several frames": (several("AVIF", quality=95), PIXELS),
    "HEIC with alpha": (heic(np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])), np.full_like(PIXELS, 255)),
}


@pytest.mark.parametrize("name", MODERN)
def test_heic_and_avif_are_decoded_upright(name, tmp_path) -> None:
    data, expected = MODERN[name]
    image = decode_in_every_way(name, data, tmp_path)
    assert image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - expected).mean() <= NEAR


def test_heic_without_its_package_says_what_to_install(monkeypatch) -> None:
    images._add_heif_to_pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"is HEIC, which needs pillow-heif: pip install 'itae\[heif\]'"):
        decode_image(MODERN["HEIC"][0])


@pytest.mark.parametrize("name", ["HEIC", "AVIF"])
def test_heic_and_avif_that_are_cut_or_too_large_are_refused(name) -> None:
    data, _ = MODERN[name]
    for end in (40, len(data) // 2, len(data) - 20):
        with pytest.raises(InputError, match=r"but damaged|can't be decoded"):
            decode_image(data[:end])
    with pytest.raises(InputError, match=r"more than 100$"):
        decode_image(data, max_pixels=100)


@pytest.mark.parametrize(
    ("major", "others", "kind"),
    [
        ("heic", "mif1heic", "HEIC"),
        ("mif1", "mif1heic", "HEIC"),
        ("mif1", "mif1avif", "AVIF"),
        ("mif1", "mif1heicavif", "HEIC"),
        ("msf1", "", "HEIC"),
        ("avis", "avifmif1", "AVIF"),
        ("isom", "mp41", None),
        ("qt  ", "qt  ", None),
    ],
)
def test_the_brands_of_a_file_say_what_it_is(major, others, kind) -> None:
    start = f"ftyp{major}\0\0\0\0{others}".encode()
    assert format_of(struct.pack(">I", len(start) + 4) + start + b"heicavif") == kind


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_the_beginning_of_a_file_says_its_format(name) -> None:
    assert format_of(saved(name)[:64]) == name
    assert other_format(saved(name)) is None


def test_a_text_that_begins_like_a_bitmap_is_none() -> None:
    assert format_of(b"BM is short for bitmap, and this is none") is None


def test_bombs_take_little_memory(tmp_path) -> None:
    """All of them together, in a process of its own, whose peak is measured."""
    for number, (data, _) in enumerate([*REFUSED.values(), *DECODED.values()]):
        (tmp_path / f"{number:03}.png").write_bytes(data)
    code = (
        "import re, sys, warnings\n"
        "from runtime.contract.errors import InputError\n"
        "from runtime.sources import load_item, open_sources\n"
        "warnings.simplefilter('ignore')\n"
        "import PIL.Image; PIL.Image.init()\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "for item in open_sources([sys.argv[1]]).items():\n"
        "    try: load_item(item, 100_000_000)\n"
        "    except InputError: pass\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000  # KiB: what the 64 megapixels take that one says it has


# Sizes

PILLOWS_WARNING = "ignore:Image size:PIL.Image.DecompressionBombWarning"


@pytest.mark.filterwarnings(PILLOWS_WARNING)
def test_100_megapixels_are_decoded_and_refused_by_a_lower_cap() -> None:
    data = png(10_000, 10_000, bits=1, colour=0, data=(b"\0" + b"\xff" * 1250) * 10_000)
    assert len(data) < 50_000
    with pytest.raises(InputError, match=r"has 100,000,000 pixels \(10000 x 10000\), more than 99,999,999"):
        decode_image(data, max_pixels=99_999_999)
    image = decode_image(data)
    assert image.size == (10_000, 10_000)
    assert image.getextrema() == ((255, 255),) * 3


@pytest.mark.filterwarnings(PILLOWS_WARNING)
def test_the_cap_can_be_raised_beyond_pillows_own(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end
    monkeypatch.setattr(images, "_to_rgb", lambda image, how: image.size)  # 200 megapixels are not decoded here
    data = png(20_000, 10_000, bits=1, colour=0)
    with pytest.raises(InputError, match="has more than 178,956,970 pixels"):
        decode_image(data)
    assert decode_image(data, max_pixels=200_000_000) == (20_000, 10_000)
    with pytest.raises(InputError, match=r"has 200,000,000 pixels .* more than 199,999,999"):
        decode_image(data, max_pixels=199_999_999)


def test_too_large_a_file_is_refused_unread(tmp_path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(png())
        file.truncate(1 << 40)  # a hole, which takes no disk
    (item,) = open_sources([str(tmp_path)]).items()
    with pytest.raises(InputError, match="has 1,099,511,627,776 bytes, more than 715,827,880"):
        load_item(item)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (8000, 1), (1, 1)], ids=str)
def test_strips_become_inputs(size) -> None:
    image = decode_image(saved("PNG", np.full((size[1], size[0], 3), (10, 20, 30), np.uint8)))
    pixels = preprocess(image, standard_preprocessing((224, 224), "uint8"))
    assert pixels.shape == (224, 224, 3)
    assert (pixels == [10, 20, 30]).all()


# Files


def outcome(path: Path) -> str:
    """What becomes of the image in a folder: `decoded`, or why not."""
    (item,) = open_sources([str(path)]).items()
    if isinstance(item, Unreadable):
        return item.error
    try:
        np.testing.assert_array_equal(np.asarray(load_item(item)), PIXELS)
    except InputError as error:
        return str(error)
    return "decoded"


def make_file(path: Path) -> None:
    path.write_bytes(saved("PNG"))


def make_locked(path: Path) -> None:
    make_file(path)
    path.chmod(0)


def make_link(path: Path) -> None:
    (path.parent / "there.npy").write_bytes(saved("PNG"))
    path.symlink_to("there.npy")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "plain": (make_file, "decoded"),
    "link": (make_link, "decoded"),
    "dangling link": (lambda path: path.symlink_to("nowhere.png"), "does not exist, or is a link to what does not"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a folder or a device, not a file"),
    "link to a file that isn't one": (lambda path: path.symlink_to("/proc/self/mem"), "can't be decoded|is empty"),
    "named pipe": (os.mkfifo, "is a folder or a device, not a file"),
    "no permission": (make_locked, "decoded" if os.geteuid() == 0 else "PermissionError: Permission denied"),
}
NAMES = [
    "猫.png",
    "a\nb.png",
    "\u2028.png",
    " .PnG",
    "-rf.jpg",
    "a'\"$(b).webp",
    "x" * 241 + ".jpeg",
    "é%20?#.gif",
]


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_file_is_decoded_or_refused(kind, tmp_path) -> None:
    make, expected = FILES[kind]
    make(tmp_path / "a.png")
    assert (np.array([part in outcome(tmp_path) for part in expected.split("|")])).any(), outcome(tmp_path)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_will_do(name, tmp_path) -> None:
    make_file(tmp_path / name)
    assert outcome(tmp_path) == "decoded"


def test_the_same_picture_under_two_names_counts_twice(tmp_path) -> None:
    make_file(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    assert [item.path for item in open_sources([str(tmp_path)]).items()] == ["a.png", "b.png"]


def test_a_file_that_vanished_is_told(tmp_path) -> None:
    make_file(tmp_path / "a.png")
    (item,) = open_sources([str(tmp_path)]).items()
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_item(item)


@pytest.mark.parametrize("format", ["BMP", "TIFF", "PNG", "JPEG", "GIF"])
def test_a_file_cut_short_while_it_is_read_is_told_and_kills_nothing(format, tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (400, 400), dtype=np.uint8)  # which Pillow would map into memory: SIGBUS
    path = tmp_path / "a.png"
    path.write_bytes(saved(format, grey))
    real = images._raw_form

    def opened(image):
        os.truncate(path, 5000)
        return real(image)

    monkeypatch.setattr(images, "_raw_form", opened)
    assert "can't be decoded" in outcome(tmp_path)


def test_no_file_stays_open(tmp_path) -> None:
    for number, (data, _) in enumerate([*DECODED.values(), *REFUSED.values()]):
        (tmp_path / f"{number}.png").write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for item in open_sources([str(tmp_path)]).items():
        try:
            load_item(item)
        except InputError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
