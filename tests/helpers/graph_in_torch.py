"""An ONNX graph run by PyTorch, node by node, each in the data type that the graph gives it.

ONNX Runtime's CPU has no bfloat16 kernels, and onnx's reference evaluator is too slow for real sizes. A node of half
precision reads rounded numbers, computes in float32 and rounds its result, as a GPU does. Only the nodes and attributes
of our graphs are supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch.nn import functional

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT64: torch.int64,
}
Tensor = torch.Tensor


def to_torch(proto: onnx.TensorProto, folder: Path) -> Tensor:
    array = numpy_helper.to_array(proto, base_dir=str(folder))
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor | None = None) -> Tensor:
    assert steps is None or bool((steps == 1).all())
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end),)]
    return x


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    return x.select(axis, int(index)) if index.ndim == 0 else x.index_select(axis, index)


def _reduce(how: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, axes, keepdims=1: how(x, dim=axes.tolist(), keepdim=bool(keepdims))


def _conv(x: Tensor, w: Tensor, b: Tensor, strides: list[int], **_: object) -> Tensor:
    return functional.conv2d(x, w, b, stride=strides)


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor, axis: int = -1, epsilon: float = 1e-5, **_: object) -> Tensor:
    assert axis in (-1, x.ndim - 1)
    return functional.layer_norm(x, x.shape[-1:], scale, bias, epsilon)


OPS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "MatMul": torch.matmul,
    "Abs": torch.abs, "Sqrt": torch.sqrt, "Sigmoid": torch.sigmoid, "And": torch.logical_and, "Or": torch.logical_or,
    "Greater": torch.gt, "Less": torch.lt, "LessOrEqual": torch.le, "Where": torch.where, "Identity": lambda x: x,
    "Cast": lambda x, to: x.to(DTYPES[to]),
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Conv": _conv,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Gather": _gather,
    "Gelu": lambda x, approximate=b"none": functional.gelu(x, approximate=approximate.decode()),
    "LayerNormalization": _layer_norm,
    "Max": torch.maximum, "Min": torch.minimum,
    "ReduceL2": _reduce(torch.linalg.vector_norm), "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin), "ReduceSum": _reduce(torch.sum),
    "Reshape": lambda x, shape, allowzero=0: _reshape(x, shape),
    "Shape": lambda x, start=0, end=None: torch.tensor(x.shape)[start:end],
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: functional.softmax(x, axis),
    "Squeeze": lambda x, axes: x.squeeze(axes.tolist()),
    "TopK": lambda x, k, axis, largest, sorted: torch.topk(x, int(k), axis, bool(largest), bool(sorted)),
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
}  # fmt: skip


@torch.inference_mode()
def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name; each node's output is checked to have the type that the file declares for it."""
    model = onnx.load(path)
    declared = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.output)}
    values = {one.name: to_torch(one, path.parent) for one in model.graph.initializer}
    values[model.graph.input[0].name] = torch.from_numpy(images)
    uses: dict[str, int] = {one.name: math.inf for one in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for node in model.graph.node:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        inputs = [values[name] for name in node.input]
        halves = {one.dtype for one in inputs} & {torch.float16, torch.bfloat16}
        if halves:
            assert {one.dtype for one in inputs if one.is_floating_point()} == halves, (node.op_type, node.name)
            inputs = [one.float() if one.is_floating_point() else one for one in inputs]
        results = OPS[node.op_type](*inputs, **attributes)
        for name, result in zip(node.output, results if isinstance(results, tuple) else (results,), strict=True):
            if halves and node.op_type != "Cast" and result.is_floating_point():
                (half,) = halves
                result = result.to(half)
            assert result.dtype == DTYPES[declared[name]], (node.op_type, node.name, result.dtype)
            values[name] = result
        for name in node.input:
            uses[name] -= 1
            if not uses[name]:
                values.pop(name, None)
    return {one.name: values[one.name].numpy() for one in model.graph.output}
