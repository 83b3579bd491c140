"""onnx-graphsurgeon with manners: every new node has a name, every new tensor a dtype and a shape.

Its traps, which this file keeps away from the passes: tensors compare equal when their names do (use `is`), `layer()`
leaves dtype and shape unset and lets names collide, and its logger prints to stdout.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

Shape = tuple[int | str, ...]
PREFIX = "itae"
"""Names of nodes and tensors that the surgery adds begin with this."""


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """A graph to operate on; weights in external data stay on disk."""
    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL  # it prints to stdout
    logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)
    return gs.import_onnx(model)


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
        """Add one node with one output of this dtype and shape; arrays among the inputs become constants."""
        full = self._free_name(name)
        tensors = [
            self._constant(f"{full}/{index}", value) if isinstance(value, np.ndarray | np.generic) else value
            for index, value in enumerate(inputs)
        ]
        output = gs.Variable(full, dtype=np.dtype(dtype), shape=list(shape))
        self.graph.nodes.append(gs.Node(op, full, attrs=attributes, inputs=tensors, outputs=[output]))
        return output

    def cast(self, tensor: gs.Tensor, dtype: npt.DTypeLike, name: str) -> gs.Tensor:
        """`tensor` in `dtype`; itself where it has it already."""
        if np.dtype(tensor.dtype) == np.dtype(dtype):
            return tensor
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [tensor], name, dtype=dtype, shape=tuple(tensor.shape), to=int(to))

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> gs.Constant:
        return gs.Constant(name, np.array(value))

    def _free_name(self, name: str) -> str:
        full = f"{PREFIX}/{self.scope}/{name}" if self.scope else f"{PREFIX}/{name}"
        if any(node.name == full for node in self.graph.nodes):
            raise AssertionError(f"the name {full} is taken: a pass adds a node twice")
        return full


def cut(edit: Editor, tensor: gs.Tensor, name: str, *, axis: int, start: int, stop: int) -> gs.Variable:
    """`tensor[start:stop]` along `axis`."""
    shape = list(shape_of(tensor))
    shape[axis] = stop - start
    bounds = [np.array([value], np.int64) for value in (start, stop, axis)]
    return edit.node("Slice", [tensor, *bounds], name, dtype=tensor.dtype, shape=tuple(shape))


def is_ours(node: gs.Node) -> bool:
    """Whether the surgery added this node."""
    return str(node.name).startswith(f"{PREFIX}/")


def replace_uses(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every node that reads `old` read `new` instead."""
    for consumer in list(old.outputs):
        consumer.inputs = [new if tensor is old else tensor for tensor in consumer.inputs]


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes `tensor`; none for inputs and constants."""
    return tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None


def constant_value(tensor: gs.Tensor) -> npt.NDArray[Any] | None:
    """The value of a small constant, also of one made by a `Constant` node; none for anything else."""
    if isinstance(tensor, gs.Constant):
        external = isinstance(tensor._values, gs.ir.tensor.LazyValues) and tensor._values.tensor.external_data
        return None if external else np.asarray(tensor.values)
    node = producer(tensor)
    if node is not None and node.op == "Constant" and "value" in node.attrs:
        return np.asarray(node.attrs["value"].values)
    return None


def shape_of(tensor: gs.Tensor) -> Shape:
    """The shape, empty where it is not known."""
    return tuple(tensor.shape) if tensor.shape is not None else ()
