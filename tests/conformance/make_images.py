"""Makes the pictures that Python's and C++'s tests both decode: `python tests/conformance/make_images.py`.

`cases/images/` holds the pictures; `cases/images.json` says what Python makes of them: `preprocessing`, the ways in
which each is made into an input, and `pictures`, each with

- `file`: its name in `cases/images/`;
- `size`, `sha256`: height and width of the decoded picture, and the SHA-256 of its pixels (rows of R, G, B); or
- `refused`: why it is refused. C++ refuses it too, in words of its own;
- `prepared`: for each way, the SHA-256 of the pixels (H, W, 3) and of the normalised input (3, H, W) in float32.

Pictures that are there already are kept: another version of Pillow would write other bytes. Forms of JPEG that Pillow
doesn't write are made by libjpeg-turbo's `cjpeg` and `jpegtran`, if they are installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from encoded_pictures import chunk, encodings, picture, png, saved, with_orientation  # noqa: E402
from preprocessing import standard_preprocessing  # noqa: E402

from runtime.contract.errors import InputError  # noqa: E402
from runtime.contract.manifest import Preprocessing  # noqa: E402
from runtime.images.decode import decode_image  # noqa: E402
from runtime.images.preprocess import fitted, preprocess  # noqa: E402

CASES = Path(__file__).parent / "cases"
SAMPLINGS = ("4x1", "1x2", "4x2", "3x1", "2x2,2x1,1x1", "1x1,2x2,2x2")
WAYS = (
    ((28, 28), "crop", "bicubic"),
    ((42, 14), "squash", "bicubic"),
    ((28, 42), "pad", "bicubic"),
    ((28, 28), "crop", "bilinear"),
    ((14, 42), "squash", "bilinear"),
)
"""Size of the input, `fit` and `resize_filter`."""


def ways() -> list[Preprocessing]:
    return [standard_preprocessing(size, "float32", fit, by) for size, fit, by in WAYS]


def pictures() -> Iterator[tuple[str, bytes]]:
    """New pictures by the names of their files."""
    rng = np.random.default_rng(13)
    image = picture(np.random.default_rng(1), 45, 31)
    yield from encodings(image, rng).items()
    for orientation in range(1, 9):
        yield (
            f"orientation {orientation}.jpg",
            saved(image.crop((0, 0, 20, 9)), "JPEG", exif=with_orientation(orientation)),
        )
    for width, height in ((1, 1), (1, 60), (60, 1), (2, 3), (7, 300), (300, 5)):
        yield f"{width} x {height}.png", saved(picture(rng, width, height), "PNG")
    yield from odd_jpegs(image)
    yield from damaged(image)


def odd_jpegs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    if shutil.which("cjpeg") is None or shutil.which("jpegtran") is None:
        sys.stderr.write("cjpeg or jpegtran is not installed: no new JPEGs of odd samplings or arithmetic coding\n")
        return
    for sampling in SAMPLINGS:
        for kind in ([], ["-progressive"]):
            command = ["cjpeg", "-quality", "85", "-sample", sampling, *kind]
            done = subprocess.run(command, input=saved(image, "PPM"), capture_output=True, check=True)
            name = f"sampling {sampling.replace(',', ' ')}{' progressive' * bool(kind)}.jpg"
            yield name, done.stdout
    done = subprocess.run(["jpegtran", "-arithmetic"], input=saved(image, "JPEG"), capture_output=True, check=True)
    yield "arithmetic coding.jpg", done.stdout


def damaged(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    pixels = np.asarray(image)
    jpeg, whole, webp = saved(image, "JPEG"), png(pixels), saved(image, "WEBP")
    yield "empty.jpg", b""
    yield "zeros.png", bytes(100)
    yield "text.jpg", b"not a picture"
    yield "page.jpg", b"<!DOCTYPE html>\n<html><body>404"
    yield "end marker before the pixels.jpg", jpeg[:20] + b"\xff\xd9" + jpeg
    yield "cut in its header.jpg", jpeg[:100]
    yield "cut.jpg", jpeg[:-40]
    yield "without a byte of its pixels.jpg", jpeg[:-3]
    yield (
        "progressive without its last scan.jpg",
        (data := saved(image, "JPEG", progressive=True))[: data.rindex(b"\xff\xda")],
    )
    place = jpeg.index(b"\xff\xc0") + 5
    yield "65,000 x 65,000.jpg", jpeg[:place] + b"\xfd\xe8\xfd\xe8" + jpeg[place + 4 :]
    yield "cut.png", whole[:-60]
    yield "without end chunk.png", whole[:-14]
    yield "wrong checksum of the header.png", whole.replace(b"IHDR\0\0\0\x2d", b"IHDR\0\0\0\x2e")
    yield "wrong checksum of the transparency.png", png(pixels, chunk(b"tRNS", bytes(6), sound=False))
    yield "wrong checksum of the pixels.png", whole[:-16] + bytes(4) + whole[-12:]
    yield "damaged pixels.png", whole[:90] + bytes([whole[90] ^ 255]) + whole[91:]
    yield "damaged EXIF.png", png(pixels, chunk(b"eXIf", b"II*\0\xff\xff\xff\xff" + bytes(40)))
    yield "EXIF with a wrong checksum.png", png(pixels, chunk(b"eXIf", with_orientation(6).tobytes()[6:], sound=False))
    yield "0 x 0.png", png(pixels).replace(whole[8:33], chunk(b"IHDR", bytes(8) + b"\x08\x02\0\0\0"))
    yield "cut.webp", webp[:-40]
    yield "damaged.webp", webp[:20] + bytes(30) + webp[50:]
    yield "text after RIFF.webp", b"RIFF\0\0\0\0WEBPnone of it"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def outcome(name: str, content: bytes) -> dict[str, Any]:
    """What Python makes of a picture."""
    try:
        image = decode_image(content)
    except InputError as error:
        return {"file": name, "refused": str(error)}
    prepared = [[sha256(fitted(image, way).tobytes()), sha256(preprocess(image, way).tobytes())] for way in ways()]
    return {"file": name, "size": [image.height, image.width], "sha256": sha256(image.tobytes()), "prepared": prepared}


def listed(folder: Path) -> dict[str, Any]:
    """The content of `images.json` for the pictures in a folder."""
    described = [
        {"fit": way.fit, "crop": way.crop, "resize_cover": way.resize_cover, "scale": way.scale}
        | {"mean": way.mean, "std": way.std, "resize_filter": way.resize_filter}
        for way in ways()
    ]
    files = sorted(folder.iterdir())
    return {"preprocessing": described, "pictures": [outcome(file.name, file.read_bytes()) for file in files]}


def written(content: dict[str, Any]) -> str:
    """`images.json`, a line for each picture."""
    lines = {key: ",\n".join(json.dumps(one) for one in content[key]) for key in content}
    return "{" + ",\n".join(f'"{key}": [\n{text}\n]' for key, text in lines.items()) + "}\n"


if __name__ == "__main__":
    (CASES / "images").mkdir(exist_ok=True)
    for name, content in pictures():
        if not (path := CASES / "images" / name).exists():
            path.write_bytes(content)
    (CASES / "images.json").write_text(written(listed(CASES / "images")))
