"""`--draft`: large JPEGs are scaled while they are decoded, and what the model gets stays within a bound."""

from __future__ import annotations

import functools
import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from preprocessing import standard_preprocessing

from runtime.__main__ import main
from runtime.images.decode import DRAFT_MARGIN, decode_image, drafted
from runtime.images.preprocess import preprocess, resized_to

MEAN, P99 = 2.5, 12
"""Largest mean difference of pixel values of 255, and of 99 of 100. Real pictures: runtime/MEASUREMENTS.md."""
CROP = standard_preprocessing((56, 56), "uint8")
FITS = {
    "crop": CROP,
    "squash": CROP.model_copy(update={"fit": "squash", "resize_cover": None}),
    "pad": CROP.model_copy(update={"fit": "pad", "resize_cover": None}),
}


def photo(width, height, **options) -> bytes:
    """A JPEG with structure of all sizes, as photographs have, and sharp edges."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)
    channels = []
    for channel in range(3):
        values = np.full((height, width), 110.0)
        for period in (400, 170, 90, 47, 23):
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
            values += period / 13 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
        values += 40 * ((x + 2 * y) // 131 % 2) + 15 * channel
        channels.append(values)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.dstack(channels), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def both(data, how=CROP):
    """The model's input without and with the scaling, and the scaled picture."""
    small = decode_image(data, draft=functools.partial(resized_to, how=how))
    return preprocess(decode_image(data), how).astype(int), preprocess(small, how).astype(int), small


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(611, 487), (1003, 1201)], ids=str)
def test_the_models_input_stays_within_the_bound(size, orientation) -> None:
    whole, scaled, small = both(photo(*size, **turned(orientation)))
    assert drafted(small) is not None  # the case is what it says
    difference = np.abs(whole - scaled)
    assert difference.mean() <= MEAN
    assert np.percentile(difference, 99) <= P99
    shifted = np.abs(whole[:, 1:] - scaled[:, :-1])  # so the lines above can fail: a pixel's shift is seen
    assert shifted.mean() > MEAN


@pytest.mark.parametrize("fit", FITS)
def test_every_fit_is_as_without_it(fit) -> None:
    whole, scaled, small = both(photo(731, 601, **turned(6)), FITS[fit])
    assert drafted(small) is not None
    assert np.abs(whole - scaled).mean() <= MEAN


@pytest.mark.parametrize(
    ("side", "part"), [(64 * 4 - 1, 1), (64 * 4, 2), (64 * 8 - 1, 2), (64 * 8, 4), (64 * 16, 8)], ids=str
)
def test_the_scaled_picture_is_twice_as_large_as_what_it_is_resized_to(side, part) -> None:
    whole, scaled, small = both(photo(side + 100, side))
    assert small.height == -(-side // part) >= (DRAFT_MARGIN * 64 if part > 1 else 0)
    if part == 1:
        np.testing.assert_array_equal(whole, scaled)


def test_other_formats_and_other_text_in_them_are_as_without_it() -> None:
    text = PngInfo()
    text.add_text("itae-drafted", "yes")
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(600, 500))).save(file, "PNG", pnginfo=text)
    whole, scaled, small = both(file.getvalue())
    assert small.size == (600, 500)
    np.testing.assert_array_equal(whole, scaled)
    np.testing.assert_array_equal(preprocess(Image.open(file), CROP), whole)


def test_rows_with_and_without_it_do_not_mix(tiny, tmp_path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo(611, 487))
    arguments = ["embed", str(tiny), str(folder), "--out", str(tmp_path / "store")]
    assert main([*arguments, "--draft"]) == 0
    assert '"draft": true' in json.dumps(json.loads((tmp_path / "store" / "_store.json").read_text()))
    assert main([*arguments, "--draft"]) == 0
    capsys.readouterr()
    assert main(arguments) == 2
    assert "draft is true there, false here" in capsys.readouterr().err
    assert main(["embed", str(tiny), str(folder), "--out", str(tmp_path / "whole")]) == 0
    assert "draft" not in (tmp_path / "whole" / "_store.json").read_text()


def test_workers_scale_too(tiny, tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo(611, 487))
    rows = []
    for number, more in enumerate([[], ["--devices", "cpu,cpu"]]):
        out = tmp_path / str(number)
        assert main(["embed", str(tiny), str(folder), "--out", str(out), "--draft", *more]) == 0
        rows.append(next(iter(out.glob("*.parquet"))))
    import pyarrow.parquet as pq

    first, second = (np.array(pq.read_table(path)["embedding"].to_pylist()) for path in rows)
    np.testing.assert_allclose(first, second, atol=1e-5)
