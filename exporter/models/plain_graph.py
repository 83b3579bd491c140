"""An ONNX graph to read: its constants as arrays, ONNX Runtime's fused operators as the plain ones they stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from runtime.contract.errors import WeightsError, one_line

Array = npt.NDArray[Any]
QUANTIZED = (
    *("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QLinearConv"),
    *("ConvInteger", "DynamicQuantizeMatMul", "QAttention", "MatMulNBits", "MatMulIntegerToFloat"),
)
"""Operators on whole numbers of few bits."""
_SAME = frozenset(
    (
        *("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Slice", "Gather", "Split", "Expand"),
    )
)
"""Operators that move or select values of their first input, and compute none."""
_FIRST_ALONE = _SAME | {"Resize", "Clip", "Pad", "Tile", "ReduceMean", "SplitToSequence", "SequenceAt"}
"""Operators whose further inputs are sizes and places, no values."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operator."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[str, Any]
    proto: onnx.NodeProto | None = None
    """None if it stands for a part of a fused operator."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A product with a stored matrix: `weight` (out, in) float32, `bias` (out,) float32 or None."""

    source: str
    """The tensor that is multiplied."""
    weight: Array
    bias: Array | None
    end: str
    """The result, with the bias."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm, as one operator or in parts."""

    source: str
    weight: Array
    bias: Array
    end: str


class PlainGraph:
    """The graph of a file; what is asked for is computed once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the graph; functions of the file's own are written out."""
        self._stored = {one.name: one for one in model.graph.initializer}
        self._arrays: dict[str, Array] = {}
        self._opsets = list(model.opset_import)
        self.nodes = [one for proto in model.graph.node for one in self._plain(proto)]
        self._index()
        self.nodes = [*self._cut_products()]
        self._index()
        self._constants = {*self._stored, *self._arrays, ""}
        for node in self.nodes:
            if node.proto is not None and all(name in self._constants for name in node.inputs):
                has_graph = any(one.HasField("g") or one.graphs for one in node.proto.attribute)
                if not has_graph and not node.op.startswith("Random"):
                    self._constants.update(node.outputs)
        self._roots: dict[str, str] = {}

    def _index(self) -> None:
        self.maker = {name: node for node in self.nodes for name in node.outputs if name}
        self.users: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.users[name].append(node)

    def _cut_products(self) -> Iterator[Node]:
        """The nodes, with a product whose parts have biases of their own as a product for each part."""
        cut: set[Node] = set()
        for node in self.nodes:
            if node.op == "MatMul" and len(users := self.users[node.outputs[0]]) == 1 and users[0].op == "Split":
                (split,) = users
                weight = self._stored.get(node.inputs[1])
                has_biases = all([user.op for user in self.users[part]] == ["Add"] for part in split.outputs)
                if weight is not None and has_biases and split.options.get("axis") in (-1, 2):
                    sizes = split.options.get("split")
                    if len(split.inputs) > 1 and split.inputs[1] in self._stored:
                        sizes = numpy_helper.to_array(self._stored[split.inputs[1]]).tolist()
                    sizes = sizes or [weight.dims[1] // len(split.outputs)] * len(split.outputs)
                    parts = np.split(numpy_helper.to_array(weight), np.cumsum(sizes)[:-1], axis=1)
                    cut.add(split)
                    for part, array in zip(split.outputs, parts, strict=True):
                        self._arrays[f"{part}/weight"] = array
                        yield Node("MatMul", (node.inputs[0], f"{part}/weight"), (part,), {})
                    continue
            if node not in cut:
                yield node

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on no input of the graph."""
        return name in self._constants

    def constant(self, name: str) -> Array:
        """The value of a constant tensor, in the file's own type."""
        if name in self._arrays:
            return self._arrays[name]
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])  # not kept: large models
        node = self.maker[name]
        values = {one: self.constant(one) for one in node.inputs if one}
        if node.op in ("Identity", "Cast"):
            found = values[node.inputs[0]]
            if node.op == "Cast":
                found = found.astype(helper.tensor_dtype_to_np_dtype(node.options["to"]))
            return found
        if node.op == "Transpose":
            return values[node.inputs[0]].transpose(node.options.get("perm"))
        self._arrays |= dict(zip(node.outputs, self._run(node, values), strict=True))
        return self._arrays[name]

    def vector(self, name: str, size: int) -> Array | None:
        """A constant of `size` numbers along its last dimension, as (size,) float32; None if the tensor is none."""
        if not self.is_constant(name) or self._shape(name)[-1:] not in ((), (size,)):
            return None
        found = self.constant(name)
        return found.astype(np.float32).reshape(-1) if found.size == size and found.shape[-1] == size else None

    def root(self, name: str) -> str:
        """The tensor whose values this one moves or selects: behind Reshape, Cast, Slice and alike."""
        if name not in self._roots:
            node = self.maker.get(name)
            self._roots[name] = (
                self.root(node.inputs[0]) if node is not None and node.op in _SAME and node.inputs else name
            )
        return self._roots[name]

    def data(self, node: Node) -> Iterator[str]:
        """The inputs of an operator whose values it computes with, without constants."""
        if node.op in ("Shape", "Size"):
            return
        for name in node.inputs[:1] if node.op in _FIRST_ALONE else node.inputs:
            if name and not self.is_constant(name):
                yield name

    @cached_property
    def adds(self) -> list[Node]:
        """Sums of two tensors that both depend on an input."""
        return [one for one in self.nodes if one.op == "Add" and not any(map(self.is_constant, one.inputs))]

    def in_order(self, layers: Container[Linear]) -> list[Linear]:
        """Linear layers in the file's order."""
        return [one for one in self.linears.values() if one in layers]

    @cached_property
    def linears(self) -> dict[Node, Linear]:
        """By its product, each linear layer."""
        found = {}
        for node in self.nodes:
            if node.op not in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm") or len(node.inputs) < 2:
                continue
            source, name = node.inputs[:2]
            if not self.is_constant(name) or self.is_constant(source) or len(self._shape(name)) != 2:
                continue
            weight = self.constant(name).astype(np.float32, copy=False)
            weight = weight if node.options.get("transB") else weight.T
            if (alpha := float(node.options.get("alpha", 1.0))) != 1:
                weight = weight * np.float32(alpha)
            bias, end = None, node.outputs[0]
            if len(node.inputs) > 2 and node.inputs[2] and "Gemm" in node.op:
                bias = self.vector(node.inputs[2], len(weight))
            if bias is None:
                bias, end = self._added(end, len(weight))
            found[node] = Linear(source, weight, bias, end)
        return found

    @cached_property
    def norms(self) -> list[Norm]:
        """Each layer norm over the last dimension, in the file's order."""
        found = []
        for node in self.nodes:
            if node.op == "LayerNormalization" and self.is_constant(node.inputs[1]):
                weight = self.constant(node.inputs[1]).astype(np.float32).reshape(-1)
                bias = self.vector(node.inputs[2], len(weight)) if len(node.inputs) > 2 else np.zeros(len(weight), "f4")
                if bias is not None:
                    found.append(Norm(node.inputs[0], weight, bias, node.outputs[0]))
            elif node.op == "Sub" and (mean := self.maker.get(self.root(node.inputs[1]))) is not None:
                is_own = mean.op == "ReduceMean" and self.root(mean.inputs[0]) == self.root(node.inputs[0])
                found += self._in_parts(node) if is_own else ()
        return found

    def nearest(self, name: str) -> frozenset[Linear]:
        """The linear layers whose results this tensor is computed from, not looking behind them or behind a norm."""
        ends = self._norm_ends
        waiting, seen, found = [name], set(), set()
        while waiting:
            one = waiting.pop()
            node = self.maker.get(one)
            if one in seen or node is None or one in ends:
                continue
            seen.add(one)
            if node in self.linears:
                found.add(self.linears[node])
            else:
                waiting += self.data(node)
        return frozenset(found)

    def behind(self, name: str, ops: Sequence[str]) -> Iterator[Node]:
        """The nearest operators of these kinds that a tensor is computed from, not looking behind linear layers."""
        waiting, seen = [name], set()
        while waiting:
            one = waiting.pop()
            node = self.maker.get(one)
            if one in seen or node is None or node in self.linears:
                continue
            seen.add(one)
            if node.op in ops and sum(1 for _ in self.data(node)) >= 1:
                yield node
            else:
                waiting += self.data(node)

    @cached_property
    def _norm_ends(self) -> frozenset[str]:
        return frozenset(one.end for one in self.norms)

    def _shape(self, name: str) -> tuple[int, ...]:
        stored = self._stored.get(name)
        return tuple(stored.dims) if stored is not None else self.constant(name).shape

    def _added(self, end: str, size: int) -> tuple[Array | None, str]:
        """The bias that is added to a product, and the sum; None and the product if there is none."""
        name = end
        while len(users := self.users[name]) == 1:
            (user,) = users
            if user.op == "Add":
                other = user.inputs[1] if user.inputs[0] == name else user.inputs[0]
                bias = self.vector(other, size)
                return (bias, user.outputs[0]) if bias is not None else (None, end)
            if user.op not in ("Cast", "Reshape", "Identity") or user.inputs[0] != name:
                break
            name = user.outputs[0]
        return None, end

    def _in_parts(self, difference: Node) -> Iterator[Norm]:
        """The layer norm that begins with `x - mean(x)`."""
        for quotient in self._users_through(difference.outputs[0], ("Div", "Mul")):
            for product in self._users_through(quotient.outputs[0], ("Mul",)):
                weight = self._other(product, quotient.outputs[0])
                for total in self._users_through(product.outputs[0], ("Add",)) if weight is not None else ():
                    bias = self._other(total, product.outputs[0])
                    if weight is not None and bias is not None and len(weight) == len(bias):
                        yield Norm(difference.inputs[0], weight, bias, total.outputs[0])

    def _users_through(self, name: str, ops: Sequence[str]) -> Iterator[Node]:
        for user in self.users[name]:
            if user.op == "Cast":
                yield from self._users_through(user.outputs[0], ops)
            elif user.op in ops:
                yield user

    def _other(self, node: Node, name: str) -> Array | None:
        """The constant vector that an operator takes beside a tensor."""
        for one in node.inputs:
            if self.root(one) != self.root(name) and self.is_constant(one) and self.constant(one).ndim:
                return self.vector(one, self.constant(one).shape[-1])
        return None

    def _plain(self, proto: onnx.NodeProto) -> Iterator[Node]:
        """An operator as the plain ones that it stands for."""
        options = {one.name: helper.get_attribute_value(one) for one in proto.attribute}
        node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), options, proto)
        first, name = node.inputs[:1], node.outputs[0]
        if node.op == "Constant" and isinstance(options.get("value"), onnx.TensorProto):
            self._stored[name] = options["value"]
        elif node.op in ("BiasGelu", "FastGelu") and len(node.inputs) > 1:
            yield Node("Add", node.inputs, (f"{name}/sum",), {})
            yield Node("Gelu", (f"{name}/sum",), (name,), {})
        elif node.op == "SkipLayerNormalization":
            source = node.inputs[0]
            if len(node.inputs) > 4:
                yield Node("Add", (source, node.inputs[4]), (f"{name}/biased",), {})
                source = f"{name}/biased"
            total = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3] else f"{name}/sum"
            yield Node("Add", (source, node.inputs[1]), (total,), {})
            yield Node("LayerNormalization", (total, *node.inputs[2:4]), (name,), {})
        elif node.op == "Attention" and proto.domain == "com.microsoft":
            yield Node("MatMul", (*first, node.inputs[1]), (f"{name}/product",), {})
            yield Node("Add", (f"{name}/product", node.inputs[2]), (f"{name}/packed",), {})
            yield Node("PackedAttention", (f"{name}/packed",), node.outputs, {})
        elif node.op == "MultiHeadAttention" and len(node.inputs) > 3 and node.inputs[3] in self._stored:
            parts = np.split(numpy_helper.to_array(self._stored[node.inputs[3]]), 3)
            for part, source, bias in zip("qkv", node.inputs, parts, strict=False):
                self._arrays[f"{name}/{part}/bias"] = bias
                yield Node("Add", (source, f"{name}/{part}/bias"), (f"{name}/{part}",), {})
            yield Node("Attention", tuple(f"{name}/{part}" for part in "qkv"), node.outputs, {})
        else:
            yield node

    def _run(self, node: Node, values: dict[str, Array]) -> list[Array]:
        """The outputs of an operator, by ONNX Runtime."""
        inputs = [
            helper.make_tensor_value_info(one, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for one, array in values.items()
        ]
        outputs = [onnx.ValueInfoProto(name=one) for one in node.outputs]
        assert node.proto is not None
        graph = helper.make_graph([node.proto], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found: list[Array] = session.run(None, values)
        return found


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file, its functions written out, whose weights are plain numbers.

    Raises:
        WeightsError: it can't be read, or is quantized or laid out for one machine.
    """
    try:
        model = onnx.load(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise WeightsError(f"can't read the ONNX file {path}: {one_line(error)}") from error
    for node in model.graph.node:
        lost = {"com.microsoft.nchwc": "laid out for one kind of CPU"}.get(node.domain)
        if node.op_type in QUANTIZED:
            lost = "quantized"
        if lost is not None:
            raise WeightsError(f"{path} is {lost} ({node.op_type}): its weights are lost, take the file it was made of")
    return model
