"""Operators that hold a whole attention: the standard one of opset 23, and those of ONNX Runtime's optimiser."""

import json

import numpy as np
import onnx
import pytest
from foreign_models import images, put_in, results
from onnx import TensorProto, helper, numpy_helper

from runtime.__main__ import main as run_main

HEADS, WIDTH, TOKENS = 4, 16, 16


def one_layer(node, domain):
    """Patches of 16 pixels, one attention by `node`, and the mean token."""
    rng = np.random.default_rng(5)
    tensors = {
        "kernel": rng.standard_normal((WIDTH, 3, 16, 16)) * 0.05,
        "flat": np.array([0, WIDTH, TOKENS], np.int64),
        "gamma": rng.standard_normal(WIDTH) + 1,
        "beta": rng.standard_normal(WIDTH) * 0.1,
        **{f"w{one}": rng.standard_normal((WIDTH, WIDTH)) * 0.5 for one in "qkv"},
        "w": rng.standard_normal((WIDTH, 3 * WIDTH)) * 0.5,
        "b": rng.standard_normal(3 * WIDTH) * 0.5,
        "bias": rng.standard_normal((1, HEADS, TOKENS, TOKENS)),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["map"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Reshape", ["map", "flat"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "gamma", "beta"], ["x"]),
        *(helper.make_node("MatMul", ["x", f"w{one}"], [one]) for one in "qkv"),
        node,
        helper.make_node("Add", ["tokens", "y"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["vector"], axes=[1], keepdims=0)
        if domain
        else helper.make_node("ReduceMean", ["sum", "one"], ["vector"], keepdims=0),
    ]
    tensors["one"] = np.array([1], np.int64)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            numpy_helper.from_array(one if one.dtype == np.int64 else one.astype(np.float32), name)
            for name, one in tensors.items()
            if any(name in each.input for each in nodes)
        ],
    )
    opsets = [helper.make_opsetid("", 17 if domain else 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


FUSED = {
    "Attention-23": helper.make_node("Attention", ["q", "k", "v"], ["y"], "att", q_num_heads=HEADS, kv_num_heads=HEADS),
    "Attention-23 with bias": helper.make_node(
        "Attention", ["q", "k", "v", "bias"], ["y"], "att", q_num_heads=HEADS, kv_num_heads=HEADS, scale=0.3
    ),
    "MultiHeadAttention": helper.make_node(
        "MultiHeadAttention", ["q", "k", "v", "b", "", "bias"], ["y"], "att", domain="com.microsoft", num_heads=HEADS
    ),
    "Attention": helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], "att", domain="com.microsoft", num_heads=HEADS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_an_operator_is_written_out_and_gets_itae(name, tmp_path):
    node, source, out = FUSED[name], tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    onnx.save(one_layer(node, node.domain), source)
    assert put_in(source, out, "--threshold", "ratio:1.2", "--source", "key" if "Multi" not in name else "value") == 0
    assert "att" not in [one.name for one in onnx.load(out).graph.node]
    checks = json.loads((tmp_path / "x.onnx.json").read_text())["parity"]["checks"]
    assert any(0 < one["flagged"] < one["patches"] and one["effect"] > 1e-3 for one in checks)
    assert run_main(["verify", str(out)]) == 0
    assert put_in(source, tmp_path / "plain.onnx", "--threshold", "absolute:1e30", "--side", "high") == 0
    pictures = images(2)
    np.testing.assert_allclose(results(tmp_path / "plain.onnx", pictures)[0], results(source, pictures)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"is_causal": 1}, "a causal mask"), ({"softcap": 5.0}, "with softcap is not supported yet")],
    ids=["causal", "softcap"],
)
def test_an_operator_that_does_more_is_refused(change, said, tmp_path, capsys):
    node = helper.make_node(
        "Attention", ["q", "k", "v"], ["y"], "att", q_num_heads=HEADS, kv_num_heads=HEADS, **change
    )  # fmt: skip
    onnx.save(one_layer(node, ""), tmp_path / "theirs.onnx")
    assert put_in(tmp_path / "theirs.onnx", tmp_path / "x.onnx") == 2
    assert said in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["theirs.onnx"]
