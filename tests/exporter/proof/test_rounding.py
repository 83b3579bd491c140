"""Weights that amplify rounding: a right graph is exported all the same, and a spoilt one is not.

The checkpoints are small ones of `scripts/plant`: steep steps in MLPs, massive norms, and with `fade` a large number
that a later block takes away again.
"""

import copy
import dataclasses
import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

import exporter
from exporter import pipeline
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec
from exporter.proof import gate, golden_sample, parity, rounding
from runtime.checks.verify import verify
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import ParityError, WeightsError
from runtime.contract.manifest import Rounding
from scripts.planting.plan import Plan
from scripts.planting.plant import plant

ARCH = Architecture("small", width=128, heads=2, depth=6)
SIDE = 112
CHECKPOINTS = [(kind, fade) for kind in ("place", "content") for fade in (False, True)]
OUTPUTS = ("embedding", "artifact_mask", "artifact_norm")
NOTHING = Rounding(max_abs=0.0, min_cosine=1.0, norm_relative=0.0, distance=0.0)


@dataclasses.dataclass(frozen=True)
class Planted:
    spec: ExportSpec
    model: torch.nn.Module
    traced: object


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda one: f"{one[0]}{'-fade' * one[1]}")
def planted(request, tmp_path_factory) -> Planted:
    kind, fade = request.param
    folder = tmp_path_factory.mktemp("planted")
    weights = folder / "weights.safetensors"
    save_file(plant(Plan(ARCH, seed=1, kind=kind, fade=fade, image_size=SIDE)), weights)
    spec = ExportSpec("unused.onnx", size=ARCH, image_size=SIDE, weights=str(weights), outputs=OUTPUTS)
    loaded, traced = pipeline.load_and_trace(spec, folder)
    return Planted(spec, loaded.model, traced)


def samples(planted: Planted, **options) -> tuple[ExportSpec, list[golden_sample.Sample]]:
    spec = dataclasses.replace(planted.spec, **options)
    return spec, golden_sample.make_samples(planted.model, spec, lambda _: None)


def check(path, spec: ExportSpec, sample: golden_sample.Sample) -> None:
    got = parity.run(gate.open_checked(path, spec), sample.golden.input)
    parity.check(got, sample, spec, "exported")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("detect_layer", [None, 4])
def test_a_right_graph_keeps_the_limits(precision, detect_layer, planted, tmp_path) -> None:
    spec, made = samples(planted, precision=precision, itae=ItaeConfig(detect_layer=detect_layer))
    if detect_layer is not None:  # without it norms have faded, and what a moved threshold flags may change little
        assert any(sample.shows_itae for sample in made)
    for sample, name in itertools.product(made, made[0].limits):
        if name in sample.limits:
            rounding.check_limits(name, sample.limits[name], sample.rounding[name])
            other = dataclasses.replace(spec, precision=name, itae=sample.itae)
            check(pipeline.operate(other, planted.traced, tmp_path / "operated").model, other, sample)


def test_golden_samples_have_artifacts_where_the_block_shows_them(planted) -> None:
    _, made = samples(planted, itae=ItaeConfig(detect_layer=4))
    assert len(made) == 1
    assert made[0].mixed == 4
    assert made[0].limits["fp32"].flag_margin < 1e-4


def test_a_spoilt_graph_is_refused_by_the_widened_limits(planted, tmp_path) -> None:
    spec, made = samples(planted, itae=ItaeConfig(detect_layer=4))
    (sample,) = made
    right = pipeline.operate(spec, planted.traced, tmp_path / "right").model
    check(right, spec, sample)

    def refused(path) -> None:
        with pytest.raises(ParityError, match="disagrees with eager PyTorch"):
            check(path, spec, sample)

    for wrong in (ItaeConfig(detect_layer=4, attenuate="scale:0.5"), ItaeConfig(threshold="ratio:1.2", detect_layer=4)):
        other = dataclasses.replace(spec, itae=wrong)
        refused(pipeline.operate(other, planted.traced, tmp_path / "wrong").model)
    model = onnx.load(right)
    scales = [one for one in model.graph.initializer if one.name.endswith("layer_scale1.lambda1")]
    scales[-1].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales[-1]) * np.float32(1.01), scales[-1].name))
    onnx.save(model, tmp_path / "scale.onnx")
    refused(tmp_path / "scale.onnx")


@pytest.mark.parametrize("planted", [("content", True)], indirect=True)
def test_such_a_model_is_published_with_its_limits_and_verifies(planted, tmp_path) -> None:
    out = tmp_path / "m.onnx"
    spec = dataclasses.replace(planted.spec, out=out, precision="fp16", itae=ItaeConfig(detect_layer=4))
    manifest = exporter.export(spec).manifest
    assert manifest.parity.limits == manifest.parity.checks[0].limits
    measured = manifest.parity.checks[0].rounding
    assert measured is not None
    assert manifest.parity.limits == rounding.limits("fp16", measured, normalized=False)
    assert verify(out).passed


def test_limits_widen_with_what_rounding_does_and_only_then() -> None:
    for precision, usual in LIMITS.items():
        own = usual.model_copy(update={"max_relative": None})  # for outputs that a DINOv2 doesn't have
        assert rounding.limits(precision, NOTHING, normalized=False) == own
        assert rounding.excess(precision, NOTHING) == 1
        assert rounding.describe(precision, usual, NOTHING) is None
    measured = Rounding(max_abs=1e-4, min_cosine=0.999, norm_relative=1e-2, distance=1e-4)
    wide = rounding.limits("fp32", measured, normalized=True)
    assert (wide.max_abs, wide.min_cosine, wide.flag_margin, wide.batch_distance) == (8e-4, None, 8e-2, 8e-4)
    assert wide.normalized
    assert rounding.excess("fp32", measured) == pytest.approx(8000)
    assert "norms by up to 0.01 of themselves" in rounding.describe("fp32", wide, measured)
    half = rounding.limits("fp16", measured, normalized=False)
    assert half.min_cosine == pytest.approx(0.997)
    assert half.max_abs is None


@pytest.mark.parametrize("figure", [{"max_abs": 0.01}, {"norm_relative": 0.2}, {"distance": 0.1}])
def test_a_model_that_rounding_alone_ruins_is_refused(figure) -> None:
    measured = NOTHING.model_copy(update=figure)
    wide = rounding.limits("fp32", measured, normalized=False)
    with pytest.raises(WeightsError, match=r"amplify rounding: fp32 alone moves .* float32 is too coarse"):
        rounding.check_limits("fp32", wide, measured)
    measured = NOTHING.model_copy(update={"min_cosine": 0.9})
    wide = rounding.limits("bf16", measured, normalized=False)
    with pytest.raises(WeightsError, match=r"bf16 alone moves .* cosine of 0.90000 .*: use --precision fp32"):
        rounding.check_limits("bf16", wide, measured)


def test_the_model_is_to_the_bit_what_it_was_after_each_measurement(planted) -> None:
    before = {name: value.clone() for name, value in planted.model.state_dict().items()}
    image = torch.from_numpy(golden_sample.normalize(golden_sample.candidate(4, planted.spec.facts)[None]))
    plain = reference.embed(planted.model, image, None).embedding
    with rounding.in_float64(planted.model):
        exact = reference.embed(planted.model, image, None).embedding
    assert torch.equal(exact, reference.embed(copy.deepcopy(planted.model).double(), image.double(), None).embedding)
    for precision in ("fp16", "bf16"):
        with rounding.in_precision(planted.model, precision):
            assert not torch.equal(reference.embed(planted.model, image, None).embedding, plain)
    for name, value in planted.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
        assert not value.is_inference()
    assert torch.equal(reference.embed(planted.model, image, None).embedding, plain)


def test_blocks_that_are_kept_change_nothing(planted) -> None:
    image = torch.from_numpy(golden_sample.normalize(golden_sample.candidate(0, planted.spec.facts)[None]))
    kept = reference.Kept(4)
    for itae in (ItaeConfig(detect_layer=4), ItaeConfig("4,5", "key", "mad:1", "both", "mask"), None):
        alone, again = (reference.embed(planted.model, image, itae, kept=one) for one in (None, kept))
        assert torch.equal(alone.embedding, again.embedding)
        assert torch.equal(alone.norm, again.norm)
    assert kept.tokens is not None
