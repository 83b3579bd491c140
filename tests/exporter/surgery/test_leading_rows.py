"""Fewer rows in the last layer of any graph: where no output needs more, and where one does."""

from pathlib import Path

import foreign_models
import numpy as np
import onnx
import pytest
from foreign_models import put_in, results

from exporter.__main__ import main
from exporter.surgery.edit import import_graph
from exporter.surgery.leading_rows import keep_leading_rows, tensors_behind
from runtime.contract.errors import SurgeryError

FILES = Path(__file__).parents[2] / "data" / "foreign"
ITAE = ("--source", "query", "--threshold", "ratio:1.05", "--layers", "all")
SHAPES = {
    "q": (3, 2, 9, 4), "k": (3, 2, 4, 9), "v": (3, 2, 9, 4), "x": (3, 9, 8), "logits": (3, 2, 9, 9),
    "weights": (3, 2, 9, 9), "context": (3, 2, 9, 4), "by_token": (3, 9, 2, 4), "joined": (3, 9, 8), "sum": (3, 9, 8),
    "out": (3, 8), "mean": (3, 8), "sizes": (3,), "turned": (3, 8, 9),
}  # fmt: skip


def graph_of(end: str, outputs: str = "float[B,8] out"):
    """An attention and what adds to it, then `end`."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        main (float[B,2,9,4] q, float[B,2,4,9] k, float[B,2,9,4] v, float[B,9,8] x) => ({outputs})
        <int64[3] to = {{0, 9, 8}}, int64 first = {{0}}, int64 second = {{1}}, int64 last = {{-1}}> {{
            logits = MatMul(q, k)
            weights = Softmax<axis = -1>(logits)
            context = MatMul(weights, v)
            by_token = Transpose<perm = [0, 2, 1, 3]>(context)
            joined = Reshape(by_token, to)
            sum = Add(joined, x)
            {end}
        }}"""
    return import_graph(onnx.parser.parse_model(text)).toposort()


def kept(graph) -> int:
    product = next(node for node in graph.nodes if node.outputs[0].name == "logits")
    assert set(tensors_behind(graph, product)) <= {*SHAPES, "to", "first", "second", "last"}
    return keep_leading_rows(graph, product, 2, 3, SHAPES)


@pytest.mark.parametrize(("index", "rows"), [("first", 1), ("second", 2)])
def test_rows_up_to_the_last_that_is_read_are_left(index, rows):
    graph = graph_of(f"out = Gather<axis = 1>(sum, {index})")
    assert kept(graph) == rows
    cuts = {node.name: node.inputs[0].name for node in graph.nodes if node.op == "Slice"}
    assert cuts == {"itae/leading_rows/queries": "q", "itae/leading_rows/rows1": "x"}
    (target,) = (node.inputs[1].values.tolist() for node in graph.nodes if node.op == "Reshape")
    assert target == [0, 0, 8]


@pytest.mark.parametrize(
    ("end", "outputs", "reason"),
    [
        ("out = Gather<axis = 1>(sum, first)", "float[B,8] out, float[B,9,8] sum", "the output 'sum' has all tokens"),
        ("out = ReduceMean<axes = [1], keepdims = 0>(sum)", "float[B,8] out", "ReduceMean '' behind the last"),
        ("out = Gather<axis = 1>(sum, last)", "float[B,8] out", "reads more than the first tokens"),
        (
            "turned = Transpose<perm = [0, 2, 1]>(sum) mean = ReduceMean<axes = [2], keepdims = 0>(turned) "
            "out = Neg(mean)", "float[B,8] out", "ReduceMean '' behind the last",
        ),
        ("sizes = Shape(sum) out = Gather<axis = 1>(sum, first)", "float[B,8] out, int64[3] sizes", "number of tokens"),
        ("out = Gather<axis = 1>(x, first)", "float[B,8] out", "no output reads"),
    ],
)  # fmt: skip
def test_where_an_output_needs_more_it_is_said(end, outputs, reason):
    with pytest.raises(SurgeryError, match=reason):
        kept(graph_of(end, outputs))


def test_a_product_of_another_layout_is_refused():
    graph = graph_of("out = Gather<axis = 1>(sum, first)")
    product = next(node for node in graph.nodes if node.outputs[0].name == "logits")
    with pytest.raises(SurgeryError, match="looked for"):
        keep_leading_rows(graph, product, 4, 3, SHAPES)


@pytest.mark.parametrize("name", ["timm_fused-ts14", "timm_plain-dynamo20", "open_clip-ts17", "vit_pytorch-ts17"])
def test_real_exports_give_the_same_with_one_row(name, tmp_path, capsys):
    """By libraries whose graphs differ: packed or not, sizes computed, (N, B·H, d) between Reshapes."""
    source = FILES / f"{name}.onnx"
    assert put_in(source, tmp_path / "slow.onnx", *ITAE) == 0
    assert main(["--onnx", str(source), "--out", str(tmp_path / "fast.onnx"), *ITAE, "--faster"]) == 0
    assert "the last layer computes 1 of its" in capsys.readouterr().err
    for batch in (1, 2, 5):
        pictures = foreign_models.images(batch, batch)[:, :, 16:48, 8:40]
        for want, got in zip(
            results(tmp_path / "slow.onnx", pictures), results(tmp_path / "fast.onnx", pictures), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * max(1, np.abs(want).max()))


def test_an_export_with_all_tokens_says_so(exported_small, tmp_path, capsys):
    assert main(["--onnx", str(exported_small), "--out", str(tmp_path / "x.onnx"), *ITAE, "--faster"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "all tokens of the last layer are computed: the output 'last_hidden_state' has all tokens" in said


@pytest.fixture
def exported_small(tmp_path):
    foreign_models.export_fixed_batch(tmp_path / "theirs.onnx", batch=2)
    return tmp_path / "theirs.onnx"
