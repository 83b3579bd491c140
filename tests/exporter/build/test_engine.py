"""Engines built for real, by TensorRT-RTX, which needs no GPU to build."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest
from fake_driver import FakeDriver, no_driver

from exporter.build import engine
from exporter.build.build_log import (
    BuildLog,
    Kernel,
    inspected_kernels,
    logged_kernels,
    stopped_by_callbacks,
)
from exporter.build.engine import EngineRequest, EngineResult, build, choose_backend
from exporter.build.fusion import read_fusion
from exporter.options import MAX_MEDIAN_PATCHES
from runtime.contract import tensorrt
from runtime.contract.errors import BackendError, BuildError, InputError, OutputFileError, UsageError, one_line
from runtime.contract.tensorrt import shared_logger

N, C, H, BLOCKS = 257, 128, 2, 2
DYNAMIC = EngineRequest("tensorrt-rtx", (1, 2, 4))

LOGITS = {
    "plain": "logits{i} = Identity(scores{i})",
    "bias": "logits{i} = Add(scores{i}, bias)",
    # Needs the whole row of logits before the softmax: no fused kernel has a place for that.
    "row minimum": "low{i} = ReduceMin(scores{i}, last_axis) logits{i} = Where(artifact, low{i}, scores{i})",
}
EXTRA_INPUTS = {
    "plain": "",
    "bias": ", {dtype}[batch, 1, 1, {N}] bias",
    "row minimum": ", bool[batch, 1, 1, {N}] artifact",
}
BLOCK = """
    qkv{i} = MatMul(x{i}, weight{i})
    split{i} = Reshape(qkv{i}, heads_shape)
    turned{i} = Transpose<perm = [2, 0, 3, 1, 4]>(split{i})
    q_row{i}, k_row{i}, v_row{i} = Split<axis = 0, num_outputs = 3>(turned{i})
    q{i} = Squeeze(q_row{i}, first_axis)
    k{i} = Squeeze(k_row{i}, first_axis)
    v{i} = Squeeze(v_row{i}, first_axis)
    scaled{i} = Mul(q{i}, scale)
    k_turned{i} = Transpose<perm = [0, 1, 3, 2]>(k{i})
    scores{i} = MatMul(scaled{i}, k_turned{i})
    LOGITS
    weights{i} = Softmax<axis = -1>(logits{i})
    context{i} = MatMul(weights{i}, v{i})
    by_token{i} = Transpose<perm = [0, 2, 1, 3]>(context{i})
    joined{i} = Reshape(by_token{i}, tokens_shape)
    x{j} = Add(x{i}, joined{i})
"""


def attention_model(dtype: str, logits: str = "plain") -> onnx.ModelProto:
    """Two blocks of attention: x0 (B, 257, 128) -> x2, with 2 heads."""
    blocks = "".join(BLOCK.replace("LOGITS", LOGITS[logits]).format(i=i, j=i + 1) for i in range(BLOCKS))
    inputs = f"{dtype}[batch, {N}, {C}] x0" + EXTRA_INPUTS[logits].format(dtype=dtype, N=N)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]>\n'
        f"attention ({inputs}) => ({dtype}[batch, {N}, {C}] x{BLOCKS}) {{{blocks}}}"
    )
    numpy_dtype = {"float": np.float32, "float16": np.float16}[dtype]
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.array((C / H) ** -0.5, numpy_dtype),
        "heads_shape": np.array([0, 0, 3, H, C // H]),
        "tokens_shape": np.array([0, 0, C]),
        "first_axis": np.array([0]),
        "last_axis": np.array([-1]),
    } | {f"weight{i}": rng.normal(0, C**-0.5, (C, 3 * C)).astype(numpy_dtype) for i in range(BLOCKS)}
    for node in model.graph.node:
        node.name = node.output[0]
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return model


SITES = [frozenset({f"scores{i}", f"weights{i}", f"context{i}"}) for i in range(BLOCKS)]


def count_fused(result: EngineResult) -> int:
    fusion = read_fusion(SITES, result.kernels, {})
    assert fusion is not None
    return fusion.fused


def text_model(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{body}')


@pytest.fixture
def build_model(tmp_path):
    """Save a model, build it, give the result; the plan is `tmp_path / "x.plan"`."""

    def run(model: onnx.ModelProto, request: EngineRequest = DYNAMIC, log=None) -> EngineResult:
        path = tmp_path / "x.onnx"
        onnx.save(model, path)
        return build(path, tmp_path / "x.plan", request, log)

    return run


@pytest.mark.parametrize(
    ("dtype", "logits", "fused"),
    [
        pytest.param("float16", "plain", BLOCKS, id="fp16 plain: every attention fuses"),
        pytest.param("float16", "bias", BLOCKS, id="fp16 with a bias per key: every attention fuses"),
        pytest.param("float16", "row minimum", 0, id="fp16 with a row minimum: none fuses, so the count can drop"),
        pytest.param("float", "plain", 0, id="fp32: none fuses"),
    ],
)
def test_builds_and_counts_fused_attention(build_model, tmp_path, dtype, logits, fused):
    result = build_model(attention_model(dtype, logits))
    assert count_fused(result) == fused
    assert sum("_mha_" in kernel.name for kernel in result.kernels) == fused  # as the builder itself calls them
    assert len(result.kernels) > BLOCKS
    assert (tmp_path / "x.plan").stat().st_size == result.plan_bytes > C * 3 * C * 2 * BLOCKS


def test_result_says_what_was_built(build_model):
    result = build_model(attention_model("float16", "row minimum"))
    assert result.inputs == (("x0", "float16"), ("artifact", "bool"))
    assert result.outputs == (("x2", "float16"),)
    assert result.builder.name == "tensorrt-rtx"
    assert re.fullmatch(r"1\.\d+\.\d+\.\d+", result.builder.version)
    assert re.fullmatch(r"[a-z0-9]+-[a-z0-9_]+", result.builder.platform)
    assert sys.platform in result.builder.platform


def test_same_file_gives_the_same_plan_without_a_trace_of_this_machine(build_model, tmp_path):
    build_model(attention_model("float16"))
    first = (tmp_path / "x.plan").read_bytes()
    build_model(attention_model("float16"))
    assert (tmp_path / "x.plan").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_log_goes_to_the_callback_and_never_to_stdout(build_model, capfd):
    heard: list[tuple[str, str]] = []
    build_model(attention_model("float16"), log=lambda severity, message: heard.append((severity, message)))
    build_model(attention_model("float16"))  # without a callback: silence
    with pytest.raises(BuildError):
        build_model(MIXED)
    assert capfd.readouterr() == ("", "")
    assert {"verbose", "info"} <= {severity for severity, _ in heard}
    assert any(message.startswith("Layers:") for _, message in heard)


def test_fixed_batch_makes_another_plan_than_a_range(build_model, tmp_path):
    build_model(attention_model("float16"))
    dynamic = (tmp_path / "x.plan").read_bytes()
    lines: list[str] = []
    build_model(
        attention_model("float16"),
        EngineRequest("tensorrt-rtx", (3, 3, 3)),
        lambda _severity, message: lines.append(message),
    )
    assert (tmp_path / "x.plan").read_bytes() != dynamic
    (layers,) = [line for line in lines if line.startswith("Layers:")]
    shapes = f"MinShape: [3,{N},{C}], OptShape: [3,{N},{C}], MaxShape: [3,{N},{C}]"
    assert shapes in layers


def test_workspace_limit_reaches_the_builder(build_model, monkeypatch):
    import tensorrt_rtx as trt

    seen = []
    config = engine._config

    def spy(*args: object) -> object:
        made = config(*args)
        seen.append(made.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE))
        assert not made.get_flag(trt.BuilderFlag.TF32)
        return made

    monkeypatch.setattr(engine, "_config", spy)
    build_model(attention_model("float16"), EngineRequest("tensorrt-rtx", (1, 2, 4), workspace_mib=64))
    assert seen == [64 << 20]


@pytest.mark.parametrize(
    ("hardware", "level"),
    [("none", "NONE"), ("same-compute-capability", "SAME_COMPUTE_CAPABILITY"), ("ampere-plus", "AMPERE_PLUS")],
)
@pytest.mark.parametrize("compatible", [False, True])
def test_what_makes_an_engine_travel_reaches_the_builder(hardware, level, compatible):
    import tensorrt_rtx as trt

    class Config:
        """A stand-in, since TensorRT-RTX takes no level: it warns and keeps NONE."""

        def __init__(self):
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
            self.flags = set()

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def set_flag(self, flag):
            self.flags.add(flag)

    config = Config()
    builder = SimpleNamespace(create_builder_config=lambda: config)
    request = EngineRequest("tensorrt", (1, 2, 4), hardware_compatibility=hardware, version_compatible=compatible)
    engine._config(trt, builder, request, None)
    assert config.hardware_compatibility_level == getattr(trt.HardwareCompatibilityLevel, level)
    assert config.flags == ({trt.BuilderFlag.VERSION_COMPATIBLE} if compatible else set())


@pytest.mark.parametrize(
    ("backend", "hardware", "compatible", "words"),
    [
        ("tensorrt", "none", True, None),
        ("tensorrt", "same-compute-capability", False, None),
        ("tensorrt-rtx", "none", False, None),
        ("tensorrt-rtx", "none", True, "--version-compatible is for TensorRT"),
        ("tensorrt-rtx", "same-compute-capability", False, "same-compute-capability is for TensorRT"),
        ("tensorrt", "ampere-plus", False, r"on GPUs from Ampere on, and here is NVIDIA GPU 10 \(.* 7\.5\)"),
    ],
)
def test_an_engine_that_travels_is_refused_where_none_can_be_built(machine, backend, hardware, compatible, words):
    machine(["7.5"])
    with contextlib.ExitStack() as stack:
        if words is not None:
            stack.enter_context(pytest.raises((UsageError, BackendError), match=words))
        engine.check_portability(backend, hardware, version_compatible=compatible)
    machine(["8.0"])
    engine.check_portability("tensorrt", hardware, version_compatible=compatible)


def test_an_engine_of_tensorrt_says_on_which_gpu_it_was_built(build_model, machine, monkeypatch):
    result = build_model(attention_model("float16"))
    assert (result.builder.gpu, result.builder.compute_capability) == (None, None)  # TensorRT-RTX
    import tensorrt_rtx

    machine(["8.9", "9.0"])
    monkeypatch.setattr(engine, "import_library", lambda *_: tensorrt_rtx)
    result = build_model(attention_model("float16"), EngineRequest("tensorrt", (1, 2, 4)))
    assert (result.builder.name, result.builder.gpu) == ("tensorrt", "NVIDIA GPU 10")
    assert result.builder.compute_capability == "8.9"


MIXED = text_model("mixed (float[batch, 4] a, float16[batch, 4] b) => (float[batch, 4] c) { c = Add(a, b) }")
UNKNOWN_OP = text_model("unknown (float[batch, 4] a) => (float[batch, 4] c) { c = NoSuchThing(a) }")
STATIC = text_model("static (float[2, 4] a) => (float[2, 4] c) { c = Relu(a) }")
TWO_DYNAMIC = text_model("wide (float[batch, n] a) => (float[batch, n] c) { c = Relu(a) }")


@pytest.mark.parametrize(
    ("model", "request_", "words"),
    [
        pytest.param(MIXED, DYNAMIC, "Add: .*must have same input types.*Float and Half", id="mixed dtypes"),
        pytest.param(UNKNOWN_OP, DYNAMIC, "NoSuchThing", id="unknown operator"),
        pytest.param(STATIC, DYNAMIC, r"input a has shape \(2, 4\)", id="static batch of another size"),
        pytest.param(TWO_DYNAMIC, DYNAMIC, r"input a has shape \(-1, -1\)", id="a second dynamic dimension"),
    ],
)
def test_refused_model_is_a_one_line_error_with_the_builders_words(build_model, tmp_path, model, request_, words):
    with pytest.raises(BuildError, match=words) as caught:
        build_model(model, request_)
    assert caught.value.exit_code == 1
    assert one_line(caught.value) == str(caught.value)
    assert "cudaError" not in str(caught.value)
    assert not (tmp_path / "x.plan").exists()


def test_static_batch_of_the_asked_for_size_builds(build_model):
    assert build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2))).inputs == (("a", "float32"),)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x08not protobuf" * 20, id="garbage"),
        pytest.param(MIXED.SerializeToString()[:-20], id="truncated"),
        pytest.param(None, id="missing"),
    ],
)
def test_broken_file_is_a_build_error_that_names_it(tmp_path, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=re.escape(str(path))):
        build(path, tmp_path / "x.plan", DYNAMIC, None)
    assert not (tmp_path / "x.plan").exists()


def test_external_weights_are_found_beside_the_file_from_any_folder(tmp_path, monkeypatch):
    path = tmp_path / "x.onnx"
    onnx.save(attention_model("float16"), path, save_as_external_data=True, location="x.onnx.data", size_threshold=0)
    assert (tmp_path / "x.onnx.data").stat().st_size > C * 3 * C * 2 * BLOCKS
    monkeypatch.chdir(Path(__file__).parent)
    result = build(path, tmp_path / "x.plan", DYNAMIC, None)
    assert count_fused(result) == BLOCKS
    (tmp_path / "x.onnx.data").unlink()
    with pytest.raises(BuildError, match=r"x\.onnx"):
        build(path, tmp_path / "y.plan", DYNAMIC, None)


@pytest.mark.parametrize(
    ("k", "builds"),
    [
        pytest.param((MAX_MEDIAN_PATCHES + 1) // 2, True, id="upper half of the most patches"),
        pytest.param((MAX_MEDIAN_PATCHES + 1) // 2 + 1, False, id="one more"),
    ],
)
def test_largest_median_is_what_topk_can_give(build_model, k, builds):
    model = text_model(
        f"median (float[batch, {2 * k - 1}] norms) => (float[batch, {k}] upper)"
        f"{{ k = Constant<value = int64[1] {{{k}}}>() upper, at = TopK<axis = 1>(norms, k) }}"
    )
    if builds:
        build_model(model)
    else:
        with pytest.raises(BuildError):
            build_model(model)


def test_full_disk_is_an_output_error(build_model, monkeypatch):
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = attention_model("float16")
    real_open = Path.open

    def open_or_full(path: Path, *args: object, **kwargs: object) -> object:
        return full() if path.name == "x.plan" else real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_or_full)
    with pytest.raises(OutputFileError, match="No space left"):
        build_model(model)


@pytest.mark.parametrize("stop", [OSError("stderr is closed"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_what_a_callback_raises_ends_the_build(build_model, tmp_path, stop):
    def log(_severity: str, _message: str) -> None:
        raise stop

    with pytest.raises(type(stop)):
        build_model(attention_model("float16"), log=log)
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM raised as Ctrl-C"])
def test_interrupt_ends_the_build_and_the_handler_is_put_back(build_model, tmp_path, number):
    sent = []

    def log(_severity: str, message: str) -> None:
        if not sent and "optimization" in message:
            sent.append(os.kill(os.getpid(), number))

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_model(attention_model("float16"), log=log)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert sent
    assert not (tmp_path / "x.plan").exists()


def test_a_handler_that_someone_else_chose_stays(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_callbacks(BuildLog()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


KERNELS = (
    Kernel("_gemm_mha_v2_myl0_4", frozenset({"matmul", "softmax"})),
    Kernel("Reformatting CopyNode for Input Tensor 0 to x", frozenset()),
)


def test_kernels_of_a_log_are_its_layers_that_do_work_with_their_onnx_nodes():
    tensor = "[ { Name: x, Dimensions: [-1] }]"
    message = (
        "Layers:\n"
        "Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], TacticName: , StreamId: 0, Metadata: \n"
        f"Name: _gemm_mha_v2_myl0_4, LayerType: kgen, Inputs: {tensor}, StreamId: 0, "
        "Metadata: [ONNX Layer: matmul]\x1e[ONNX Layer: softmax]\x1f[ONNX Layer: matmul]\n"
        "Name: __mye2_myl0_5, LayerType: signal, Inputs: [], StreamId: 0, EventId: 1, Metadata: \n"
        "Name: __mye2_myl0_6, LayerType: wait, Inputs: [], StreamId: 1, EventId: 1, Metadata: \n"
        f"Name: Reformatting CopyNode for Input Tensor 0 to x, LayerType: Reformat, Outputs: {tensor}, Metadata: \n"
        "\nI/O Tensors:\n Name: q, IOMode: Input, DataType: Half\n"
    )
    assert logged_kernels(message) == KERNELS


def test_kernels_of_a_log_of_tensorrt_10():
    """In the form of a log in NVIDIA/TensorRT#4397: no separators in the metadata, the tensors under `Bindings:`."""
    tensor = "[ { Name: __mye56053, Dimensions: [4,40,64], Format/Datatype: Half }]"
    message = (
        "Layers:\n"
        "Name: Reformatting CopyNode for Input Tensor 0 to x, LayerType: Reformat, Inputs: [ { Name: x, Location: "
        "Device, Dimensions: [-1,3], Format/Datatype: Row major linear FP16 format }], Outputs: [], "
        "ParameterType: Reformat, TacticValue: 0x00000000000003e8, StreamId: 0, Metadata: \n"
        f"Name: key/MatMul+query/MatMul_myl0_16, LayerType: gemm, Inputs: {tensor}, Outputs: {tensor}, TacticName: "
        "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64, StreamId: 0, Metadata: "
        "[ONNX Layer: key/MatMul][ONNX Layer: key/Add][ONNX Layer: query/MatMul]\n"
        f"Name: _gemm_mha_v2_myl0_17, LayerType: kgen, Inputs: {tensor}, Outputs: {tensor}, TacticName: "
        "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a, StreamId: 0, Metadata: "
        "[ONNX Layer: attn/MatMul][ONNX Layer: attn/Softmax][ONNX Layer: attn/MatMul_1]\n"
        "\nBindings:\nx\nembedding\n"
    )
    assert logged_kernels(message) == (
        Kernel("Reformatting CopyNode for Input Tensor 0 to x", frozenset()),
        Kernel("key/MatMul+query/MatMul_myl0_16", frozenset({"key/MatMul", "key/Add", "query/MatMul"})),
        Kernel("_gemm_mha_v2_myl0_17", frozenset({"attn/MatMul", "attn/Softmax", "attn/MatMul_1"})),
    )


def test_a_kernel_takes_int8_where_numbers_and_weights_do():
    """In the form of TensorRT-RTX 1.7."""
    types = {"gemm": ("Int8", "Int8"), "rounds": ("Int8", "Float"), "gemm_float": ("Float", "Float")}
    lines = [
        f"Name: {name}, LayerType: gemm, Inputs: [ {{ Name: x, Datatype: {numbers} }}], "
        f"Constants: [ {{ Name: w, Datatype: {weights} }}], Outputs: [ {{ Name: y, Datatype: Int8 }}], Metadata: "
        for name, (numbers, weights) in types.items()
    ]
    message = "\n".join(["Layers:", *lines, "Name: silent, LayerType: kgen, Inputs: [], Metadata: ", ""])
    found = {kernel.name: kernel.takes_int8 for kernel in logged_kernels(message)}
    assert found == {"gemm": True, "rounds": False, "gemm_float": False, "silent": None}


def inspector_10(layers: list[dict[str, str]]) -> dict[str, object]:
    tensor = {"Name": "__mye56053", "Location": "Device", "Dimensions": [4, 40, 64], "Format/Datatype": "Half"}
    layers = [one | {"Inputs": [tensor], "Outputs": [tensor], "TacticName": "t", "StreamId": 0} for one in layers]
    return {"Layers": layers, "Bindings": ["x", "embedding"]}


def inspector_11(layers: list[dict[str, str]]) -> dict[str, object]:
    tensor = {"Name": "__mye56053", "Dimensions": [4, 40, 64], "Format": "Linear", "DataType": "Half"}
    layers = [one | {"Inputs": [tensor], "Outputs": [tensor], "TacticName": "t", "StreamId": 0} for one in layers]
    x = {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 3], "ProfileInfo": []}
    return {
        "ProfilingVerbosity": "DETAILED",
        "Layers": layers,
        "I/O Tensors": [x, x | {"Name": "embedding", "IOMode": "Output"}],
        "Engine Metadata": {"Multi-Device": "Disabled"},
    }


@pytest.mark.parametrize("separator", ["\x1e", ""], ids=["separated", "joined"])
@pytest.mark.parametrize("form", [inspector_10, inspector_11])
def test_kernels_of_an_inspector_are_the_same(form, separator):
    """The forms of TensorRT 10 and 11: `Bindings` became `I/O Tensors`, and a tensor's format has its own key."""
    layers = [
        {"Name": "__mye1_myl0_0", "LayerType": "shape_call", "Metadata": ""},
        {
            "Name": "_gemm_mha_v2_myl0_4",
            "LayerType": "kgen",
            "Metadata": f"[ONNX Layer: matmul]{separator}[ONNX Layer: softmax]",
        },
        {"Name": "Reformatting CopyNode for Input Tensor 0 to x", "LayerType": "Reformat"},
    ]
    assert inspected_kernels(json.dumps(form(layers))) == KERNELS


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"Layers": ["names", "only"]}', '{"Layers": 3}', '{"Layers": [{"Name": "no type"}]}'],
)
def test_an_inspector_that_does_not_tell_gives_no_kernels(text):
    assert inspected_kernels(text) == ()


# Timing caches. TensorRT-RTX takes them and does nothing with them; it warns that they are deprecated there.
takes_timing_caches = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


@takes_timing_caches
def test_an_empty_timing_cache_comes_back_with_content(build_model):
    request = EngineRequest("tensorrt-rtx", (2, 2, 2), timing_cache=b"")
    assert build_model(STATIC, request).timing_cache
    assert build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2))).timing_cache is None


@takes_timing_caches
@pytest.mark.parametrize("content", [b"no cache at all" * 9, bytes(200), b"ptrt"], ids=["text", "zeros", "truncated"])
def test_a_timing_cache_that_tensorrt_refuses_is_an_input_error_in_its_words(build_model, tmp_path, content):
    with pytest.raises(InputError, match=r"--timing-cache: TensorRT refuses the file .* delete it") as caught:
        build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2), timing_cache=content))
    assert one_line(caught.value) == str(caught.value)
    assert not (tmp_path / "x.plan").exists()


@takes_timing_caches
def test_a_timing_cache_of_another_gpu_is_refused(build_model, monkeypatch):
    import tensorrt_rtx as trt

    def mismatch(_config: object, _cache: object, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return False

    monkeypatch.setattr(trt.IBuilderConfig, "set_timing_cache", mismatch)
    with pytest.raises(InputError, match="of another version or GPU"):
        build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2), timing_cache=b""))


def test_no_engine_without_a_reason_points_to_verbose(tmp_path, build_model, monkeypatch):
    import tensorrt_rtx as trt

    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_args: None)
    with pytest.raises(BuildError, match="gave no reason; see --verbose"):
        build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2)))


def test_library_that_does_not_start_is_a_backend_error(build_model, monkeypatch):
    import tensorrt_rtx as trt

    def no_driver(_logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", no_driver)
    with pytest.raises(BackendError, match=r"tensorrt-rtx does not start: .*nullptr"):
        build_model(STATIC)


# Which library. Imports and the question for a GPU are replaced: no machine has all the cases.


@pytest.fixture
def machine(monkeypatch):
    """A machine with GPUs of these compute capabilities and these libraries; an exception is raised by the import."""

    def make(gpus: Sequence[str], **modules: str | Exception) -> None:
        def load(name: str) -> ModuleType | SimpleNamespace:
            found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}"))
            if isinstance(found, Exception):
                raise found
            return SimpleNamespace(__version__=found)

        monkeypatch.setattr(ctypes, "CDLL", (lambda _: FakeDriver(gpus)) if gpus else no_driver)
        monkeypatch.setattr(tensorrt.importlib, "import_module", load)

    return make


BOTH = {"tensorrt": "10.9", "tensorrt_rtx": "1.7"}
ADA, HOPPER = ["8.9"], ["9.0"]


@pytest.mark.parametrize(
    ("gpus", "modules", "requested", "chosen", "reason"),
    [
        pytest.param(ADA, BOTH, "auto", "tensorrt", "it is installed, and there is a GPU", id="GPU and both"),
        pytest.param(HOPPER, BOTH, "auto", "tensorrt", "it is installed", id="data-centre GPU and both"),
        pytest.param(
            ADA,
            {"tensorrt_rtx": "1.7"},
            "auto",
            "tensorrt-rtx",
            r"it supports NVIDIA GPU 10 \(compute capability 8\.9\); TensorRT does not load here",
            id="GPU and RTX",
        ),
        pytest.param(
            ["9.0", "12.0"], {"tensorrt_rtx": "1.7"}, "auto", "tensorrt-rtx", "NVIDIA GPU 11", id="one of two GPUs"
        ),
        pytest.param([], BOTH, "auto", "tensorrt-rtx", "there is no usable GPU here", id="no GPU"),
        pytest.param(["8.0", "8.0"], {"tensorrt": "11.0"}, "tensorrt", "tensorrt", None, id="TensorRT by name"),
        pytest.param(ADA, BOTH, "tensorrt-rtx", "tensorrt-rtx", None, id="RTX by name"),
        pytest.param(HOPPER, BOTH, "tensorrt-rtx", "tensorrt-rtx", None, id="RTX by name, for another machine"),
    ],
)
def test_backend_is_chosen_by_what_is_here_and_says_why(machine, gpus, modules, requested, chosen, reason):
    machine(gpus, **modules)
    choice = choose_backend(requested)
    assert choice.backend == chosen
    assert choice.reason is None if reason is None else re.search(reason, choice.reason)


@pytest.mark.parametrize("capability", ["7.0", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0", "12.1"])
def test_tensorrt_rtx_is_taken_only_for_gpus_that_it_supports(machine, capability):
    machine([capability], tensorrt_rtx="1.7")
    if capability in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"):  # NVIDIA's list
        assert choose_backend("auto").backend == "tensorrt-rtx"
    else:
        with pytest.raises(BackendError, match=rf"TensorRT-RTX would not run .* \(compute capability {capability}\)"):
            choose_backend("auto")


@pytest.mark.parametrize(
    ("gpus", "modules", "requested", "words"),
    [
        pytest.param([], {}, "auto", [r"pip install 'itae\[rtx\]'"], id="auto, nothing"),
        pytest.param(ADA, {}, "auto", [r"'itae\[gpu\]'", r"'itae\[rtx\]'"], id="auto, a GPU and nothing else"),
        pytest.param(
            HOPPER,
            {"tensorrt_rtx": "1.7"},
            "auto",
            [r"pip install 'itae\[gpu\]'", "would not run on this machine", "say --backend tensorrt-rtx"],
            id="auto, a data-centre GPU and RTX",
        ),
        pytest.param([], {"tensorrt": "11.0"}, "tensorrt", ["needs an NVIDIA GPU"], id="TensorRT, no GPU"),
        pytest.param(ADA, {}, "tensorrt", [r"pip install 'itae\[gpu\]'"], id="TensorRT, not installed"),
        pytest.param([], {}, "tensorrt-rtx", [r"pip install 'itae\[rtx\]'"], id="RTX, not installed"),
        pytest.param(ADA, {"tensorrt": "8.6.1"}, "tensorrt", ["8.6.1 is too old", "10"], id="TensorRT 8"),
        pytest.param(
            ADA,
            {"tensorrt": ImportError("libnvinfer.so.10: cannot open")},
            "tensorrt",
            ["does not load", "libnvinfer"],
            id="TensorRT without its libraries",
        ),
    ],
)
def test_missing_backend_is_bad_use_and_says_what_to_install(machine, gpus, modules, requested, words):
    machine(gpus, **modules)
    with pytest.raises(BackendError) as caught:
        choose_backend(requested)
    assert caught.value.exit_code == 2
    assert one_line(caught.value) == str(caught.value)
    for word in words:
        assert re.search(word, str(caught.value))


def test_public_reports_about_library_and_gpu_are_quoted_before_a_build(machine):
    machine(["12.0"], tensorrt="10.16.1.11", tensorrt_rtx="1.7")
    (warning,) = engine.known_faults_here("tensorrt", "fp16")
    assert "TensorRT/issues/4837" in warning
    assert engine.known_faults_here("tensorrt", "fp32") == []
    assert engine.known_faults_here("tensorrt-rtx", "fp16") == []


def test_tensorrt_is_not_even_imported_without_a_gpu(machine):
    machine([], tensorrt=AssertionError("imported"), tensorrt_rtx="1.7")
    assert choose_backend("auto").backend == "tensorrt-rtx"
    with pytest.raises(BackendError, match="GPU"):
        choose_backend("tensorrt")


def test_library_hidden_from_python_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match="not installed"):
        choose_backend("tensorrt-rtx")


# Beside a session


@pytest.fixture
def session_log(monkeypatch):
    """The log of an open session, in a process that is TensorRT's: the first logger stays, later ones are ignored.

    TensorRT-RTX takes each, so its constructors are given the first here.
    """
    import tensorrt_rtx as trt

    first: list[object] = []

    def keeping(make):
        def made(*arguments: object) -> object:
            first.append(arguments[-1])
            return make(*arguments[:-1], first[0])

        return made

    for name in ("Builder", "Runtime", "OnnxParser"):
        monkeypatch.setattr(trt, name, keeping(getattr(trt, name)))
    runtime = trt.Runtime(shared_logger(trt).logger)
    yield shared_logger(trt).log
    del runtime


def test_a_build_beside_an_open_session_has_its_kernels_and_its_errors(session_log, build_model):
    assert count_fused(build_model(attention_model("float16"))) == BLOCKS
    heard: list[str] = []
    with pytest.raises(BuildError, match="must have same input types"):
        build_model(MIXED, log=lambda _severity, message: heard.append(message))
    assert heard


@takes_timing_caches
def test_a_refused_timing_cache_is_noticed_beside_an_open_session(session_log, build_model):
    with pytest.raises(InputError, match="TensorRT refuses the file"):
        build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2), timing_cache=b"no cache at all" * 9))


def test_a_session_has_its_errors_after_a_build(session_log, build_model):
    import tensorrt_rtx as trt

    build_model(attention_model("float16"))
    session_log.forget()
    assert trt.Runtime(shared_logger(trt).logger).deserialize_cuda_engine(b"no engine") is None
    assert "readHeader" in session_log.last_errors()


def test_a_build_gives_its_messages_to_no_earlier_one(build_model):
    first: list[str] = []
    build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2)), lambda _severity, message: first.append(message))
    count = len(first)
    build_model(STATIC, EngineRequest("tensorrt-rtx", (2, 2, 2)))
    assert len(first) == count > 0


def test_a_build_that_fails_stops_listening_too(session_log, build_model):
    import tensorrt_rtx as trt

    heard: list[str] = []
    with pytest.raises(BuildError):
        build_model(MIXED, log=lambda _severity, message: heard.append(message))
    count = len(heard)
    session_log.forget()
    shared_logger(trt).logger.log(trt.ILogger.Severity.ERROR, "of a session")
    assert len(heard) == count
    assert session_log.last_errors() == "of a session"
