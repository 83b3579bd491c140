"""A graph with its weights elsewhere -> one ONNX file, or a file and its `.data` where 2 GiB are not enough."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from runtime.contract.errors import WeightsError

INLINE_LIMIT = (2 << 30) - (16 << 20)
"""Bytes of weights that fit into a protobuf file, whose own limit is 2 GiB, with room for the graph."""
ALIGNMENT = 4096
"""Alignment of each tensor in the `.data` file in bytes, so that it can be memory-mapped."""


def materialize(model: onnx.ModelProto, weights_folder: Path, path: Path, data_name: str) -> Path | None:
    """Write `model` with its weights to `path`; Casts and Unsqueezes of weights become weights.

    Args:
        model: the model, whose external data lies in `weights_folder`.
        weights_folder: the folder that the graph was traced to.
        path: the ONNX file to write.
        data_name: the name of the file with external weights beside it, if it needs one.

    Returns:
        The file with external weights, beside `path`; None if all weights are inside.

    Raises:
        WeightsError: a weight is too large for the half precision that it is to become.
    """
    half = _fold_weights(model)
    weights = model.graph.initializer
    total = sum(math.prod(tensor.dims) * _item_size(tensor, half) for tensor in weights)
    if total <= INLINE_LIMIT:
        for tensor in weights:
            if tensor.external_data or tensor.name in half:
                tensor.CopyFrom(numpy_helper.from_array(_load(tensor, weights_folder, half), tensor.name))
        onnx.save(model, path)
        return None
    data = path.with_name(data_name)
    with data.open("wb") as file:
        for tensor in weights:
            if tensor.external_data or tensor.name in half:
                array = _load(tensor, weights_folder, half)
                file.seek(-file.tell() % ALIGNMENT, os.SEEK_CUR)
                tensor.CopyFrom(_external(tensor.name, array, data_name, file.tell()))
                file.write(array.view(np.uint8).data)  # numpy gives no buffer of a bfloat16 array
    onnx.save(model, path)
    return data


class _Half(NamedTuple):
    """The half-precision form of a float32 weight."""

    dtype: np.dtype[Any]
    source: str
    """The name of the float32 weight."""


_Halves = dict[str, _Half]
"""By the names of the half-precision weights."""


def _fold_weights(model: onnx.ModelProto) -> _Halves:
    """Remove the Casts and Unsqueezes of weights; gives the weights that are half precision then."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    half: _Halves = {}
    left = []
    for node in graph.node:  # in the order of execution: one may read what another gave
        source = weights.get(node.input[0]) if node.op_type in ("Cast", "Unsqueeze") else None
        if source is None:
            left.append(node)
            continue
        folded = graph.initializer.add()
        folded.CopyFrom(source)
        folded.name = node.output[0]
        weights[folded.name] = folded
        if node.op_type == "Cast":
            (to,) = (attribute.i for attribute in node.attribute if attribute.name == "to")
            half[folded.name] = _Half(helper.tensor_dtype_to_np_dtype(to), source.name)
        else:
            axes = numpy_helper.to_array(weights[node.input[1]])
            folded.dims[:] = _unsqueezed(tuple(source.dims), axes.tolist())
            if source.name in half:
                half[folded.name] = half[source.name]
    del graph.node[:]
    graph.node.extend(left)
    used = {name for node in graph.node for name in node.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
    computed = {name for node in left for name in node.output}
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in computed:  # a weight has its own type
            del graph.value_info[index]
    return half


def _unsqueezed(shape: tuple[int, ...], axes: list[int]) -> tuple[int, ...]:
    rest = iter(shape)
    return tuple(1 if axis in axes else next(rest) for axis in range(len(shape) + len(axes)))


def _item_size(tensor: onnx.TensorProto, half: _Halves) -> int:
    own = half[tensor.name].dtype if tensor.name in half else helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(own.itemsize)


def _load(tensor: onnx.TensorProto, folder: Path, half: _Halves) -> npt.NDArray[Any]:
    """The values of one weight, rounded to half precision where it is in `half`."""
    array = numpy_helper.to_array(tensor, base_dir=str(folder))
    if tensor.name not in half:
        return np.ascontiguousarray(array)
    dtype, source = half[tensor.name]
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow).all():
        ways_out = "bf16, whose range is float32's, or fp32" if dtype == np.float16 else "fp32"
        raise WeightsError(
            f"the weight {source} holds {np.abs(array).max():.3g}, more than {dtype} can: use --precision {ways_out}"
        )
    return np.ascontiguousarray(narrow)


def _external(name: str, array: npt.NDArray[Any], location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
