"""Preprocessing, compared with transformers' own processor of DINOv2 pixel by pixel."""

import os

import numpy as np
import PIL
import pytest
from PIL import Image
from preprocessing import standard_preprocessing

import runtime.images.preprocess as module
from runtime.contract.errors import InputError
from runtime.images.preprocess import (
    FILTERS,
    contained_size,
    fitted,
    pad_color,
    preprocess,
    resize_and_crop,
    resized_size,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FLOAT = standard_preprocessing((224, 224), "float32")
UINT8 = standard_preprocessing((224, 224), "uint8")

SIZES = [  # (w, h)
    *[(1, 1), (2, 3), (31, 17), (224, 224), (255, 257), (256, 256), (256, 300), (333, 256), (257, 255)],
    *[(640, 480), (480, 640), (767, 1023), (1500, 1001), (2000, 37)],
    *[(1000, 3), (3, 1000), (511, 5), (5, 511), (300, 1), (1, 300)],
]
TALL = [(348, 782), (260, 868), (300, 603), (290, 592), (100, 1000), (270, 2700)]  # (w, h): columns first


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 10_000 + height)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode)


@pytest.fixture(scope="module")
def processor():
    bit = pytest.importorskip("transformers.models.bit.image_processing_pil_bit")
    made = bit.BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return lambda image: made(image, return_tensors="np")["pixel_values"][0]


def ids(sizes):
    return [f"{width}x{height}" for width, height in sizes]


needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older Pillows resize the rows first, always"
)


@pytest.mark.parametrize("size", SIZES, ids=ids(SIZES))
def test_pixels_equal_those_of_transformers(size, processor) -> None:
    image = noise(*size)
    expected = processor(image)
    got = preprocess(image, FLOAT)
    assert got.dtype == expected.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


@needs_pillow_13
@pytest.mark.parametrize("size", TALL, ids=ids(TALL))
def test_pixels_of_tall_pictures_equal_those_of_transformers(size, processor) -> None:
    np.testing.assert_array_equal(preprocess(noise(*size), FLOAT), processor(noise(*size)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_pixels_of_other_modes_equal_those_of_transformers(mode, processor) -> None:
    image = noise(120, 90, mode)
    np.testing.assert_array_equal(preprocess(image, FLOAT), processor(image))


def test_transparent_palette_is_blended_over_white_as_in_transformers(processor) -> None:
    image = noise(120, 90, "P")
    image.info["transparency"] = bytes(range(0, 256, 2))  # alpha for the first half of the entries
    expected = processor(image)
    np.testing.assert_array_equal(preprocess(image, FLOAT), expected)
    del image.info["transparency"]
    opaque = preprocess(image, FLOAT)
    assert not np.array_equal(opaque, expected)  # the case is what it says


@pytest.mark.parametrize("size", [(90, 700), (700, 90), (300, 200)], ids=str)
def test_uint8_input_holds_the_same_pixels(size) -> None:
    pixels = preprocess(noise(*size), UINT8)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (224, 224, 3)
    mean, std = np.array(UINT8.mean), np.array(UINT8.std)
    by_graph = (pixels * UINT8.scale - mean) / std
    np.testing.assert_allclose(by_graph.transpose(2, 0, 1), preprocess(noise(*size), FLOAT), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 800), (800, 300), (300, 301), (9, 700), (700, 9)], ids=str)
def test_the_size_of_the_pieces_changes_nothing(size, monkeypatch) -> None:
    whole = preprocess(noise(*size), UINT8)
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 5000)
    np.testing.assert_array_equal(preprocess(noise(*size), UINT8), whole)


@pytest.mark.parametrize("by", FILTERS)
def test_what_is_left_out_before_the_crop_changes_nothing(by) -> None:
    rng = np.random.default_rng(3)
    for width, height, side in rng.integers([1, 1, 1], [900, 900, 20], (150, 3)).tolist():
        cover = (side * 16, side * 16)
        image = noise(width, height)
        tall, wide = resized_size((height, width), cover)
        first, second = (wide, height), (wide, tall)
        if height - tall > 0 and height - tall > 2 * (width - wide):
            first = (width, tall)
        if max(tall, wide) > 8000:
            continue
        whole = image.resize(first, FILTERS[by]).resize(second, FILTERS[by])
        top, left = (tall - side * 14) // 2, (wide - side * 14) // 2
        expected = whole.crop((left, top, left + side * 14, top + side * 14))
        got = resize_and_crop(image, cover, (side * 14, side * 14), by)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected), f"{width} x {height} to {cover}")


CROPPED = [  # size (w, h), crop, whether Pillow's box of the crop is exact in single precision
    ((500, 500), 224, True),
    ((1024, 512), 224, True),
    ((77, 77), 224, True),
    ((500, 500), 256, True),
    ((500, 375), 224, False),
    ((300, 256), 250, True),
    ((256, 500), 64, False),  # Pillow would resize the columns of the box first, and the rows of the picture
]


@pytest.mark.parametrize("by", FILTERS)
@pytest.mark.parametrize(("size", "crop", "is_exact"), CROPPED, ids=str)
def test_a_crop_is_resized_in_one_step_where_that_is_exact(size, crop, is_exact, by, monkeypatch) -> None:
    steps = 0
    real = Image.Image.resize

    def resize(image, *rest):
        nonlocal steps
        steps += 1
        return real(image, *rest)

    monkeypatch.setattr(Image.Image, "resize", resize)
    cover = 256 if crop > 64 else 64
    got = resize_and_crop(noise(*size), (cover, cover), (crop, crop), by)
    monkeypatch.undo()
    tall, wide = resized_size(size[::-1], (cover, cover))
    assert (steps == 1) == is_exact
    top, left = (tall - crop) // 2, (wide - crop) // 2
    expected = noise(*size).resize((wide, tall), FILTERS[by]).crop((left, top, left + crop, top + crop))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


STRIPS = [((3000, 1), 224 * 224), ((1, 3000), 768_000)]  # the first in one step, the second in pieces


@pytest.mark.parametrize(("size", "piece"), STRIPS, ids=["flat", "upright"])
def test_strip_never_exists_at_its_resized_size(size, piece, monkeypatch) -> None:
    largest = 0
    real = Image.Image.resize

    def resize(image, to, *rest):
        nonlocal largest
        largest = max(largest, to[0] * to[1])
        return real(image, to, *rest)

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert preprocess(noise(*size), UINT8).shape == (224, 224, 3)
    assert piece <= largest <= module._CHUNK_PIXELS  # of 768,000 x 256 pixels


@pytest.mark.parametrize("size", [(8193, 1), (1, 8193), (100_000, 2)], ids=str)
def test_too_narrow_a_strip_is_refused(size) -> None:
    with pytest.raises(InputError, match=rf"has {size[0]} x {size[1]} pixels, too narrow a strip"):
        preprocess(Image.new("RGB", size), FLOAT)


# Other sizes than 224

CASES = [  # size (h, w), cover (H, W), resized (H, W)
    ((100, 100), (256, 256), (256, 256)),
    ((333, 500), (256, 256), (256, 384)),
    ((500, 333), (256, 256), (384, 256)),
    ((480, 640), (592, 592), (592, 789)),
    ((480, 640), (256, 512), (384, 512)),
    ((100, 400), (256, 512), (256, 1024)),
    ((640, 480), (512, 256), (512, 384)),
    ((1, 3000), (256, 256), (256, 768_000)),
    ((7, 3), (48, 96), (224, 96)),
]


@pytest.mark.parametrize(("size", "cover", "expected"), CASES, ids=str)
def test_resized_size_is_the_smallest_that_covers(size, cover, expected) -> None:
    assert resized_size(size, cover) == expected


def test_resized_size_always_covers_and_meets_one_side() -> None:
    rng = np.random.default_rng(0)
    for height, width, cover_height, cover_width in rng.integers(1, 2000, (2000, 4)).tolist():
        got = resized_size((height, width), (cover_height, cover_width))
        assert got[0] >= cover_height
        assert got[1] >= cover_width
        assert got[0] == cover_height or got[1] == cover_width


@pytest.mark.parametrize(("side", "cover"), [(14, 16), (28, 32), (98, 112), (224, 256), (518, 592)])
def test_cover_keeps_256_to_224(side, cover) -> None:
    assert standard_preprocessing((side, side), "float32").resize_cover == (cover, cover)


def test_nonsquare_crop_is_cut_from_the_centre_with_offsets_rounded_down() -> None:
    how = standard_preprocessing((28, 56), "uint8")
    assert how.resize_cover == (32, 64)
    ramp = np.zeros((33, 65, 3), np.uint8)
    ramp[..., 0] = np.arange(65)
    ramp[..., 1] = np.arange(33)[:, None]
    got = np.asarray(resize_and_crop(Image.fromarray(ramp), (33, 65), (28, 56)))
    assert got.shape == (28, 56, 3)
    assert got[0, 0].tolist() == [4, 2, 0]  # (65 - 56) // 2 and (33 - 28) // 2


# The whole picture: pad and squash


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """As Pillow 13 resizes, with any Pillow."""
    first = (width, image.height)
    if image.height > height and image.height - height > 2 * (image.width - width):
        first = (image.width, height)
    once = image.resize(first, Image.Resampling.BICUBIC)
    return np.asarray(once.resize((width, height), Image.Resampling.BICUBIC))


CONTAINED = [  # size (h, w), box (H, W), resized (H, W)
    ((100, 100), (224, 224), (224, 224)),
    ((333, 500), (224, 224), (149, 224)),
    ((500, 333), (224, 224), (224, 149)),
    ((10, 20), (224, 224), (112, 224)),
    ((480, 640), (28, 56), (28, 37)),
    ((100, 400), (28, 56), (14, 56)),
    ((1, 3000), (224, 224), (1, 224)),
    ((3000, 1), (224, 224), (224, 1)),
]


@pytest.mark.parametrize(("size", "box", "expected"), CONTAINED, ids=str)
def test_contained_size_is_the_largest_that_the_box_holds(size, box, expected) -> None:
    assert contained_size(size, box) == expected


@pytest.mark.parametrize("size", [*SIZES, *TALL, (100_000, 2), (2, 100_000)], ids=str)
@pytest.mark.parametrize("box", [(224, 224), (28, 56)], ids=str)
def test_padding_keeps_all_of_the_picture_in_the_middle_of_the_mean_colour(size, box) -> None:
    image = noise(*size)
    height, width = contained_size((image.height, image.width), box)
    expected = np.empty((*box, 3), np.uint8)
    expected[:] = 124, 116, 104
    top, left = (box[0] - height) // 2, (box[1] - width) // 2
    expected[top : top + height, left : left + width] = resized(image, height, width)
    np.testing.assert_array_equal(preprocess(image, standard_preprocessing(box, "uint8", "pad")), expected)


@pytest.mark.parametrize("size", [*SIZES, *TALL, (100_000, 2), (2, 100_000)], ids=str)
@pytest.mark.parametrize("box", [(224, 224), (28, 56)], ids=str)
def test_squashing_keeps_all_of_the_picture_and_not_its_aspect(size, box) -> None:
    image = noise(*size)
    got = preprocess(image, standard_preprocessing(box, "uint8", "squash"))
    np.testing.assert_array_equal(got, resized(image, *box))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_what_differs_at_the_edge_alone_is_seen_unless_it_is_cropped(fit) -> None:
    first = noise(300, 200)
    second = first.copy()
    second.paste((255, 0, 255), (0, 0, 10, 200))
    pixels = [preprocess(image, standard_preprocessing((56, 56), "float32", fit)) for image in (first, second)]
    assert np.array_equal(*pixels) == (fit == "crop")


def test_the_colour_of_the_padding_is_about_0_when_it_is_normalised() -> None:
    how = standard_preprocessing((56, 56), "float32", "pad")
    assert pad_color(how) == (124, 116, 104)
    edge = preprocess(noise(300, 100), how)[:, 0, 0]
    assert np.abs(edge).max() < 0.5 / 255 / min(how.std)


def test_a_picture_of_the_inputs_own_size_stays_as_it_is_unless_it_is_cropped() -> None:
    image = noise(56, 28)
    for fit in ("pad", "squash"):
        assert fitted(image, standard_preprocessing((28, 56), "uint8", fit)).tobytes() == image.tobytes()


def test_standard_preprocessing_of_each_dtype() -> None:
    assert (FLOAT.layout, FLOAT.dtype, FLOAT.normalized_by) == ("NCHW", "float32", "caller")
    assert (UINT8.layout, UINT8.dtype, UINT8.normalized_by) == ("NHWC", "uint8", "graph")
    assert UINT8.scale == 1 / 255


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_the_manifests_filter_resizes(fit) -> None:
    image = noise(90, 61)
    by = {name: np.asarray(fitted(image, standard_preprocessing((28, 56), "uint8", fit, name))) for name in FILTERS}
    assert (by["bicubic"] != by["bilinear"]).mean() > 0.2
    if fit == "squash":
        np.testing.assert_array_equal(by["bilinear"], np.asarray(image.resize((56, 28), Image.Resampling.BILINEAR)))
