"""Pass: float16 where the work is, float32 where range or exactness demands it, and a Cast at every border.

float16: the patch projection, every MatMul with its bias, attention's logits, GELU and SwiGLU. float32: the residual
stream with LayerScale, LayerNorm, the softmax, and all of ITAE's statistics. Evidence: exporter/DECISIONS.md.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from exporter.spec import ExportSpec
from exporter.surgery.edit import Editor, constant_value, producer, shape_of
from exporter.surgery.report import PassReport

WORK = ("MatMul", "Gemm", "Conv")
FOLLOW = ("Reshape", "Transpose", "Gelu", "Sigmoid")
"""Taken along where their input comes from float16."""
DATA_INPUTS = {"Reshape": 1}
"""Of these nodes only the first inputs are numbers; the others say how."""


def half_precision(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Turn a float32 graph into a mixed one, strongly typed, if `spec` asks for fp16.

    A weight becomes a Cast of the float32 weight, which `exporter.materialize` turns into a float16 weight when it
    writes the file: the surgery itself never reads weights.
    """
    report = PassReport("half_precision")
    if spec.resolved_precision != "fp16" or any(node.op in WORK and _is_half(node) for node in graph.nodes):
        return report
    edit = Editor(graph, "half")
    half: dict[int, gs.Node] = {}
    for node in graph.nodes:
        if _belongs(node, half):
            half[id(node)] = node
    nodes = list(half.values())
    for node in nodes:
        node.outputs[0].dtype = np.dtype(np.float16)
    _cast_inputs(edit, nodes)
    _cast_outputs(edit, graph, half)
    report.changed.extend(node.name for node in nodes)
    graph.cleanup().toposort()
    return report


def _is_half(node: gs.Node) -> bool:
    return bool(node.outputs[0].dtype == np.float16)


def _belongs(node: gs.Node, half: dict[int, gs.Node]) -> bool:
    """Whether `node` computes in float16, given the nodes before it that do."""
    if node.op in WORK:
        return True
    varying = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    follows = bool(varying) and all(id(producer(tensor)) in half for tensor in varying)
    if not follows:
        return False
    if node.op in FOLLOW:
        return True
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    if node.op == "Add":  # a bias; without a constant it is the residual stream, which stays float32
        return len(constants) == 1 and len(shape_of(constants[0])) == 1
    if node.op == "Mul":  # a scale, or SwiGLU's gate; LayerScale, a vector, belongs to the residual stream
        return all(math.prod(shape_of(tensor)) == 1 for tensor in constants)
    return False


def _cast_inputs(edit: Editor, nodes: list[gs.Node]) -> None:
    """Let float16 nodes read float16: one Cast for each float32 tensor that some of them read."""
    casts: dict[int, gs.Tensor] = {}
    for node in nodes:
        for index in range(DATA_INPUTS.get(node.op, len(node.inputs))):
            tensor = node.inputs[index]
            if tensor.dtype == np.float32:
                if id(tensor) not in casts:
                    casts[id(tensor)] = _as_half(edit, tensor)
                node.inputs[index] = casts[id(tensor)]


def _as_half(edit: Editor, tensor: gs.Tensor) -> gs.Tensor:
    name = f"{tensor.name}/float16"
    value = constant_value(tensor)
    if value is not None and value.size == 1:  # a scale, which the attention pattern wants to read
        return gs.Constant(name, value.astype(np.float16))
    return edit.cast(tensor, np.float16, name)


def _cast_outputs(edit: Editor, graph: gs.Graph, half: dict[int, gs.Node]) -> None:
    """Let all other nodes, and the graph's outputs, read float32."""
    for node in half.values():
        tensor = node.outputs[0]
        readers = [reader for reader in tensor.outputs if id(reader) not in half]
        if not readers and not any(output is tensor for output in graph.outputs):
            continue
        exact = edit.cast(tensor, np.float32, f"{tensor.name}/float32")
        for reader in readers:
            reader.inputs = [exact if given is tensor else given for given in reader.inputs]
        graph.outputs = [exact if output is tensor else output for output in graph.outputs]
