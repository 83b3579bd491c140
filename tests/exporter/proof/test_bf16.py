"""bf16 from end to end: the published files, the manifest, and the error if something can't run it."""

import contextlib
import dataclasses
import json

import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from safetensors.torch import save_file

from exporter import ExportSpec, export, pipeline
from exporter.methods.itae.options import ItaeConfig
from exporter.models import backbone, weights
from exporter.models.architecture import Architecture
from exporter.proof import gate, half_range
from exporter.result import summary
from exporter.trace import OPSET
from runtime.__main__ import main as runtime_main
from runtime.contract.errors import CheckError, WeightsError

pytestmark = pytest.mark.usefixtures("traced_once")
ARCH = Architecture("small", width=128, heads=2, depth=2)
BF16, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16")
    options = {"size": ARCH, "weights": "random:0", "precision": "bf16", "image_size": 56}
    result = export(ExportSpec(folder / "m.engine", keep_onnx=folder / "m.onnx", **options))
    return folder, result


def test_the_manifest_does_not_claim_that_the_bf16_graph_was_run(published):
    folder, result = published
    for name in ("m.onnx", "m.engine"):
        parity = json.loads((folder / f"{name}.json").read_text())["parity"]
        assert parity["limits"]["min_cosine"] == 0.998
        purposes = [check["purpose"] for check in parity["checks"]]
        assert purposes[0] == "fp32"
        assert "exported" not in purposes
        assert parity["checks"][0]["max_abs"] < 1e-4
    (line, *_) = (line for line in summary(result) if line.startswith("  parity"))
    assert line.count("(the same surgery in fp32)") == 1


def test_work_is_bfloat16_and_the_patch_projection_is_not(published):
    folder, _ = published
    graph = onnx.load(folder / "m.onnx").graph
    types = types_of(graph)
    products = [node for node in graph.node if node.op_type == "MatMul"]
    exact = [node for node in graph.node if node.op_type in ("LayerNormalization", "Conv", "ReduceL2", "TopK")]
    assert {types[name] for node in products for name in (*node.input, *node.output)} == {BF16}
    assert {types.get(node.output[0], FLOAT) for node in exact} == {FLOAT}


def types_of(graph):
    """The element type of each tensor that has one in the file, by name."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types | {value.name: value.type.tensor_type.elem_type for value in graph.value_info}


@pytest.mark.parametrize(
    ("precision", "attenuate", "expected"),
    [
        ("bf16", "min", [BF16, BF16]),
        ("bf16", "mask", [BF16, BF16]),
        ("fp16", "mask", [FLOAT, FLOAT]),
    ],
)
def test_a_softmax_is_bfloat16_in_bf16_alone(precision, attenuate, expected, traced, tmp_path):
    itae = ItaeConfig("last", attenuate=attenuate)
    spec = ExportSpec(tmp_path / "m.onnx", size=ARCH, precision=precision, image_size=56, itae=itae)
    graph = onnx.load(pipeline.operate(spec, traced, tmp_path / "work").model).graph
    types = types_of(graph)
    found = [node for node in graph.node if node.op_type == "Softmax"]
    assert [types[node.input[0]] for node in found] == [types[node.output[0]] for node in found] == expected
    casts = [name for node in graph.node if node.op_type == "Cast" for name in (*node.input, *node.output)]
    beside = {name for node in found for name in (*node.input, *node.output)} & set(casts)
    assert bool(beside) == (precision == "fp16")  # a Cast there keeps OpenVINO from fusing the attention


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    spec = ExportSpec("unused.onnx", size=ARCH, weights="random:0", image_size=56)
    return pipeline.load_and_trace(spec, tmp_path_factory.mktemp("traced"))[1]


def test_a_bfloat16_patch_projection_would_be_refused():
    """At the opset of the trace: what keeps it float32."""
    x, w, y = (helper.make_tensor_value_info(*one) for one in (
        ("x", BF16, [1, 3, 28, 28]), ("w", BF16, [8, 3, 14, 14]), ("y", BF16, [1, 8, 2, 2])
    ))  # fmt: skip
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], strides=[14, 14])], "conv", [x, w], [y])
    for opset, refused in ((OPSET, True), (22, False)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        with pytest.raises(onnx.shape_inference.InferenceError) if refused else contextlib.nullcontext():
            onnx.checker.check_model(model, full_check=True)


def test_the_gate_refuses_a_tensor_of_another_type_than_declared(published, tmp_path):
    folder, _ = published
    spec = ExportSpec(folder / "m.engine", size=ARCH, precision="bf16", image_size=56)
    gate.check_file(folder / "m.onnx", spec)
    model = onnx.load(folder / "m.onnx")
    declared = next(one for one in model.graph.value_info if one.type.tensor_type.elem_type == BF16)
    declared.type.tensor_type.elem_type = FLOAT
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckError, match=r"does not pass onnx\.checker"):
        gate.check_file(tmp_path / "m.onnx", spec)
    with pytest.raises(CheckError, match="inputs and outputs"):
        gate.check_file(folder / "m.onnx", dataclasses.replace(spec, input="uint8"))


def test_logits_beyond_float16_are_refused_in_fp16(tmp_path):
    tensors = weights.random_tensors(ARCH, 0)
    C = ARCH.width
    tensors["blocks.0.attn.qkv.weight"][: 2 * C] *= 300
    save_file(tensors, tmp_path / "loud.safetensors")
    options = {"size": ARCH, "weights": str(tmp_path / "loud.safetensors"), "image_size": 56}
    with pytest.raises(WeightsError, match=r"layer\.0\.attention's logits reach .*e\+05, more than float16 can hold"):
        export(ExportSpec(tmp_path / "m.onnx", precision="fp16", **options))
    assert not (tmp_path / "m.onnx").exists()


def test_nan_in_what_is_watched_is_not_lost():
    model = weights.build_model(ARCH, backbone.translate(weights.random_tensors(ARCH, 0), ARCH, "test").parameters)
    with half_range.watch(model) as seen:
        projection = model.encoder.layer[0].mlp.fc1
        for number in (1.0, float("nan"), 2.0):
            projection(torch.full((1, 1, ARCH.width), number))
    with pytest.raises(WeightsError, match="nan"):
        half_range.check_float16(seen)


def test_swiglu_beyond_float16_is_refused_in_fp16_and_exported_in_bf16(tmp_path):
    arch = dataclasses.replace(ARCH, swiglu=True)
    tensors = weights.random_tensors(arch, 0)
    tensors["blocks.0.mlp.w12.weight"] *= 200
    tensors["blocks.0.mlp.w3.weight"] /= 200**2
    save_file(tensors, tmp_path / "loud.safetensors")
    options = {"size": arch, "weights": str(tmp_path / "loud.safetensors"), "image_size": 56}
    named = r"layer\.0\.mlp\.down_proj reads .*e\+05, more than float16 can hold: use --precision bf16"
    with pytest.raises(WeightsError, match=named):
        export(ExportSpec(tmp_path / "m.onnx", precision="fp16", **options))
    export(ExportSpec(tmp_path / "m.onnx", precision="bf16", **options))


def test_a_bias_beyond_float16_before_layer_scale_is_no_trouble(tmp_path):
    tensors = weights.random_tensors(ARCH, 0)
    tensors["blocks.0.mlp.fc2.bias"][5] = 1e5
    tensors["blocks.0.ls2.gamma"][5] = 0.05
    save_file(tensors, tmp_path / "loud.safetensors")
    options = {"size": ARCH, "weights": str(tmp_path / "loud.safetensors"), "image_size": 56}
    export(ExportSpec(tmp_path / "m.onnx", precision="fp16", **options))


@pytest.mark.parametrize("command", ["verify", "embed"])
def test_the_runtime_refuses_a_bf16_onnx_file_on_the_cpu_in_one_line(command, published, tmp_path, capsys):
    folder, _ = published
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.png")
    further = [str(tmp_path / "in"), "--out", str(tmp_path / "out")] if command == "embed" else []
    assert runtime_main([command, str(folder / "m.onnx"), *further]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is bf16, for which ONNX Runtime's CPU has no kernels" in line
    assert "--precision fp32 or fp16" in line
