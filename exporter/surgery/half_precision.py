"""Pass: half precision where the work is, float32 where range or exactness demands it, and a Cast at every border.

float16 or bfloat16: every MatMul, the biases that another MatMul reads, attention's logits, GELU and SwiGLU; in
float16 the patch projection, in bfloat16 the softmax. float32: the residual stream with LayerScale and the biases of
what is added to it, LayerNorm, in float16 the softmax, and all of ITAE's statistics. Evidence: exporter/DECISIONS.md.
"""

from __future__ import annotations

import math
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from exporter.surgery.edit import Editor, constant_value, dtype_of, is_constant, is_output, producer, rank_of, shape_of
from runtime.contract.errors import SurgeryError

Half = Literal["fp16", "bf16"]

HALVES: dict[Half, np.dtype[np.generic]] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
"""numpy has no bfloat16 of its own; onnx and onnx-graphsurgeon take that of ml_dtypes."""
WORK: dict[Half, tuple[str, ...]] = {"fp16": ("MatMul", "Gemm", "Conv"), "bf16": ("MatMul", "Gemm")}
"""A bfloat16 Conv is legal from opset 22 only; the trace is of opset 20."""
_MOVED = ("Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Concat", "Gelu", "Sigmoid")
FOLLOW: dict[Half, tuple[str, ...]] = {"fp16": _MOVED, "bf16": (*_MOVED, "Softmax")}
"""Operators that become half precision if their input comes from a half-precision node.

The softmax: its input and output are rounded either way, and libraries compute in float32 inside of it. A Cast on each
side would keep OpenVINO from making one kernel of an attention.
"""
DATA_INPUTS = {"Reshape": 1, "Slice": 1, "Gather": 1, "Squeeze": 1, "Unsqueeze": 1}
"""Operators of which only the first inputs are numbers; the other inputs say how to arrange them."""


def half_precision(graph: gs.Graph, precision: Half, *, exact_softmax: bool = False) -> list[str]:
    """Turn a float32 graph into a mixed one, strongly typed.

    A weight becomes a Cast of the float32 weight, which `exporter.surgery.materialize` turns into a half-precision
    weight when it writes the file: the passes themselves never read weights.

    Args:
        graph: changed in place.
        precision: of the work.
        exact_softmax: whether the softmax stays float32 in bfloat16 too.

    Raises:
        SurgeryError: an output of the graph would be rounded to half precision, or a type or shape is not known.
    """
    made = (tensor.dtype for node in graph.nodes for tensor in node.outputs if tensor.dtype is not None)
    if any(dtype in HALVES.values() for dtype in made):  # a second run changes nothing
        return []
    dtype = HALVES[precision]
    half: dict[int, gs.Node] = {}
    operators = _MOVED if exact_softmax else FOLLOW[precision]
    for node in graph.nodes:
        if node.op in WORK[precision] or _follows(node, half, operators):
            half[id(node)] = node
    _leave_last_biases(half)
    for node in half.values():
        if is_output(graph, node.outputs[0]):
            raise SurgeryError(f"the output {node.outputs[0].name!r} of {node.op} {node.name!r} would be {precision}")
        node.outputs[0].dtype = dtype
    edit = Editor(graph, "half")
    _cast_inputs(edit, half, dtype)
    _cast_outputs(edit, half)
    changed = [node.name for node in half.values()]
    graph.cleanup().toposort()
    return changed


def _follows(node: gs.Node, half: dict[int, gs.Node], operators: tuple[str, ...]) -> bool:
    """Whether `node` computes in half precision because all that it reads, but for constants, does."""
    numbers = node.inputs[: DATA_INPUTS.get(node.op)]
    constants = [tensor for tensor in numbers if is_constant(tensor)]
    varying = [tensor for tensor in numbers if not is_constant(tensor)]
    if not varying or not all(id(producer(tensor)) in half for tensor in varying):
        return False
    if node.op in operators:
        return True
    if node.op == "Add":  # a bias; without a constant it is the residual stream, which stays float32
        return len(constants) == 1 and rank_of(constants[0]) == 1
    if node.op == "Mul":  # a scale, or SwiGLU's gate; LayerScale, a vector, belongs to the residual stream
        return all(math.prod(shape_of(tensor)) == 1 for tensor in constants)
    return False


def _leave_last_biases(half: dict[int, gs.Node]) -> None:
    """Take out the biases that float32 alone reads: added there they cost nothing, and neither overflow nor round."""
    for node in [*half.values()]:
        if node.op == "Add" and not any(id(reader) in half for reader in node.outputs[0].outputs):
            del half[id(node)]


def _cast_inputs(edit: Editor, half: dict[int, gs.Node], dtype: npt.DTypeLike) -> None:
    """Let half-precision nodes read half precision: one Cast for each float32 tensor that some of them read."""
    casts: dict[int, gs.Tensor] = {}
    for node in half.values():
        for index, tensor in enumerate(node.inputs[: DATA_INPUTS.get(node.op)]):
            if not tensor.is_empty() and dtype_of(tensor) == np.float32:
                if id(tensor) not in casts:
                    casts[id(tensor)] = _as_half(edit, tensor, np.dtype(dtype))
                node.inputs[index] = casts[id(tensor)]


def _as_half(edit: Editor, tensor: gs.Tensor, dtype: np.dtype[np.generic]) -> gs.Tensor:
    name = f"{tensor.name}/{dtype.name}"
    value = constant_value(tensor)
    if value is not None and value.size == 1:  # a scale, which the attention pattern wants to read
        return gs.Constant(name, value.astype(dtype))
    return edit.cast(tensor, dtype, name)


def _cast_outputs(edit: Editor, half: dict[int, gs.Node]) -> None:
    """Let all other nodes read float32."""
    for node in half.values():
        tensor = node.outputs[0]
        readers = [reader for reader in tensor.outputs if id(reader) not in half]
        if not readers:
            continue
        exact = edit.cast(tensor, np.float32, f"{tensor.name}/float32")
        for reader in readers:
            reader.inputs = [exact if given is tensor else given for given in reader.inputs]
