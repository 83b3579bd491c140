"""Real sizes, end to end: the command, what it publishes, and what TensorRT-RTX makes of the graphs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from exporter import pipeline
from exporter.__main__ import main
from exporter.build import engine, fusion
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec
from exporter.proof.golden_sample import candidate, normalize
from exporter.surgery.attention import attention_nodes
from runtime.contract.golden import read_golden
from runtime.contract.machine import limited_threads
from runtime.contract.manifest import verified_manifest

ROOT = Path(__file__).parents[2]
ATOL = 1e-4
MIXED = ItaeConfig("all", "value", "zscore:1.5", attenuate="min")


def pixels_of(spec: ExportSpec, *numbers: int) -> np.ndarray:
    """Seeded pictures beyond those that the exporter looks at, normalised."""
    return normalize(np.stack([candidate(number, spec.facts) for number in numbers]))


@pytest.fixture(scope="module")
def vits14(tmp_path_factory):
    """vits14, traced once at 224."""
    spec = ExportSpec("unused.engine", size="vits14", weights="random:0")
    return spec, pipeline.load_and_trace(spec, tmp_path_factory.mktemp("vits14"))[1]


def test_torch_takes_no_more_threads_than_the_process_is_held_to():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with limited_threads(1):
            pipeline.load(ExportSpec("unused.onnx", size="vits14", weights="random:0"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


FUSION = [
    ("plain", None),
    ("mask last", ItaeConfig(attenuate="mask")),
    ("mask all", ItaeConfig("all", attenuate="mask")),
    ("mean all", ItaeConfig("all", attenuate="mean")),
    ("scale all", ItaeConfig("all", "query", "zscore:3", attenuate="scale:0.1")),
    ("min last", ItaeConfig()),
    ("min all", ItaeConfig("all")),
]


SLOW_FUSION = {("fp16", "mask last"), ("bf16", "mask all"), ("bf16", "min last"), ("fp16", "min all")}
"""Without these, each pair of a precision, layers and an attenuation that occurs among all still occurs."""


@pytest.mark.parametrize(
    ("precision", "itae"),
    [
        pytest.param(
            precision,
            itae,
            id=f"{precision}-{name}",
            marks=[pytest.mark.slow] if (precision, name) in SLOW_FUSION else [],
        )
        for precision in ("fp16", "bf16")
        for name, itae in FUSION
    ],
)
def test_attention_stays_fused_in_half_precision(precision, itae, vits14, tmp_path):
    spec, traced = vits14
    spec = dataclasses.replace(spec, itae=itae, precision=precision)
    model = pipeline.operate(spec, traced, tmp_path).model
    request = engine.EngineRequest("tensorrt-rtx", (1, 8, 64))
    result = engine.build(model, tmp_path / "m.plan", request)
    sites = attention_nodes(model)
    found = fusion.read_fusion(sites, result.kernels, fusion.unfusable_layers(spec))
    assert found is not None
    assert (found.sites, found.expected, found.fused, found.unfused_layers) == (12, 12, 12, ())
    assert sum("_mha_" in kernel.name for kernel in result.kernels) == found.fused  # as the builder itself calls them
    fusion.require(found)
    assert result.plan_bytes == (tmp_path / "m.plan").stat().st_size


@pytest.fixture(scope="module", params=["vits14", "vits14_reg"])
def published(request, tmp_path_factory):
    """An engine and its ONNX twin, as the command publishes them."""
    folder = tmp_path_factory.mktemp(request.param)
    command = ["--size", request.param, "--weights", "random:0", "--out", str(folder / "m.engine"), "--quiet"]
    command += ["--keep-onnx", str(folder / "m.onnx"), "--precision", "fp32", "--outputs", "embedding,artifact_mask"]
    command += [
        "--source",
        "key",
        "--threshold",
        "mad:5",
        "--side",
        "both",
    ]  # the default flags nothing in these weights
    assert main(command) == 0
    return request.param, folder


def test_the_command_publishes_an_engine_its_onnx_file_and_nothing_else(published):
    size, folder = published
    names = [f"m.{kind}{suffix}" for kind in ("engine", "onnx") for suffix in ("", ".json", ".parity.npz")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for kind in ("engine", "onnx"):
        manifest = verified_manifest(folder / f"m.{kind}")
        assert manifest.model.size == size
        assert manifest.builder.name == ("tensorrt-rtx" if kind == "engine" else "onnx")
        golden = read_golden(folder / f"m.{kind}", manifest)
        assert len(golden.input) == 4
        assert golden.flags.any()
        assert not golden.flags.all()


def test_the_published_onnx_file_equals_eager_pytorch_on_fresh_images(published):
    size, folder = published
    spec = ExportSpec("unused.onnx", size=size, weights="random:0", itae=ItaeConfig("last", "key", "mad:5", "both"))
    model = pipeline.load(spec).model
    pixels = pixels_of(spec, 101, 105, 107)
    want = reference.embed(model, torch.from_numpy(pixels), spec.itae)
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    embedding, mask = session.run(["embedding", "artifact_mask"], {"pixel_values": pixels})
    assert want.is_mixed.any()
    np.testing.assert_array_equal(mask, want.artifact.numpy())
    np.testing.assert_allclose(embedding, want.embedding.numpy(), rtol=0, atol=ATOL)


def test_the_manifest_tells_every_option_and_figure(published):
    size, folder = published
    text = json.loads((folder / "m.engine.json").read_text())
    assert text["options"]["method"] == {
        "name": "itae", "layers": [11], "source": "key", "threshold": "mad:5", "side": "both", "attenuate": "min",
        "detect_layer": None,
    }  # fmt: skip
    assert text["options"]["batch"] == [1, 8, 64]
    assert text["model"]["registers"] == (4 if size.endswith("_reg") else 0)
    check = text["parity"]["checks"][0]
    assert check["max_abs"] < ATOL
    assert check["effect"] > 10 * ATOL  # so the parity check could fail
    assert 0 < check["flagged"] < check["patches"]


@pytest.mark.slow
@pytest.mark.parametrize("registers", ["", "_reg"])
@pytest.mark.parametrize(
    ("size", "image_size"), [("vitb14", (518, 518)), ("vitb14", (224, 308)), ("vitl14", (224, 224))]
)
def test_larger_sizes_equal_eager_pytorch(size, image_size, registers, tmp_path):
    spec = ExportSpec("unused.onnx", size=size + registers, weights="random:0", image_size=image_size, itae=MIXED)
    loaded, traced = pipeline.load_and_trace(spec, tmp_path)
    pixels = pixels_of(spec, 101)
    want = reference.embed(loaded.model, torch.from_numpy(pixels), MIXED)
    del loaded
    model = pipeline.operate(spec, traced, tmp_path).model
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (embedding,) = session.run(None, {"pixel_values": pixels})
    off = np.abs(embedding - want.embedding.numpy()).max()

    assert want.is_mixed.all()
    assert off < ATOL
