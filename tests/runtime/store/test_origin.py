"""What identifies the rows of a store."""

import typing

import pytest

from runtime.contract.manifest import Preprocessing, read_manifest
from runtime.contract.schema import FileRecord
from runtime.store.origin import CONSTANT_PREPROCESSING, differences, identity, options_of, origin_of, random_weights

ORIGIN = {
    "model": "a.onnx",
    "model_sha256": "a" * 64,
    "options": {"precision": "fp32", "itae": {"layers": [2]}},
    "preprocessing": {"alpha": "blended over white", "crop": [224, 224], "mean": [0.5, 0.5, 0.5]},
    "provider": "cpu",
}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "b.onnx"},
        {"options": {"precision": "fp32", "method": {"name": "itae", "layers": [2]}, "new": False}},
        {"preprocessing": {**ORIGIN["preprocessing"], "alpha": "white"}},
    ],
    ids=["a file's name", "options in other words", "preprocessing in other words"],
)
def test_words_do_not_make_another_identity(change) -> None:
    assert differences(ORIGIN, {**ORIGIN, **change}) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": "b" * 64}, "model_sha256 is aaaaaaaaaaaa... there, bbbbbbbbbbbb... here"),
        ({"provider": "openvino"}, "provider is cpu there, openvino here"),
        (
            {"preprocessing": {**ORIGIN["preprocessing"], "crop": [224, 210]}},
            "preprocessing.crop is [224, 224] there, [224, 210] here",
        ),
        ({"external_data_sha256": "c" * 64}, "external_data_sha256 is null there, cccccccccccc... here"),
        ({"of a later version": 1}, "of a later version is null there, 1 here"),
    ],
)
def test_what_changes_embeddings_makes_another_identity(change, words) -> None:
    assert differences(ORIGIN, {**ORIGIN, **change}) == words
    assert identity({**ORIGIN, **change}) != identity(ORIGIN)


def test_options_explain_another_model() -> None:
    other = {**ORIGIN, "model_sha256": "b" * 64, "options": {"precision": "fp16", "itae": {"layers": [2]}, "new": 1}}
    assert differences(ORIGIN, other).endswith("; options.precision is fp32 there, fp16 here")


@pytest.mark.parametrize("origin", [{}, {"options": 3, "preprocessing": [1]}])
def test_the_origin_of_another_program_may_hold_anything(origin) -> None:
    assert differences(origin, origin) == ""
    assert "model_sha256 is null there" in differences(origin, ORIGIN)


def test_fields_that_do_not_count_have_one_value() -> None:
    for name in CONSTANT_PREPROCESSING:
        assert len(typing.get_args(Preprocessing.model_fields[name].annotation)) == 1, f"{name} must count now"


def test_the_fit_counts_and_that_of_older_stores_is_the_crop(tiny) -> None:
    manifest = read_manifest(tiny)
    assert "fit" not in origin_of(manifest, "cpu")["preprocessing"]  # as before there was a choice
    found = [identity(origin_of(manifest, "cpu"))]
    for fit in ("pad", "squash"):
        how = manifest.preprocessing.model_copy(update={"fit": fit, "resize_cover": None})
        found.append(identity(origin_of(manifest.model_copy(update={"preprocessing": how}), "cpu")))
    assert found[0] != found[1] != found[2] != found[0]
    assert "preprocessing.fit is " in differences(*found[:2])


def test_the_filter_counts_and_bicubic_has_the_words_of_any_format(tiny) -> None:
    manifest = read_manifest(tiny)
    bicubic = origin_of(manifest, "cpu")
    how = manifest.preprocessing.model_copy(update={"resize_filter": "bilinear"})
    bilinear = origin_of(manifest.model_copy(update={"preprocessing": how}), "cpu")
    assert identity(bicubic) != identity(bilinear)
    older = bicubic | {"preprocessing": bicubic["preprocessing"] | {"resize_filter": "bicubic, antialiased"}}
    assert identity(bicubic) == identity(older)


def test_weights_beside_a_model_are_of_its_identity(tiny) -> None:
    manifest = read_manifest(tiny)
    found = []
    for sha256 in (None, "a" * 64, "b" * 64):
        data = None if sha256 is None else FileRecord(name="tiny.onnx.data", bytes=1, sha256=sha256)
        files = manifest.files.model_copy(update={"external_data": data})
        found.append(identity(origin_of(manifest.model_copy(update={"files": files}), "cpu")))
    assert all(one not in found[:place] for place, one in enumerate(found))


def test_options_of_format_1_are_given_in_the_words_of_today() -> None:
    assert options_of({"options": {"size": "vits14", "itae": None}}) == {"size": "vits14", "method": {"name": "none"}}
    itae = {"layers": [2], "source": "key"}
    assert options_of({"options": {"itae": itae}}) == {"method": {"name": "itae", **itae}}


def test_options_of_today_are_those_of_the_manifest(tiny) -> None:
    manifest = read_manifest(tiny)
    assert options_of(origin_of(manifest, "cpu")) == manifest.options.model_dump(mode="json")


@pytest.mark.parametrize("options", [None, 3, {"itae": "x"}, {"itae": [1]}])
def test_options_of_another_program_are_given_as_they_are(options) -> None:
    assert options_of({"options": options}) == (options if isinstance(options, dict) else {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [("random", "random"), ("random:3", "random:3"), ("random_crops.pth", None), ("hf:facebook/random", None)],
)
def test_random_weights_are_known_by_the_manifest_and_in_older_stores_by_the_option(source, expected, tiny) -> None:
    assert random_weights({"options": {"weights": source}}) == expected
    manifest = read_manifest(tiny)
    weights = manifest.model.weights.model_copy(update={"source": source, "kind": "random" if expected else "path"})
    backbone = manifest.model.model_copy(update={"weights": weights})
    assert random_weights(origin_of(manifest.model_copy(update={"model": backbone}), "cpu")) == expected


def test_weights_that_are_not_known_are_not_called_random() -> None:
    for origin in ({}, {"options": {"weights": 3}}, {"weights": {}}, {"weights": "random:0"}):
        assert random_weights(origin) is None
