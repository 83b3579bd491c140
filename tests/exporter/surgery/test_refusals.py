"""What a pass can't rewrite it refuses: outputs inside what it changes, and shapes and types that are not known."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from attention_as_text import FACTS, attention_text, make_model, two_layers

from exporter.methods.itae.graph.inject import inject_itae, offered_outputs
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import find_attention
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph
from exporter.surgery.half_precision import half_precision
from exporter.surgery.runner import run_pass
from exporter.surgery.scale_queries import scale_queries
from exporter.surgery.select_outputs import Outputs, select_outputs
from exporter.surgery.split_bias_gelu import split_bias_gelu
from exporter.surgery.uint8_input import uint8_input
from runtime.contract.errors import SurgeryError

HOWS = ("min", "mask", "mean", "scale:0.5")


def inject(how: str) -> partial:
    return partial(inject_itae, facts=FACTS, itae=ItaeConfig("all", "key", "mad:0.5", attenuate=how))


SELECT = partial(
    select_outputs,
    facts=FACTS,
    outputs=Outputs(
        ("embedding", "patch_tokens", "artifact_mask"), True, True, offered_outputs(ItaeConfig("all"), FACTS.depth)
    ),
)
PASSES = {
    "scale_queries": partial(scale_queries, facts=FACTS),
    "half_precision": partial(half_precision, precision="fp16"),
    "cls_only": partial(cls_only, facts=FACTS, keep_query=False),
    "cls_only, all queries": partial(cls_only, facts=FACTS, keep_query=True),
    **{f"inject_itae, {how}": inject(how) for how in HOWS},
    "select_outputs": SELECT,
    "split_bias_gelu": partial(split_bias_gelu),
    "uint8_input": partial(uint8_input, facts=FACTS, name="images", mean=(0.5,) * 3, std=(0.5,) * 3),
}


def text_model() -> onnx.ModelProto:
    """Two attentions with an MLP's bias and GELU behind them."""
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0")
    return make_model(body + "\nmlp_m = MatMul(out1, w0)\nmlp_b = Add(mlp_m, b0)\nout2 = Gelu(mlp_b)", "out2")


def picture_model() -> onnx.ModelProto:
    """Takes a picture."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,3,28,28] pixels) => (float[batch,3,28,28] tokens) { a = Relu(pixels) tokens = Identity(a) }"""
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))


@functools.cache
def model_for(name: str) -> onnx.ModelProto:
    """A model on which the pass `name` does its work."""
    graph = import_graph(picture_model() if name == "uint8_input" else text_model()).toposort()
    if name.startswith(("inject", "select")):
        run_pass(PASSES["scale_queries"], graph)
    if name.startswith("select"):
        run_pass(inject("mean"), graph)
    return gs.export_onnx(graph, do_type_check=False)


def graph_for(name: str) -> gs.Graph:
    return import_graph(model_for(name)).toposort()


def tensors_of(graph: gs.Graph) -> list[gs.Variable]:
    return [tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Variable)]


def without_shape(tensor: gs.Variable) -> None:
    tensor.shape = None


def without_type(tensor: gs.Variable) -> None:
    tensor.dtype = None


def without_dimensions(tensor: gs.Variable) -> None:
    tensor.shape = []


def named_sizes(tensor: gs.Variable) -> None:
    tensor.shape = [f"size{axis}" for axis, _ in enumerate(tensor.shape)]


def unknown_sizes(tensor: gs.Variable) -> None:
    tensor.shape = [None for _ in tensor.shape]


def unknown_last_size(tensor: gs.Variable) -> None:
    tensor.shape = [*tensor.shape[:-1], None]


def zero_sizes(tensor: gs.Variable) -> None:
    tensor.shape = [0 for _ in tensor.shape]


def other_sizes(tensor: gs.Variable) -> None:
    tensor.shape = [tensor.shape[0], *(99 for _ in tensor.shape[1:])]


SPOILED = (without_shape, without_type, without_dimensions, named_sizes, unknown_sizes, unknown_last_size, zero_sizes,
           other_sizes)  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_each_pass_works_on_the_graph_that_is_spoiled_below(name):
    graph = graph_for(name)
    assert run_pass(PASSES[name], graph).changed


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_refuses_what_it_does_not_know_of_any_tensor_and_raises_nothing_else(name, spoil):
    for index in range(SPOILED.index(spoil) % 4, len(tensors_of(graph_for(name))), 4):  # each tensor in two ways
        graph = graph_for(name)
        spoil(tensors_of(graph)[index])
        with contextlib.suppress(SurgeryError):
            run_pass(PASSES[name], graph)


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("name", [name for name in PASSES if name != "split_bias_gelu"])
def test_a_pass_refuses_a_graph_of_which_nothing_is_known(name, spoil):
    graph = graph_for(name)
    for tensor in tensors_of(graph):
        if not (name == "half_precision" and spoil is not without_type):  # it reads types alone
            spoil(tensor)
    if name == "half_precision" and spoil is not without_type:
        return
    with pytest.raises(SurgeryError):
        run_pass(PASSES[name], graph)


INNER = ("n1_qr", "n1_q", "n1_kr", "n1_kt", "n1_vr", "n1_v", "n1_l", "n1_ls", "n1_s")
"""Every tensor inside the second attention of the text model."""


@pytest.mark.parametrize("tensor", INNER)
@pytest.mark.parametrize("name", [name for name in PASSES if name.startswith(("scale", "cls", "inject"))])
def test_an_inner_tensor_that_is_an_output_too_blocks_the_rewrite(name, tensor):
    graph = graph_for("scale_queries")
    leak(graph, tensor)
    with pytest.raises(SurgeryError, match=f"found that '{tensor}' is an output of the graph too"):
        run_pass(PASSES[name], graph)


@pytest.mark.parametrize("tensor", INNER)
def test_an_inner_tensor_that_is_used_elsewhere_blocks_the_rewrite(tensor):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0")
    body += f"\nleak = ReduceMean<keepdims=0>({tensor})\nout2 = Add(out1, leak)"
    with pytest.raises(SurgeryError, match=r"used by ReduceMean"):
        find_attention(import_graph(make_model(body, "out2")).toposort(), FACTS)


@pytest.mark.parametrize("tensor", ["out0", "n1_qm", "n1_qp", "n1_c", "n1_t", "out1", "mlp_m", "mlp_b", "out2"])
def test_the_cut_to_the_cls_row_refuses_a_second_output(tensor):
    graph = graph_for("cls_only")
    leak(graph, tensor)
    with pytest.raises(SurgeryError, match=rf"looked for one output, all tokens, found tokens, {tensor}"):
        run_pass(PASSES["cls_only"], graph)


def test_the_cut_to_the_cls_row_refuses_an_output_from_before_the_last_attention():
    graph = graph_for("cls_only")
    graph.outputs = [graph.tensors()["n1_qp"]]
    with pytest.raises(SurgeryError, match="'n1_qp' is not made after the last attention"):
        PASSES["cls_only"](graph)


@pytest.mark.parametrize("tensor", ["n0_qm", "n1_l", "mlp_m", "out2"])
def test_half_precision_refuses_to_round_an_output(tensor):
    graph = graph_for("half_precision")
    leak(graph, tensor)
    with pytest.raises(SurgeryError, match=f"the output '{tensor}' .* would be fp16"):
        run_pass(PASSES["half_precision"], graph)


@pytest.mark.parametrize("tensor", ["n0_qm", "out1"])
def test_selecting_outputs_refuses_a_second_output(tensor):
    graph = graph_for("select_outputs")
    leak(graph, tensor)
    with pytest.raises(SurgeryError, match="looked for one float32 output"):
        run_pass(PASSES["select_outputs"], graph)


def test_the_uint8_input_refuses_a_graph_that_gives_its_input_as_an_output():
    graph = graph_for("uint8_input")
    graph.outputs.append(graph.inputs[0])
    with pytest.raises(SurgeryError, match="'pixels' is an output of the graph"):
        PASSES["uint8_input"](graph)


def test_a_bias_of_a_sum_of_one_dimension_stays_as_it_is():
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[8] x) => (float[8] tokens) <float[8] b = {1,2,3,4,5,6,7,8}> { s = Add(x, b) tokens = Gelu(s) }"""
    graph = import_graph(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))).toposort()
    assert run_pass(PASSES["split_bias_gelu"], graph).changed == []


@pytest.mark.parametrize(
    "changes", [{"heads": 4}, {"width": 16}, {"prefix": 2}, {"grid": (3, 3)}], ids=lambda one: next(iter(one))
)
def test_attention_of_other_measures_is_refused(changes):
    with pytest.raises(SurgeryError, match=r"layer0: looked for .* of shape"):
        find_attention(import_graph(two_layers()).toposort(), dataclasses.replace(FACTS, **changes))


def test_an_output_that_nothing_offers_is_refused():
    graph = graph_for("select_outputs")
    with pytest.raises(SurgeryError, match="nothing gives the output masks"):
        select_outputs(graph, FACTS, Outputs(("masks",)))
    with pytest.raises(SurgeryError, match="looked for 'itae/layer7/artifact'"):
        select_outputs(graph, FACTS, Outputs(("flags",), by_layer={"flags": {7: "itae/layer7/artifact"}}))


def leak(graph: gs.Graph, name: str) -> None:
    """Make an inner tensor an output of the graph too."""
    tensor = graph.tensors()[name]
    assert isinstance(tensor, gs.Variable)
    assert tensor.dtype == np.float32
    assert tensor.shape[0] == "batch"
    graph.outputs.append(tensor)
