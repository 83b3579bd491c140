"""ExportSpec and ItaeConfig: what every option takes, and what it refuses; nothing here loads a weight."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

import exporter
from exporter.declaration import Flag, Instance, Whole, Words, declared
from exporter.methods.itae.options import (
    ATTENUATIONS,
    FLOAT32_MAX,
    MAX_MEDIAN_PATCHES,
    SIDES,
    SOURCES,
    THRESHOLDS,
    Choice,
    ItaeConfig,
)
from exporter.models.architecture import ARCHITECTURES, Architecture
from exporter.options import (
    MAX_GRID,
    OUTPUTS,
    ExportSpec,
)
from runtime.checks.verify import verify
from runtime.contract.errors import OutputFileError, UsageError, WeightsError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import NoMethod, Options

MAX_SIDE = 14 * MAX_GRID
TINY = Architecture("tiny", width=48, heads=3, depth=2, registers=4, swiglu=True)

EDGES = (-math.inf, -1e30, -1.0, -1e-9, 0.0, 1e-9, 0.1, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0, 5.0, 1e30, 1e39, math.inf)
"""Around every bound that a domain has: 0, 1, and the largest float32."""
MALFORMED = (
    "",
    " 5",
    "5 ",
    "x",
    "5x",
    "1_0",
    "0x10",
    "nan",
    "-nan",
    "inf",
    "Infinity",
    "1e400",
    "1,5",
    "5:5",
    "\N{ARABIC-INDIC DIGIT FIVE}",
    "+",
)
"""Not a number, though Python's `float` takes some of them."""


def numbered(kinds):
    return [name for name, kind in kinds.items() if kind.domain is not None and not kind.is_list]


def bare(kinds):
    return [name for name, kind in kinds.items() if kind.domain is None]


def domain_cases():
    """(option, text, allowed) for every kind of both declarations at every edge."""
    for option, kinds in (("threshold", THRESHOLDS), ("attenuate", ATTENUATIONS)):
        for name, number in itertools.product(numbered(kinds), EDGES):
            yield option, f"{name}:{number!r}", abs(number) <= FLOAT32_MAX and kinds[name].holds(number)


def config(option: str, text: str) -> ItaeConfig:
    return ItaeConfig(**{option: text}, side="high" if text.startswith("absolute") else "both")


@pytest.mark.parametrize(("option", "text", "allowed"), list(domain_cases()), ids=str)
def test_a_number_is_taken_inside_its_declared_domain_and_refused_outside(option, text, allowed):
    if allowed:
        kind, _, number = text.partition(":")
        parsed = config(option, text)
        assert (parsed.limit if option == "threshold" else parsed.attenuation) == Choice(kind, float(number))
        return
    with pytest.raises(
        UsageError, match=re.escape(f"--{option} '{text}': {text.partition(':')[0]} needs a")
    ) as refused:
        config(option, text)
    example = str(refused.value).rpartition(" as in ")[2]
    config(option, example)  # the example in the message is itself taken


def test_the_generated_domain_cases_hold_both_kinds_for_every_word():
    seen = {(text.partition(":")[0], allowed) for _, text, allowed in domain_cases()}
    words = [*numbered(THRESHOLDS), *numbered(ATTENUATIONS)]
    assert seen == set(itertools.product(words, (True, False)))
    assert set(words) == {"mad", "zscore", "ratio", "absolute", "scale"}  # exporter/ITAE.md has no others


BOUNDS = {
    "mad": (["0", "1e-9", "5", "3.4e38"], ["-1e-9", "-5", "3.5e38"]),
    "zscore": (["0", "1e-9", "3", "3.4e38"], ["-1e-9", "-3", "3.5e38"]),
    "ratio": (["1.0001", "2", "3.4e38"], ["1", "0.5", "0", "-2", "3.5e38"]),
    "absolute": (["0", "1e-9", "30", "3.4e38"], ["-1e-9", "-30", "3.5e38"]),
    "scale": (["1e-9", "0.1", "0.9999"], ["0", "1", "-0.1", "1.0001"]),
}
"""The domains of exporter/ITAE.md 1 and 2, written down a second time, so that a wrong declaration is noticed."""


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_declared_domains_are_those_of_the_specification(kind):
    option = "threshold" if kind in THRESHOLDS else "attenuate"
    taken, refused = BOUNDS[kind]
    for number in taken:
        config(option, f"{kind}:{number}")
    for number in refused:
        with pytest.raises(UsageError, match=f"{kind} needs a number"):
            config(option, f"{kind}:{number}")
    assert BOUNDS.keys() == {*numbered(THRESHOLDS), *numbered(ATTENUATIONS)}


@pytest.mark.parametrize("number", MALFORMED)
@pytest.mark.parametrize("kind", [*numbered(THRESHOLDS), *numbered(ATTENUATIONS)])
def test_what_is_not_a_plain_number_is_refused(kind, number):
    option = "threshold" if kind in THRESHOLDS else "attenuate"
    with pytest.raises(UsageError, match=f"--{option} .*{kind} needs a number"):
        config(option, f"{kind}:{number}")


@pytest.mark.parametrize("kind", [*numbered(THRESHOLDS), *numbered(ATTENUATIONS)])
def test_a_kind_that_needs_a_number_is_refused_without_one(kind):
    with pytest.raises(UsageError, match=f"{kind} needs a number"):
        config("threshold" if kind in THRESHOLDS else "attenuate", kind)


@pytest.mark.parametrize("kind", bare(ATTENUATIONS))
@pytest.mark.parametrize("tail", [":", ":0.5", ":x"])
def test_a_kind_without_a_number_refuses_one(kind, tail):
    with pytest.raises(UsageError, match=f"{kind} takes no number"):
        ItaeConfig(attenuate=kind + tail)


@pytest.mark.parametrize(("option", "kinds"), [("threshold", THRESHOLDS), ("attenuate", ATTENUATIONS)])
@pytest.mark.parametrize("text", ["", "auto", "MAD:5", "5", ":5", " min", "min:5;mask"])
def test_an_unknown_kind_is_refused_with_the_list_of_kinds(option, kinds, text):
    with pytest.raises(UsageError, match=f"--{option}") as refused:
        ItaeConfig(**{option: text})
    if text != "min:5;mask":
        assert all(kind in str(refused.value) for kind in kinds)


@pytest.mark.parametrize("number", [5, 5.0, 1e-3, 1e30, 0.1 + 0.2])
def test_the_number_is_kept_to_the_last_bit(number):
    assert ItaeConfig(threshold=f"mad:{number!r}").limit.number == number


@pytest.mark.parametrize(("source", "side"), list(itertools.product(SOURCES, SIDES)))
def test_every_source_goes_with_every_side(source, side):
    itae = ItaeConfig(source=source, side=side)
    assert (itae.source, itae.side) == (source, side)


@pytest.mark.parametrize(
    ("field", "words"),
    [("source", SOURCES), ("side", SIDES)],
)
@pytest.mark.parametrize("bad", ["", "keys", "KEY", "left", 1])
def test_an_unknown_word_of_itae_is_refused_with_the_list(field, words, bad):
    with pytest.raises(UsageError, match=f"--{field} .*{', '.join(words)}"):
        ItaeConfig(**{field: bad})


def test_an_absolute_threshold_needs_its_side():
    with pytest.raises(UsageError, match="--side high or --side low"):
        ItaeConfig(threshold="absolute:30")
    for side in ("high", "low"):
        assert ItaeConfig(threshold="absolute:30", side=side).limit == Choice("absolute", 30.0)


@pytest.mark.parametrize(
    ("text", "patches"),
    [
        ("0", (0,)),
        ("0,1,16-17", (0, 1, 16, 17)),
        ("17, 3-5 ,4", (3, 4, 5, 17)),
        ("262143", (262143,)),  # the last of the largest grid
    ],
)
def test_positions_are_patches_ascending_and_each_once(text, patches):
    itae = ItaeConfig(threshold=f"positions:{text}")
    assert itae.limit == Choice("positions", indices=patches)
    assert (itae.source, itae.side, itae.detect_layer, itae.needs_median) == (None, None, None, False)


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1.5", "0,,1", "0;1", "9999999", "\N{ARABIC-INDIC DIGIT FIVE}"])
def test_what_is_no_list_of_patches_is_refused(text):
    with pytest.raises(UsageError, match=r"--threshold 'positions:.*': positions needs a list of patches such as 0,5"):
        ItaeConfig(threshold=f"positions:{text}")
    with pytest.raises(UsageError, match="the range 5-3 runs backwards"):
        ItaeConfig(threshold="positions:5-3")


@pytest.mark.parametrize("given", [{"source": "key"}, {"side": "high"}, {"detect_layer": 0}])
def test_positions_refuse_what_is_about_norms(given):
    ((name, value),) = given.items()
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {value} is about norms, which --threshold pos"):
        ItaeConfig(threshold="positions:0", **given)


def test_positions_must_lie_in_the_image():
    itae = ItaeConfig(threshold="positions:0,14-15")
    assert ExportSpec("a.onnx", image_size=(28, 112), itae=itae).facts.patches == 16
    with pytest.raises(UsageError, match="no patch 15, an image of 42x70 has patches 0 to 14"):
        ExportSpec("a.onnx", image_size=(42, 70), itae=itae)


def test_positions_offer_no_norms():
    itae = ItaeConfig(threshold="positions:0")
    assert ExportSpec("a.onnx", itae=itae, outputs=("embedding", "artifact_mask")).itae == itae
    with pytest.raises(UsageError, match="--outputs artifact_norm: --threshold positions:0 looks at no norm"):
        ExportSpec("a.onnx", itae=itae, outputs=("embedding", "artifact_norm"))


def test_attenuate_none_without_an_output_of_artifacts_is_refused():
    itae = ItaeConfig(attenuate="none")
    for name in ("artifact_mask", "artifact_norm"):
        assert ExportSpec("a.onnx", itae=itae, outputs=("embedding", name)).itae == itae
    with pytest.raises(UsageError, match="--attenuate none changes nothing: add artifact_mask or artifact_norm"):
        ExportSpec("a.onnx", itae=itae)


@pytest.mark.parametrize(
    ("layers", "detect_layer", "first"), [("last", 11, 11), ("3-5", 3, 3), ("all", 0, 0), ("8", 0, 8)]
)
def test_one_layer_may_detect_for_itself_and_those_after_it(layers, detect_layer, first):
    itae = ItaeConfig(layers, detect_layer=detect_layer)
    assert {itae.detects_in(layer) for layer in itae.layer_indices(12)} == {detect_layer}
    assert itae.resolved(12).detect_layer == detect_layer
    late = ItaeConfig(layers, detect_layer=first + 1)
    with pytest.raises(UsageError, match=rf"--detect-layer {first + 1}: is after layer {first}, .*take a layer from 0"):
        ExportSpec("a.onnx", itae=late)


@pytest.mark.parametrize("bad", [-1, 1.0, "1", True])
def test_the_layer_to_detect_in_is_a_whole_number(bad):
    with pytest.raises(UsageError, match=r"--detect-layer .*must be"):
        ItaeConfig(detect_layer=bad)


@pytest.mark.parametrize(
    ("itae", "all_queries"),
    [
        (ItaeConfig(source="query"), True),
        (ItaeConfig(source="query", detect_layer=3), False),  # the last block's own queries decide nothing
        (ItaeConfig("3", source="query"), False),
        (ItaeConfig(), False),
        (ItaeConfig(threshold="positions:0"), False),
    ],
)
def test_the_last_block_keeps_all_queries_only_to_detect_by_them(itae, all_queries):
    assert itae.reads_queries(11, 12) == all_queries


def test_defaults_are_those_of_the_specification():
    spec = ExportSpec("itae.engine")
    assert spec.itae == ItaeConfig("last", "residual", "ratio:3", "high", "min")
    assert (spec.size, spec.weights, spec.backend, spec.image_size) == ("vitb14", "auto", "auto", 224)
    assert (spec.profile, spec.outputs, spec.input) == ((1, 8, 64), ("embedding",), "float32")
    assert (spec.pos_embed, spec.parity_samples, spec.workspace_mib) == ("meta", 4, None)
    assert (spec.keep_onnx, spec.makes_engine, spec.resolved_precision) == (None, True, "fp16")
    assert (spec.layers, spec.facts.patches, spec.facts.tokens) == ((11,), 256, 257)
    assert (spec.pooling, spec.normalize, spec.computes_cls_only, spec.embedding_width) == ("cls", False, True, 768)


@pytest.mark.parametrize(
    ("options", "cls_only", "width"),
    [
        ({"outputs": ("embedding", "artifact_mask", "artifact_norm")}, True, 768),
        ({"outputs": ("embedding", "patch_tokens")}, False, 768),
        ({"pooling": "cls+mean"}, False, 1536),
        ({"cls_only": False}, False, 768),
    ],
    ids=["flags beside", "patch tokens beside", "pooled", "switched off"],
)
def test_the_last_block_is_cut_where_no_output_reads_other_tokens(options, cls_only, width):
    spec = ExportSpec("itae.engine", **options)
    assert (spec.computes_cls_only, spec.embedding_width) == (cls_only, width)
    assert spec.output_info("embedding").shape == ("batch", width)


@pytest.mark.parametrize("options", [{"pooling": "cls+mean"}, {"normalize": True}], ids=["--pooling", "--normalize"])
def test_shaping_an_embedding_that_is_no_output_is_refused(options, request):
    option = request.node.callspec.id
    with pytest.raises(UsageError, match=f"{option} .*shapes the embedding, which is not among --outputs patch_tokens"):
        ExportSpec("itae.engine", outputs=("patch_tokens",), **options)


@pytest.mark.parametrize(
    ("out", "engine", "precision"),
    [("a.engine", True, "fp16"), ("a.plan", True, "fp16"), ("a.onnx", False, "fp32"), ("a.b.onnx", False, "fp32")],
)
def test_the_suffix_of_out_decides_what_is_made(out, engine, precision):
    spec = ExportSpec(Path("somewhere") / out)
    assert (spec.makes_engine, spec.resolved_precision) == (engine, precision)
    other = "fp32" if precision == "fp16" else "fp16"
    assert ExportSpec(out, precision=other).resolved_precision == other


@pytest.mark.parametrize(
    "out", ["", ".", "..", "a", "a.pt", "a.ONNX", ".onnx", ".engine", "a.onnx.gz", "a.engine/", "/"]
)
def test_another_suffix_of_out_is_refused(out):
    if out == "a.engine/":  # pathlib drops the slash: a folder of that name is refused when it is there
        assert ExportSpec(out).path == Path("a.engine")
        return
    with pytest.raises(UsageError, match=r"--out .*\.engine or \.plan .* or in \.onnx"):
        ExportSpec(out)


@pytest.mark.parametrize("field", ["out", "keep_onnx", "weights"])
def test_a_path_that_is_not_utf8_is_refused_since_the_manifest_is_json(field):
    given = {"out": "a.engine", field: os.fsdecode(b"\xff.onnx")}
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} .*UTF-8"):
        ExportSpec(**given)


@pytest.mark.parametrize("kept", ["a.engine", "a", ".onnx"])
def test_keep_onnx_must_be_an_onnx_file(kept):
    with pytest.raises(UsageError, match=r"--keep-onnx .*must end in \.onnx"):
        ExportSpec("a.engine", keep_onnx=kept)


def test_keep_onnx_is_refused_where_out_is_onnx_already():
    with pytest.raises(UsageError, match="--keep-onnx is for engines"):
        ExportSpec("a.onnx", keep_onnx="b.onnx")


WORDS = {
    "precision": ("fp32", "fp16", "bf16", "int8"),
    "backend": ("auto", "tensorrt", "tensorrt-rtx"),
    "input": ("float32", "uint8"),
    "pos_embed": ("meta", "hf"),
    "pooling": ("cls", "cls+mean"),
    "fit": ("crop", "pad", "squash"),
    "hardware_compatibility": ("none", "same-compute-capability", "ampere-plus"),
}


def test_the_words_of_each_option_are_declared():
    forms = {name: one.form for name, one in declared(ExportSpec).items()}
    assert {name: form.words for name, form in forms.items() if isinstance(form, Words)} == WORDS


@pytest.mark.parametrize("field", WORDS)
def test_an_option_of_words_takes_each_of_them_and_no_other(field):
    option, words = f"--{field.replace('_', '-')}", WORDS[field]
    for word in words:
        needs = {"calibrate_images": "photos"} if word == "int8" else {}
        assert getattr(ExportSpec("a.engine", **{field: word}, **needs), field) == word
    for bad in ("", "nothing", words[0].upper(), f" {words[0]}"):
        with pytest.raises(UsageError, match=f"{option} .*must be one of {re.escape(', '.join(words))}"):
            ExportSpec("a.engine", **{field: bad})


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_every_size_is_taken_by_name(size):
    spec = ExportSpec("a.onnx", size=size)
    assert spec.backbone.name == size
    assert spec.backbone.registers == (4 if size.endswith("_reg") else 0)
    assert spec.layers == (spec.backbone.depth - 1,)
    assert spec.backbone.width % spec.backbone.heads == 0


@pytest.mark.parametrize("size", ["", "vitb", "ViTB14", "vith14", "vitb14_reg4", "vitb14 "])
def test_an_unknown_size_is_refused_with_the_list(size):
    with pytest.raises(UsageError, match=r"unknown size .*vits14, vits14_reg, vitb14"):
        ExportSpec("a.onnx", size=size)


def test_an_architecture_of_your_own_is_taken():
    spec = ExportSpec("a.onnx", size=TINY, image_size=(28, 42))
    assert (spec.facts.grid, spec.facts.patches, spec.facts.tokens, spec.layers) == ((2, 3), 6, 11, (1,))


@pytest.mark.parametrize(
    ("given", "grid"),
    [(14, (1, 1)), (224, (16, 16)), (518, (37, 37)), ((28, 42), (2, 3)), ((14, MAX_SIDE), (1, 512))],
    ids=str,
)
def test_image_sizes_are_multiples_of_a_patch(given, grid):
    assert ExportSpec("a.onnx", image_size=given).facts.grid == grid


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (0, "14"),
        (-14, "14"),
        (1, "14"),
        (13, "14"),
        (15, "14"),
        (223, "224"),
        (225, "224"),
        (MAX_SIDE + 1, str(MAX_SIDE)),
        (MAX_SIDE + 14, str(MAX_SIDE)),
        ((224, 230), "224"),
        ((230, 224), "224"),
        ((14, 0), "14"),
    ],
    ids=str,
)
def test_another_image_size_is_refused_with_the_nearest_that_is_taken(given, hint):
    with pytest.raises(UsageError, match=rf"--image-size .*such as {hint}$"):
        ExportSpec("a.onnx", image_size=given)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("image_size", "224"),
        ("image_size", 224.0),
        ("image_size", (224,)),
        ("image_size", (28, 42, 56)),
        ("image_size", (28.0, 42)),
        ("image_size", None),
        ("batch", "8"),
        ("batch", (1, 8)),
        ("batch", (1, 8, 64, 128)),
        ("batch", 1.5),
    ],
    ids=str,
)
def test_a_number_of_another_form_is_refused_in_one_line_from_python_too(field, bad):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} .*must be N or"):
        ExportSpec("a.onnx", **{field: bad})


@pytest.mark.parametrize(("given", "profile"), [(1, (1, 1, 1)), (8, (8, 8, 8)), ((1, 8, 64), (1, 8, 64))], ids=str)
def test_batches_become_a_profile(given, profile):
    assert ExportSpec("a.engine", batch=given).profile == profile


@pytest.mark.parametrize("given", [0, -1, (0, 1, 2), (2, 1, 3), (1, 3, 2), (3, 2, 1)], ids=str)
def test_batches_out_of_order_are_refused(given):
    with pytest.raises(UsageError, match=r"--batch .*MIN,OPT,MAX"):
        ExportSpec("a.engine", batch=given)


@pytest.mark.parametrize(("field", "bad"), [("workspace_mib", 0), ("workspace_mib", -1), ("parity_samples", 0),
                                            ("parity_samples", -4), ("parity_samples", 65)])  # fmt: skip
def test_counts_outside_their_range_are_refused(field, bad):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} {bad}: must be"):
        ExportSpec("a.engine", **{field: bad})


def test_counts_at_the_ends_of_their_range_are_taken():
    for samples in (1, 64):
        assert ExportSpec("a.onnx", parity_samples=samples).parity_samples == samples
    assert ExportSpec("a.engine", workspace_mib=1).workspace_mib == 1


def all_outputs():
    return [names for count in range(1, 5) for names in itertools.combinations(OUTPUTS, count)]


@pytest.mark.parametrize("names", all_outputs(), ids=",".join)
def test_any_choice_of_outputs_is_described(names):
    spec = ExportSpec("a.onnx", size=TINY, image_size=(28, 42), outputs=names, itae=ItaeConfig("all"))
    shapes = {
        "embedding": ("float32", ("batch", 48)),
        "patch_tokens": ("float32", ("batch", 6, 48)),
        "artifact_mask": ("bool", ("batch", 2, 6)),
        "artifact_norm": ("float32", ("batch", 2, 6)),
    }
    assert {name: (spec.output_info(name).dtype, spec.output_info(name).shape) for name in names} == {
        name: shapes[name] for name in names
    }


@pytest.mark.parametrize("names", [(), ("embedding", "embedding"), ("tokens",), ("",), "embedding"], ids=str)
def test_no_output_twice_the_same_or_an_unknown_one_is_refused(names):
    with pytest.raises(UsageError, match="--outputs"):
        ExportSpec("a.onnx", outputs=names)


@pytest.mark.parametrize("name", ["artifact_mask", "artifact_norm"])
def test_artifacts_are_no_output_of_plain_dinov2(name):
    assert ExportSpec("a.onnx", outputs=("embedding", name)).outputs == ("embedding", name)
    with pytest.raises(UsageError, match=f"--outputs {name} needs ITAE"):
        ExportSpec("a.onnx", outputs=("embedding", name), itae=None)


def test_the_input_is_described_for_both_types():
    float32, uint8 = (ExportSpec("a.onnx", image_size=(28, 42), input=one).input_info() for one in WORDS["input"])
    assert (float32.name, float32.dtype, float32.shape) == ("pixel_values", "float32", ("batch", 3, 28, 42))
    assert (uint8.name, uint8.dtype, uint8.shape) == ("images", "uint8", ("batch", 28, 42, 3))


# More than 7,679 patches: 88 x 88 of them.
OVER = {"image_size": 14 * 88}
AT = {"image_size": (14 * 7, 14 * 511)}  # 3,577
ODD = {"image_size": (14 * 71, 14 * 108)}  # 7,668, the most near the limit that fits a grid


@pytest.mark.parametrize("out", ["a.engine", "a.plan"])
@pytest.mark.parametrize("threshold", ["mad:5", "ratio:2"])
def test_a_median_of_more_patches_than_tensorrt_takes_is_refused_for_engines(out, threshold):
    itae = ItaeConfig(threshold=threshold)
    with pytest.raises(UsageError, match=r"median of 7744 patches, TensorRT can take at most 7679.*zscore"):
        ExportSpec(out, itae=itae, **OVER)
    for smaller in (AT, ODD):
        assert ExportSpec(out, itae=itae, **smaller).facts.patches <= MAX_MEDIAN_PATCHES


@pytest.mark.parametrize(
    ("out", "itae"),
    [
        ("a.onnx", ItaeConfig()),
        ("a.engine", ItaeConfig(threshold="zscore:3")),
        ("a.engine", ItaeConfig(threshold="absolute:30", side="low")),
        ("a.engine", None),
    ],
    ids=["ONNX", "zscore", "absolute", "plain"],
)
def test_where_no_engine_needs_a_median_any_number_of_patches_is_taken(out, itae):
    assert ExportSpec(out, itae=itae, **OVER).facts.patches > MAX_MEDIAN_PATCHES


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("last", (11,)),
        ("all", tuple(range(12))),
        ("0", (0,)),
        ("11", (11,)),
        ("0,5,8-11", (0, 5, 8, 9, 10, 11)),
        ("5,0", (0, 5)),
        ("3,3,2-4", (2, 3, 4)),
        ("4-4", (4,)),
        (" 1 , 2 ", (1, 2)),
        ("007", (7,)),
    ],
)
def test_layers_are_read_sorted_and_each_once(layers, chosen):
    assert ExportSpec("a.onnx", itae=ItaeConfig(layers)).layers == chosen
    assert ItaeConfig(layers).resolved(12).layers == chosen


@pytest.mark.parametrize(
    "layers", ["", ",", "1,", "-1", "1-", "a", "1.0", "0x1", "1;2", "LAST", "last,1", "1 - 2", "²", "0-99999999999"]
)
def test_layers_of_another_form_are_refused(layers):
    with pytest.raises(UsageError, match=r"--layers .*must be `last`, `all`, or a list such as 0,5,8-11"):
        ItaeConfig(layers)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(UsageError, match="--layers '0,5-3': the range 5-3 runs backwards"):
        ItaeConfig("0,5-3")


@pytest.mark.parametrize(("layers", "first_missing"), [("12", 12), ("0,40", 40), ("0-9999", 9999)])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(layers, first_missing):
    with pytest.raises(UsageError, match=f"no layer {first_missing}, this model has layers 0 to 11"):
        ExportSpec("a.onnx", itae=ItaeConfig(layers))
    with pytest.raises(UsageError, match=r"this model has layers 0 to 1$"):
        ExportSpec("a.onnx", size=TINY, itae=ItaeConfig(layers))


def test_plain_dinov2_has_no_layers():
    assert ExportSpec("a.onnx", itae=None).layers == ()


def test_options_cannot_be_changed_after_they_were_checked():
    spec = ExportSpec("a.onnx")
    with pytest.raises(AttributeError):
        spec.parity_samples = 0
    with pytest.raises(AttributeError):
        spec.itae.threshold = "ratio:0.5"


@pytest.mark.parametrize("given", [{"timing_cache": "cache"}, {"require_fusion": True}])
def test_what_is_for_engines_is_refused_for_onnx(given):
    (name,) = given
    with pytest.raises(UsageError, match=f"--(no-)?{name.replace('_', '-')} is for engines"):
        ExportSpec("a.onnx", **given)
    assert ExportSpec("a.engine", **given).makes_engine


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_replay_is_refused_where_there_is_none(precision):
    with pytest.raises(UsageError, match=f"--no-replay is for engines and bf16: parity runs ONNX in {precision}"):
        ExportSpec("a.onnx", precision=precision, replay=False)
    assert not ExportSpec("a.onnx", precision="bf16", replay=False).replay
    assert not ExportSpec("a.engine", precision=precision, replay=False).replay


@pytest.mark.parametrize("cache", ["a.engine", "a.engine.json", "a.engine.parity.npz", "./b.onnx", "b.onnx.data"])
def test_a_timing_cache_in_the_place_of_a_published_file_is_refused(cache):
    with pytest.raises(UsageError, match=r"--timing-cache .*is a file of the export itself"):
        ExportSpec("a.engine", keep_onnx="b.onnx", timing_cache=cache)


def test_a_timing_cache_that_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(OutputFileError, match=r"can't write .*cache: the folder .* is missing or read-only"):
        ExportSpec(tmp_path / "a.engine", timing_cache=tmp_path / "missing" / "cache").check_folder()
    ExportSpec(tmp_path / "a.engine", timing_cache=tmp_path / "cache").check_folder()


@pytest.mark.parametrize("field", ["out", "keep_onnx"])
@pytest.mark.parametrize("ending", ["", ".json", ".parity.npz"])
def test_a_folder_in_the_place_of_any_published_file_is_refused_before_the_work(tmp_path, field, ending):
    given = {"out": tmp_path / "a.engine", "keep_onnx": tmp_path / "b.onnx"}
    ExportSpec(**given).check_folder()
    taken = given[field].with_name(given[field].name + ending)
    taken.mkdir()
    with pytest.raises(OutputFileError, match=f"can't write .*{taken.name}: it is a folder"):
        ExportSpec(**given).check_folder()


@pytest.mark.parametrize("field", ["out", "keep_onnx"])
def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path, field):
    given = {"out": tmp_path / "a.engine", "keep_onnx": tmp_path / "b.onnx"}
    given[field] = tmp_path / "missing" / given[field].name
    with pytest.raises(OutputFileError, match=r"there is no folder .*missing; make it first"):
        ExportSpec(**given).check_folder()


def test_the_python_call_exports_what_its_spec_says(tmp_path, capfd):
    spec = ExportSpec(
        tmp_path / "a.onnx",
        size=TINY,
        image_size=(28, 42),
        weights="random:1",
        itae=ItaeConfig(layers="0-1", source="value", threshold="ratio:1.01", side="high", attenuate="scale:0.25"),
        outputs=("patch_tokens", "embedding", "artifact_mask"),
        parity_samples=2,
    )
    result = exporter.export(spec)
    assert capfd.readouterr() == ("", "")
    assert result.path == tmp_path / "a.onnx"
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.onnx.json", "a.onnx.parity.npz"}
    manifest = json.loads((tmp_path / "a.onnx.json").read_text())
    assert manifest["options"] == {
        "size": "tiny",
        "weights": "random:1",
        "backend": "none",
        "precision": "fp32",
        "image_size": [28, 42],
        "batch": None,
        "method": {
            "name": "itae",
            "layers": [0, 1],
            "source": "value",
            "threshold": "ratio:1.01",
            "side": "high",
            "attenuate": "scale:0.25",
            "detect_layer": None,
        },
        "pooling": "cls",
        "normalize": False,
        "cls_only": False,
        "outputs": ["patch_tokens", "embedding", "artifact_mask"],
        "input": "float32",
        "pos_embed": "meta",
        "unfused": False,
        "workspace_mib": None,
        "hardware_compatibility": None,
        "version_compatible": None,
        "parity_samples": 2,
    }
    assert result.manifest.to_json() == (tmp_path / "a.onnx.json").read_bytes()
    assert list(result.seconds) == ["load", "eager", "trace", "surgery", "gate", "parity", "publish"]


@pytest.mark.parametrize(
    ("options", "itae"),
    [
        ({}, None),
        ({"pooling": "cls+mean"}, ItaeConfig("all", threshold="zscore:1")),
        ({"normalize": True}, ItaeConfig("all", threshold="zscore:1")),
        ({"cls_only": False}, None),
    ],
    ids=["plain", "pooled", "normalized", "all rows"],
)
def test_the_embedding_is_exported_as_asked_for_and_verified(options, itae, tmp_path):
    spec = ExportSpec(
        tmp_path / "a.onnx", size=TINY, image_size=(28, 42), weights="random:1", parity_samples=2, itae=itae, **options
    )
    manifest = exporter.export(spec).manifest
    assert manifest.options.model_dump().items() >= ({"pooling": "cls", "normalize": False} | options).items()
    assert manifest.options.cls_only == (options in ({}, {"normalize": True}))
    result = verify(tmp_path / "a.onnx")
    assert result.passed
    assert result.limits.normalized == manifest.options.normalize
    golden = read_golden(tmp_path / "a.onnx", manifest)
    assert golden.embedding.shape == (2, spec.embedding_width)
    assert np.allclose(np.linalg.norm(golden.embedding, axis=1), 1) == manifest.options.normalize


def test_the_python_call_raises_the_error_that_the_command_prints(tmp_path):
    with pytest.raises(WeightsError, match="no such file or folder"):
        exporter.export(ExportSpec(tmp_path / "a.onnx", size=TINY, weights="missing.pth"))
    with pytest.raises(UsageError, match="tiny has no official weights"):
        exporter.export(ExportSpec(tmp_path / "a.onnx", size=TINY))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (name, value)
            for name in ("normalize", "cls_only", "require_fusion", "unfused", "replay")
            for value in (1, 0, "no", None)
        ),
        *(("parity_samples", value) for value in (2.5, "4", True, None)),
        *(("workspace_mib", value) for value in (1.5, "4", True)),
    ],
)
def test_a_value_of_another_form_is_refused_before_the_work(field, value):
    label = {"parity_samples": "--parity-samples", "workspace_mib": "--workspace-mib"}.get(field, field)
    with pytest.raises(UsageError, match=f"{label} .*must be (True or False|a whole number)"):
        ExportSpec("a.engine", **{field: value})


def test_a_timing_cache_in_the_place_of_the_engine_is_refused_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a file of the export itself"):
        ExportSpec("x.engine", timing_cache=tmp_path / "x.engine.json")


@pytest.mark.parametrize("name", ["a..onnx", "..a.onnx", "a..b.engine"])
def test_two_dots_in_a_file_name_are_refused(name):
    with pytest.raises(UsageError, match="two dots in a row"):
        ExportSpec(f"../folder/{name}")


def test_targets_on_two_file_systems_are_refused_before_the_work(tmp_path, monkeypatch):
    spec = ExportSpec(tmp_path / "a.engine", keep_onnx="/proc/a.onnx")
    monkeypatch.setattr("os.access", lambda *_: True)
    with pytest.raises(OutputFileError, match="another file system"):
        spec.check_folder()


def test_a_folder_where_external_data_would_lie_is_refused(tmp_path):
    (tmp_path / "a.onnx.data").mkdir()
    with pytest.raises(OutputFileError, match="it is a folder"):
        ExportSpec(tmp_path / "a.onnx").check_folder()


def test_a_batch_that_no_machine_runs_is_refused():
    with pytest.raises(UsageError, match="MAX ≤ 65535"):
        ExportSpec("a.engine", batch=(1, 8, 100_000))


class Odd:
    """Nothing that any option takes, and nothing that answers a question put to it."""

    def __eq__(self, other):
        raise RuntimeError("compared")

    __hash__ = None

    def __bool__(self):
        raise RuntimeError("asked")


STRANGE = (
    *(None, True, 0, 1, -1, 10**30, 1.5, math.nan, 1j, "", "nothing", "é", "\0", "\udcff", b"a.onnx"),
    *((), ("",), (1,), (1, 2), (1, 2, 3), (None, None), ([],), [], [1], {}, {1}, set(), range(3), Ellipsis),
    *(Odd(), object(), object, len, Path("a"), Path(), np.int64(224), np.float32(1), np.arange(3), np.array("cls")),
    *(ItaeConfig(), TINY),
)
"""Values of every type that a caller may hand over by mistake, and some that are right here and there."""
TYPES = {Flag: (bool,), Whole: (int,), Words: (str,), Instance: (ItaeConfig,)}


@pytest.mark.parametrize(
    ("options", "field"), [(one, field) for one in (ExportSpec, ItaeConfig) for field in declared(one)]
)
def test_any_value_of_any_field_is_taken_or_a_usage_error(options, field):
    one = declared(options)[field]
    given = {"out": "a.engine"} if options is ExportSpec else {}
    refused = 0
    for value in STRANGE:
        try:
            options(**{**given, field: value})
        except UsageError:
            refused += 1
            continue
        allowed = TYPES.get(type(one.form))
        assert allowed is None or type(value) in allowed or (one.optional and value is None), value
    assert refused > len(STRANGE) / 2


@pytest.mark.parametrize("value", [5, None, b"x", Odd(), ("vitb14",)], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("field", ["out", "size", "weights", "outputs"])
def test_what_is_no_text_is_refused_where_text_is_asked_for(field, value):
    if field == "outputs" and isinstance(value, tuple):
        value = (5,)
    with pytest.raises(UsageError, match=f"--{field} .*must be"):
        ExportSpec(**{"out": "a.engine", field: value})


@pytest.mark.parametrize("size", ["nope", "", "vitb14 "])
def test_an_unknown_size_is_refused_at_construction(size):
    with pytest.raises(UsageError, match="unknown size"):
        ExportSpec("a.onnx", size=size)


@pytest.mark.parametrize("engine", [True, False])
def test_every_option_of_the_manifest_is_recorded_once_from_the_declaration(engine):
    """All but the weights' source and the backend, which are known only after the work."""
    recorded = ExportSpec("a.engine", workspace_mib=5).recorded(engine=engine)
    assert set(recorded) | {"weights", "backend"} == set(Options.model_fields)
    options = Options(weights="random:0", backend="tensorrt" if engine else "none", **recorded)
    assert (options.batch, options.workspace_mib) == (((1, 8, 64), 5) if engine else (None, None))
    assert (options.size, options.precision, options.image_size) == ("vitb14", "fp16", (224, 224))
    assert options.method == ItaeConfig().resolved(12)
    assert ExportSpec("a.onnx", itae=None).recorded(engine=False)["method"] == NoMethod()
