"""The decoders and the preprocessing of runtime/cpp, held against Python's: the same pixels, the same verdicts."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cpp_programs import Decoder, decoder
from encoded_pictures import encodings, picture
from preprocessing import standard_preprocessing

from runtime.contract.errors import InputError
from runtime.contract.manifest import Preprocessing
from runtime.images.decode import decode_image
from runtime.images.preprocess import fitted, preprocess
from tests.runtime.images import test_hostile_images as hostile
from tests.runtime.images import test_mended as mended

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

NOT_READ = ("BMP", "TIFF", "GIF", "HEIC", "AVIF")
"""Formats that Python reads and C++ doesn't."""
SIZES = ((1, 1), (3, 2), (17, 300), (61, 47), (224, 224), (257, 100), (401, 263))
WAYS = (
    ((224, 224), "crop", "bicubic"),
    ((98, 140), "squash", "bicubic"),
    ((140, 98), "pad", "bicubic"),
    ((224, 224), "crop", "bilinear"),
    ((98, 140), "squash", "bilinear"),
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def by_python(content: bytes, way: Preprocessing | None = None) -> list[str]:
    """Python's answer in the form of `itae-decode`."""
    try:
        image = decode_image(content)
    except InputError as error:
        return ["refused", str(error)]
    words = ["decoded", str(image.height), str(image.width), sha256(image.tobytes())]
    if way is not None:
        words += [sha256(fitted(image, way).tobytes()), sha256(preprocess(image, way).tobytes())]
    return words


@pytest.fixture(scope="module")
def decode() -> Iterator[Decoder]:
    with decoder() as running:
        yield running


def agree(python: list[str], cpp: list[str]) -> bool:
    return python == cpp or (python[0] == cpp[0] == "refused")


@pytest.mark.parametrize(("size", "fit", "by"), WAYS, ids=str)
def test_pictures_of_every_form_have_pythons_pixels_and_inputs(size, fit, by) -> None:
    way = standard_preprocessing(size, "float32", fit, by)
    rng = np.random.default_rng(len(fit))
    pictures = 0
    with decoder(way) as decode:
        for width, height in SIZES:
            for name, content in encodings(picture(rng, width, height), rng).items():
                expected = by_python(content, way)
                assert expected[0] == "decoded", (name, expected)
                assert decode(content) == expected, (name, width, height)
                pictures += 1
    assert pictures > 200


HOSTILE = {
    **{name: content for name, (content, _) in (hostile.DECODED | hostile.REFUSED | hostile.MODERN).items()},
    **{f"metadata: {name}": mended.png(*chunks) for name, chunks in mended.METADATA.items()},
    "Adobe's CMYK": hostile.inverted_cmyk(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_hostile_images_of_pythons_tests_have_its_verdicts(name, decode) -> None:
    content = HOSTILE[name]
    kind = hostile.format_of(content[:1024])
    got = decode(content)
    if kind in NOT_READ:
        assert got == ["refused", f"is {kind}, which isn't read, only JPEG, PNG, WEBP"]
        return
    expected = by_python(content)
    assert agree(expected, got), (expected, got)
    if expected[0] == "refused" and not expected[1].startswith(("can't be decoded", "is damaged, or", "has more than")):
        assert got[1] == expected[1].replace(", BMP, TIFF, GIF, AVIF, HEIC", "")


@pytest.mark.parametrize("kind", mended.JPEGS)
def test_jpegs_cut_anywhere_have_pythons_verdicts(kind, decode) -> None:
    data = mended.jpeg(**mended.JPEGS[kind])
    verdicts = set()
    for lost in [0, 1, 2, 3, 4, 5, 6, 9, *range(12, len(data), max(1, len(data) // 40))]:
        expected = by_python(data[: len(data) - lost])
        assert agree(expected, decode(data[: len(data) - lost])), (lost, expected)
        verdicts.add(expected[0])
    assert verdicts == {"decoded", "refused"}
    assert agree(by_python(data[:-2] + bytes(500)), decode(data[:-2] + bytes(500)))


def with_checksums(data: bytearray) -> bytes:
    """A PNG whose checksums are right, so that its content is looked at."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def altered(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        place = rng.randrange(min(len(data), 300) if rng.random() < 0.5 else len(data))
        match rng.randrange(5):
            case 0 | 1:
                data[place] = rng.randrange(256)
            case 2:
                del data[place : place + rng.randrange(1, 9)]
            case 3:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 4 if rng.random() < 0.3:
                del data[max(place, 1) :]
    is_png = data[:4] == b"\x89PNG" and rng.random() < 0.6
    return with_checksums(data) if is_png and len(data) < 1 << 16 else bytes(data)


def test_damaged_pictures_have_pythons_verdicts_and_pixels(decode) -> None:
    rng = random.Random(5)
    forms = encodings(picture(np.random.default_rng(4), 45, 33), np.random.default_rng(3))
    decoded, differing = 0, []
    for _ in range(3000):
        name, content = rng.choice(list(forms.items()))
        data = altered(content, rng)
        expected, got = by_python(data), decode(data)
        decoded += expected[0] == "decoded"
        if not agree(expected, got):
            differing.append((name, expected, got))
    assert decoded > 500
    assert len(differing) <= 10, differing  # runtime/cpp/README.md says which they may be


def test_a_png_of_fewer_rows_than_it_says_is_refused() -> None:
    """Python shows black rows for those that are missing: the one difference that is on purpose."""
    content = hostile.png(height=hostile.HEIGHT + 5)
    assert by_python(content)[0] == "decoded"
    with decoder() as decode:
        assert decode(content) == ["refused", "can't be decoded (image file is truncated)"]


def test_bombs_take_little_memory() -> None:
    with decoder() as decode:
        for content in HOSTILE.values():
            decode(content)
        # Not by getrusage, whose peak begins with that of the process that started this one.
        peak = int(Path(f"/proc/{decode.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
        assert decode.process.stdin is not None
        decode.process.stdin.close()
        assert decode.process.wait(10) == 0
    assert peak < 400_000  # KiB: 64 megapixels and a file of 200 MB that one of them says it has
