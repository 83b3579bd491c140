"""onnx-graphsurgeon with manners: every new node has a name, every new tensor a dtype and a shape.

Its traps, which this file keeps away from the passes: tensors compare equal when their names do (use `is`), `layer()`
leaves dtype and shape unset and lets names collide, and its logger prints to stdout.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from runtime.contract.errors import SurgeryError

Shape = tuple[int | str, ...]
AXES_SINCE = {
    "ReduceL2": 18, "ReduceMax": 18, "ReduceMean": 18, "ReduceMin": 18, "ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13,
}  # fmt: skip
"""The opset from which an operator takes its axes as an input; before, they are an attribute."""
PREFIX = "itae"
"""Names of nodes and tensors that the surgery adds begin with this."""


class _InFolder(LazyValues):  # type: ignore[misc]  # onnx-graphsurgeon ships no types
    """A weight in external data, which is read from its folder where its values are asked for."""

    def __init__(self, tensor: onnx.TensorProto, folder: Path) -> None:
        super().__init__(tensor)
        self._folder = folder

    def load(self) -> npt.NDArray[Any]:
        return np.array(onnx.numpy_helper.to_array(_loaded(self.tensor, self._folder)))


def _loaded(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """The tensor with its values inside. onnx's own reader refuses a file with a second link, such as a probe's."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    with (folder / entries["location"]).open("rb") as file:
        file.seek(int(entries.get("offset", 0)))
        content = file.read(int(entries.get("length", 0)) or size)
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content)


def load_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Bring the weights that lie in `folder`, in external data, into the model, in place."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(_loaded(tensor, folder))


def import_graph(model: onnx.ModelProto, folder: Path | None = None) -> gs.Graph:
    """A graph to operate on; weights in external data stay on disk.

    Args:
        model: the model.
        folder: where its external data lies, if the values of such a weight may be asked for.
    """
    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL  # it prints to stdout
    logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)
    graph = gs.import_onnx(model)
    if folder is not None:
        for tensor in graph.tensors().values():
            values = tensor._values if isinstance(tensor, gs.Constant) else None  # `values` would read it
            if isinstance(values, LazyValues) and getattr(values.tensor, "external_data", None):
                tensor.values = _InFolder(values.tensor, folder)
    return graph


@dataclass
class Editor:
    """Adds nodes to `graph` under `scope`, such as `layer11`: nodes are called `itae/layer11/norm`."""

    graph: gs.Graph
    scope: str

    def node(
        self,
        op: str,
        inputs: Sequence[gs.Tensor | npt.NDArray[Any]],
        name: str,
        *,
        dtype: npt.DTypeLike,
        shape: Shape,
        **attributes: Any,  # noqa: ANN401
    ) -> gs.Variable:
        """Add one node with one output of this dtype and shape; arrays among the inputs become constants.

        It is written for the graph's own opset, from 11 on.
        """
        full = self._free_name(name)
        if self.graph.opset < AXES_SINCE.get(op, 0) and len(inputs) > 1:
            inputs, axes = inputs[:1], inputs[1]
            attributes["axes"] = np.asarray(axes).tolist()
        tensors = [
            self._constant(f"{full}/{index}", value) if isinstance(value, np.ndarray | np.generic) else value
            for index, value in enumerate(inputs)
        ]
        output = gs.Variable(full, dtype=np.dtype(dtype), shape=list(shape))
        self.graph.nodes.append(gs.Node(op, full, attrs=attributes, inputs=tensors, outputs=[output]))
        return output

    def cast(self, tensor: gs.Tensor, dtype: npt.DTypeLike, name: str) -> gs.Tensor:
        """`tensor` in `dtype`; the tensor itself if it has this dtype already.

        Raises:
            SurgeryError: the dtype or shape of `tensor` is not known.
        """
        if dtype_of(tensor) == np.dtype(dtype):
            return tensor
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [tensor], name, dtype=dtype, shape=shape_of(tensor), to=int(to))

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> gs.Constant:
        return gs.Constant(name, np.array(value))

    def _free_name(self, name: str) -> str:
        full = f"{PREFIX}/{self.scope}/{name}" if self.scope else f"{PREFIX}/{name}"
        if any(node.name == full for node in self.graph.nodes):
            raise SurgeryError(f"the graph has a node called {full} already: was it exported by this program before?")
        return full


def cut(edit: Editor, tensor: gs.Tensor, name: str, *, axis: int, start: int, stop: int) -> gs.Variable:
    """`tensor[start:stop]` along `axis`.

    Raises:
        SurgeryError: the shape of `tensor` is not known, or it has no such axis or is shorter than `stop`.
    """
    shape = list(shape_of(tensor))
    if len(shape) <= axis or (isinstance(size := shape[axis], int) and size < stop):
        raise SurgeryError(f"{tensor.name!r} of shape {shape} has no entries {start} to {stop} along axis {axis}")
    shape[axis] = stop - start
    bounds = [np.array([value], np.int64) for value in (start, stop, axis)]
    return edit.node("Slice", [tensor, *bounds], name, dtype=tensor.dtype, shape=tuple(shape))


def is_ours(node: gs.Node) -> bool:
    """Whether the surgery added this node."""
    return str(node.name).startswith(f"{PREFIX}/")


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every node that reads `old` read `new` instead.

    Raises:
        SurgeryError: `old` is an output of the graph too, which would then hold other numbers or nothing.
    """
    if is_output(graph, old):
        raise SurgeryError(f"{old.name!r} is an output of the graph, and what it holds would be replaced")
    for consumer in list(old.outputs):
        consumer.inputs = [new if tensor is old else tensor for tensor in consumer.inputs]


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether `tensor` is an output of the graph."""
    return any(output is tensor for output in graph.outputs)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes `tensor`; None for inputs and constants."""
    return tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None


def is_constant(tensor: gs.Tensor) -> bool:
    """A constant, the half-precision Cast of one, or the Identity that TorchScript shares equal weights by."""
    node = producer(tensor)
    return isinstance(tensor, gs.Constant) or (
        node is not None and node.op in ("Cast", "Constant", "Identity") and all(map(is_constant, node.inputs))
    )


def is_free(tensor: gs.Tensor) -> bool:
    """Whether no picture changes `tensor`: it is a constant, or computed from constants and shapes alone."""
    waiting, seen = [tensor], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, gs.Constant) or one.is_empty():
            continue
        seen.add(id(one))
        node = producer(one)
        if node is None or node.op in ("If", "Loop", "Scan"):
            return False
        if node.op not in ("Shape", "Size"):
            waiting.extend(node.inputs)
    return True


def constant_value(tensor: gs.Tensor) -> npt.NDArray[Any] | None:
    """The value of a small constant, also behind a node `Constant` or `Identity`; None for anything else."""
    if isinstance(tensor, gs.Constant):
        external = isinstance(tensor._values, gs.ir.tensor.LazyValues) and tensor._values.tensor.external_data
        return None if external else np.asarray(tensor.values)
    node = producer(tensor)
    if node is not None and node.op == "Constant" and "value" in node.attrs:
        return np.asarray(node.attrs["value"].values)
    if node is not None and node.op == "Identity":
        return constant_value(node.inputs[0])
    return None


def rank_of(tensor: gs.Tensor) -> int | None:
    """Number of dimensions; None if it is not known."""
    return None if tensor.shape is None else len(tensor.shape)


def shape_of(tensor: gs.Tensor, rank: int | None = None) -> Shape:
    """The shape. Every size is a number, but for the first, which may be a name such as `batch`.

    Raises:
        SurgeryError: the shape or a size is not known, or there are not `rank` dimensions.
    """
    shape = tensor.shape
    known = shape is not None and all(
        (isinstance(size, int) and size > 0) or (axis == 0 and isinstance(size, str) and size)
        for axis, size in enumerate(shape)
    )
    if not known or (rank is not None and len(shape) != rank):
        wanted = "a shape" if rank is None else f"{rank} dimensions"
        found = "no shape" if shape is None else f"shape {list(shape)}"
        raise SurgeryError(
            f"looked for {wanted} of known sizes in {tensor.name!r}, found {found}: infer the shapes first, and fix "
            "every size but the batch's"
        )
    return tuple(shape)


def dtype_of(tensor: gs.Tensor) -> np.dtype[Any]:
    """The data type.

    Raises:
        SurgeryError: it is not known.
    """
    if tensor.dtype is None:  # numpy would take None for float64
        raise SurgeryError(f"the data type of {tensor.name!r} is not known: infer the types first")
    dtype: np.dtype[Any] = np.dtype(tensor.dtype)
    return dtype
