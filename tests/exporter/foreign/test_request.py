"""Preprocessors' files in the forms that models on the hub have."""

import json

import pytest

from exporter.foreign.request import ForeignSpec
from runtime.contract.errors import InputError, UsageError
from runtime.contract.manifest import read_manifest

HALF = [0.5, 0.5, 0.5]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIGLIP = {
    "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": HALF,
    "image_processor_type": "SiglipImageProcessor", "image_std": HALF, "processor_class": "SiglipProcessor",
    "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
CLIP = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
}  # fmt: skip
BEIT = {
    "crop_size": 224, "do_center_crop": False, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "BeitFeatureExtractor", "image_mean": HALF, "image_std": HALF, "resample": 2, "size": 224,
}  # fmt: skip
DINOV2 = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, **IMAGENET, "image_processor_type": "BitImageProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256},
}  # fmt: skip
DINOV3 = {
    "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
    "disable_grouping": None, "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True, "do_rescale": True,
    "do_resize": True, **IMAGENET, "image_processor_type": "DINOv3ViTImageProcessorFast", "input_data_format": None,
    "resample": 2, "rescale_factor": 0.00392156862745098, "return_tensors": None, "size": {"height": 224, "width": 224},
}  # fmt: skip


def spec(told, folder) -> ForeignSpec:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(told))
    return ForeignSpec(onnx="theirs.onnx", out=folder / "x.onnx", preprocessor=path)


@pytest.mark.parametrize(
    ("told", "size", "fit", "cover", "by"),
    [
        (SIGLIP, (224, 224), "squash", None, "bicubic"),
        (CLIP, (224, 224), "crop", (224, 224), "bicubic"),
        (CLIP | {"size": {"shortest_edge": 224}}, (224, 224), "crop", (224, 224), "bicubic"),
        (BEIT, (224, 224), "squash", None, "bilinear"),
        (DINOV2, (224, 224), "crop", (256, 256), "bicubic"),
        (DINOV2, (518, 518), "crop", (592, 592), "bicubic"),
        (DINOV2, (224, 448), "crop", (256, 512), "bicubic"),
        (DINOV3, (256, 256), "squash", None, "bilinear"),
        ({"image_processor": DINOV2, "processor_class": "X"}, (224, 224), "crop", (256, 256), "bicubic"),
    ],
    ids=["siglip", "clip", "clip-newer", "beit", "dinov2", "dinov2-518", "dinov2-wide", "dinov3", "nested"],
)
def test_real_files_say_how_pictures_are_brought_to_size(told, size, fit, cover, by, tmp_path):
    made = spec(told, tmp_path)
    how = made.preprocessing(size)
    assert (how.fit, how.resize_cover, how.crop) == (fit, cover, size)
    fields = told.get("image_processor", told)
    assert how.mean == pytest.approx(tuple(fields["image_mean"]))
    assert how.std == pytest.approx(tuple(fields["image_std"]))
    assert how.scale == pytest.approx(1 / 255)
    assert how.resize_filter == by


def test_what_is_not_normalised_or_scaled_stays_so(tmp_path):
    how = spec(SIGLIP | {"do_normalize": False, "do_rescale": False}, tmp_path).preprocessing((224, 224))
    assert (how.mean, how.std) == ((0, 0, 0), pytest.approx((1 / 255,) * 3))  # the value v becomes v
    assert how.scale == 1 / 255


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([], "is no configuration: it holds list"),
        ({"architectures": ["ViT"]}, "is no preprocessor_config.json"),
        (SIGLIP | {"image_mean": 0.5}, "no usable numbers"),
        (SIGLIP | {"image_std": [0.5, 0.5]}, "three numbers each"),
        (SIGLIP | {"image_std": [0.5, 0.5, 0]}, "three numbers each"),
        (SIGLIP | {"size": {"longest_edge": 512}}, "resizes to .*longest_edge.*, which the runtime does not"),
        (DINOV2 | {"crop_size": 0}, "which the runtime does not"),
        (DINOV2 | {"crop_size": {"height": 0, "width": 0}}, "which the runtime does not"),
        (SIGLIP | {"size": {"height": -1, "width": 224}}, "which the runtime does not"),
        (SIGLIP | {"rescale_factor": -1}, "rescale_factor must be a number above 0"),
        (SIGLIP | {"rescale_factor": float("nan")}, "rescale_factor must be a number above 0"),
        (SIGLIP | {"resample": float("inf")}, "no usable numbers"),
        (SIGLIP | {"size": "large"}, 'resizes to "large"'),
    ],
    ids=[
        "list",
        "other",
        "mean",
        "two",
        "zero",
        "longest",
        "no crop",
        "empty crop",
        "negative",
        "scale",
        "NaN",
        "infinite",
        "word",
    ],
)
def test_a_file_that_means_something_else_is_refused(told, said, tmp_path):
    with pytest.raises(InputError, match=said):
        spec(told, tmp_path).preprocessing((224, 224))


def test_the_files_filter_is_used_and_another_than_the_runtimes_is_said(exported, tmp_path, capsys):
    from exporter.__main__ import main

    path = tmp_path / "preprocessor_config.json"
    source = exported("vit", "eager", "ts17")
    for resample, filter_name, says in ((2, "bilinear", False), (1, "bicubic", True)):
        path.write_text(json.dumps(BEIT | {"resample": resample}))
        out = tmp_path / f"{resample}.onnx"
        assert main(["--onnx", str(source), "--out", str(out), "--preprocessor", str(path)]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("transformers resizes pictures by lanczos, here bicubic" in said) is says
        assert read_manifest(out).preprocessing.resize_filter == filter_name


def test_the_filter_is_an_option_that_a_file_contradicts(tmp_path):
    made = ForeignSpec(onnx="theirs.onnx", out=tmp_path / "x.onnx", interpolation="bilinear")
    assert made.preprocessing((224, 224)).resize_filter == "bilinear"
    with pytest.raises(UsageError, match=r"contradicts .*--interpolation"):
        ForeignSpec(onnx="theirs.onnx", out=tmp_path / "x.onnx", interpolation="bilinear", preprocessor="p.json")
