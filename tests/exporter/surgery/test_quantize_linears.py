"""int8 layers in ONNX text: found, changed, refused, unchanged by a second run, the same numbers but for rounding."""

from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import numpy_helper

from exporter.surgery.edit import import_graph, is_ours
from exporter.surgery.quantize_linears import (
    QuantizedGroup,
    QuantizedLayer,
    find_groups,
    quantize_linears,
)
from exporter.surgery.runner import run_pass
from runtime.contract.errors import SurgeryError

TEXT = """
<ir_version: 8, opset_import: ["" : 20]>
net (float[batch, 3, 4] x) => (float[batch, 3, 4] y)
<float[4] gain, float[4] shift, float[4, 8] up, float[1, 8] up_bias, float[8, 4] down, float[4, 4] first,
 int64[1] zero = {0}, int64[1] one = {1}>
{
    n = LayerNormalization (x, gain, shift)
    cls = Slice (n, zero, one, one)
    q = MatMul (cls, first)
    h = MatMul (n, up)
    hb = Add (h, up_bias)
    g = Relu (hb)
    d = MatMul (g, down)
    dt = Transpose <perm = [0, 2, 1]> (d)
    s = MatMul (d, dt)
    t = MatMul (s, d)
    r = Add (t, q)
    y = Add (r, x)
}
"""
RNG = np.random.default_rng(3)
SHAPES = {"gain": (4,), "shift": (4,), "up": (4, 8), "up_bias": (1, 8), "down": (8, 4), "first": (4, 4)}
VALUES = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def graph() -> gs.Graph:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in VALUES.items())
    return import_graph(onnx.shape_inference.infer_shapes(model))


def as_int8(weight, bias=None) -> QuantizedLayer:
    scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return QuantizedLayer(np.rint(weight / scales).astype(np.int8), scales, bias)


def int8_groups() -> list[QuantizedGroup]:
    factors = np.array([1, 2, 4, 0.5], np.float32)
    layers = {name: as_int8(VALUES[name] * factors[:, None]) for name in ("first", "up")}
    gain, shift = VALUES["gain"] / factors, VALUES["shift"] / factors
    norms = QuantizedGroup({"cls": 0.05, "n": 0.05}, layers, gain, shift)
    return [norms, QuantizedGroup({"g": 0.1}, {"down": as_int8(VALUES["down"])})]


def run(made: gs.Graph, level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL):
    model = gs.export_onnx(made)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": X})[0]


def test_layers_are_grouped_by_the_norm_that_they_read():
    norms, down = find_groups(graph())
    assert (norms.norm, norms.gain, norms.shift) == ("n", "gain", "shift")
    assert {name: [one.weight for one in some] for name, some in norms.layers.items()} == {
        "cls": ["first"],
        "n": ["up"],
    }
    assert norms.layers["n"][0].bias == "up_bias"
    assert (down.norm, down.gain) == (None, None)
    assert list(down.layers) == ["g"]


def test_a_norm_that_something_else_reads_keeps_its_gain():
    made = graph()
    add = next(node for node in made.nodes if node.outputs[0].name == "y")
    add.inputs[1] = made.tensors()["n"]
    norms, _ = find_groups(made)
    assert (norms.norm, norms.gain, norms.shift) == ("n", None, None)


def test_products_become_int8_and_others_stay():
    made = graph()
    report = run_pass(partial(quantize_linears, groups=int8_groups()), made)
    assert report.changed == ["first", "up", "down"]
    ops = [node.op for node in made.nodes]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (3, 6)
    products = [node for node in made.nodes if node.op == "MatMul"]
    kinds = [[producer.op for tensor in node.inputs for producer in tensor.inputs] for node in products]
    assert sum(kind == ["DequantizeLinear"] * 2 for kind in kinds) == 3
    assert len(kinds) == 5
    for node in filter(is_ours, made.nodes):
        assert all(tensor.dtype is not None and tensor.shape is not None for tensor in node.outputs)
    weights = [
        tensor for tensor in made.tensors().values() if isinstance(tensor, gs.Constant) and tensor.dtype == np.int8
    ]
    assert {tensor.name for tensor in weights} >= {"first/int8", "up/int8", "down/int8"}
    assert "up" not in made.tensors()


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_numbers_are_the_same_but_for_rounding(level):
    exact = run(graph())
    made = graph()
    quantize_linears(made, int8_groups())
    got = run(made, getattr(onnxruntime.GraphOptimizationLevel, level))
    assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_a_new_bias_takes_the_old_ones_place_and_shape():
    made = graph()
    layer = QuantizedLayer(*(getattr(as_int8(VALUES["down"]), name) for name in ("weight", "scales")), None)
    up = as_int8(VALUES["up"], VALUES["up_bias"].reshape(-1) + 1)
    first = as_int8(VALUES["first"])
    quantize_linears(
        made,
        [
            QuantizedGroup({"cls": 0.05, "n": 0.05}, {"first": first, "up": up}),
            QuantizedGroup({"g": 0.1}, {"down": layer}),
        ],
    )
    np.testing.assert_array_equal(made.tensors()["up/bias"].values, VALUES["up_bias"] + 1)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_channels_are_divided_before_they_are_rounded(level):
    divisors = np.array([2, 1, 1, 1.5, 1, 1, 2, 1], np.float32)
    down = {"down": as_int8(VALUES["down"] * divisors[:, None])}
    made = graph()
    quantize_linears(made, [QuantizedGroup({"g": 0.05}, down, divisors=divisors)])
    got, exact = run(made, getattr(onnxruntime.GraphOptimizationLevel, level)), run(graph())
    assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_a_second_run_changes_nothing():
    made = graph()
    assert quantize_linears(made, int8_groups())
    assert quantize_linears(made, int8_groups()) == []


def test_a_layer_that_is_not_there_is_refused():
    other = QuantizedGroup({"g": 0.1}, {"other": as_int8(VALUES["down"])})
    with pytest.raises(SurgeryError, match="no linear layer 'other'"):
        quantize_linears(graph(), [other])
