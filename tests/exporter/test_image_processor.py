"""How pictures become inputs, as the configurations of published models say it: their forms, through the years."""

import json

import pytest

from exporter.image_processor import IMAGENET, pictures_of, read_processor
from runtime.contract.errors import InputError

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
OWN = {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
RESCALED = {"do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "do_resize": True}
EDGE = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
SQUARE = {"size": {"height": 224, "width": 224}}
FORMS = {
    "ViT, 2021": (
        {"feature_extractor_type": "ViTFeatureExtractor", **HALF, "resample": 2, "size": 224},
        None,
        "bilinear",
    ),
    "ViT": (
        {"image_processor_type": "ViTImageProcessor", **RESCALED, **HALF, "resample": 2, **SQUARE},
        None,
        "bilinear",
    ),
    "BEiT": (
        {
            "feature_extractor_type": "BeitFeatureExtractor", "crop_size": 224, "do_center_crop": False, "size": 224,
            **HALF, "resample": 2,
        },
        None,
        "bilinear",
    ),
    "DeiT": (
        {
            "feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "do_center_crop": True, "size": 256,
            **OWN, "resample": 3,
        },
        (256, 256),
        "bicubic",
    ),
    "CLIP, 2021": (
        {
            "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, "do_center_crop": True, "size": 224,
            **HALF, "resample": 3,
        },
        (224, 224),
        "bicubic",
    ),
    "CLIP, AIMv2": ({"image_processor_type": "CLIPImageProcessor", **RESCALED, **HALF, **EDGE}, (224, 224), "bicubic"),
    "DINOv2": (
        {
            "image_processor_type": "BitImageProcessor", **RESCALED, **OWN, **EDGE, "size": {"shortest_edge": 256},
            "resample": 3,
        },
        (256, 256),
        "bicubic",
    ),
    "DINOv3": (
        {
            "image_processor_type": "DINOv3ViTImageProcessorFast", "crop_size": None, "do_center_crop": None,
            "default_to_square": True, "data_format": "channels_first", **RESCALED, **OWN, "resample": 2, **SQUARE,
        },
        None,
        "bilinear",
    ),
    "SigLIP": (
        {"image_processor_type": "SiglipImageProcessor", **RESCALED, **HALF, "resample": 3, **SQUARE},
        None,
        "bicubic",
    ),
    "SigLIP 2": (
        {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, **RESCALED, **HALF, "resample": 2}
        | SQUARE,
        None,
        "bilinear",
    ),
    "edge alone": ({**RESCALED, **OWN, "size": {"shortest_edge": 224}}, (224, 224), "bicubic"),
}  # fmt: skip
"""By family: its preprocessor_config.json, what the resized picture covers (None: it is squashed), and the filter."""


@pytest.mark.parametrize("is_nested", [False, True], ids=["preprocessor_config", "processor_config"])
@pytest.mark.parametrize("family", FORMS)
def test_the_configuration_of_a_family_is_read(family, is_nested, tmp_path):
    held, cover, interpolation = FORMS[family]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"image_processor": held, "processor_class": "X"} if is_nested else held))
    found = pictures_of(read_processor(path), (224, 224), family)
    assert (found.fit, found.cover, found.interpolation) == ("crop" if cover else "squash", cover, interpolation)
    assert found.mean == pytest.approx(held["image_mean"])
    assert found.std == pytest.approx(held["image_std"])
    # A square of 256 whatever the aspect, of which 224 are cut, the runtime does not do.
    assert [note for note in found.notes if "whatever their aspect" in note] == [
        note for note in found.notes if family == "DeiT"
    ]
    assert len(found.notes) == (family == "DeiT")


def test_a_larger_input_sees_as_much_of_a_picture():
    assert pictures_of(FORMS["DINOv2"][0], (518, 518), "DINOv2").cover == (592, 592)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"image_mean": None}, "ImageNet's are taken"),
        ({"resample": 1}, "resizes pictures by lanczos"),
    ],
)
def test_what_the_runtime_does_otherwise_is_said(change, note):
    held = {name: one for name, one in {**FORMS["ViT"][0], **change}.items() if one is not None}
    assert any(note in one for one in pictures_of(held, (224, 224), "x").notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"longest_edge": 384}}, "longest_edge"),
        ({"size": {"shortest_edge": 56, "longest_edge": 1024}, "do_center_crop": False}, "longest_edge"),
        ({"size": {"max_height": 384, "max_width": 384}}, "max_height"),
        ({"size": {"height": 0, "width": 224}}, "resizes to"),
        ({"do_flip_channel_order": True}, "blue, green, red"),
    ],
)
def test_what_the_runtime_can_not_do_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        pictures_of({**FORMS["ViT"][0], **change}, (224, 224), "x")
