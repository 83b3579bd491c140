"""Operators that hold a whole attention, written out as the primitives that a method can be put between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from runtime.contract.errors import SurgeryError

OLDEST = 13
"""The oldest opset that the primitives are written for: a softmax over the last axis."""


@dataclass
class _Writer:
    """The nodes and weights in place of one node, whose names begin with `scope`."""

    scope: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node; gives the name of its output."""
        full = f"{self.scope}/{name}"
        made = helper.make_node(op, inputs, [output or full], full, **attributes)
        self.nodes.append(made)
        return output or full

    def weight(self, value: npt.NDArray[Any], name: str) -> str:
        """Add a constant; gives its name."""
        full = f"{self.scope}/{name}"
        self.weights.append(numpy_helper.from_array(value, full))
        return full

    def by_head(self, tensor: str, heads: int, name: str) -> str:
        """(B, N, C) as (B, H, N, d)."""
        sizes = self.weight(np.array([0, 0, heads, -1], np.int64), f"{name}_sizes")
        apart = self.node("Reshape", [tensor, sizes], f"{name}_by_token")
        return self.node("Transpose", [apart], f"{name}_by_head", perm=[0, 2, 1, 3])

    def attention(self, query: str, key: str, value: str, scale: float, dtype: np.dtype[Any], add: str | None) -> str:
        """The attention of (B, H, N, d)."""
        factor = self.weight(np.array(scale, dtype), "scale")
        scaled = self.node("Mul", [query, factor], "scaled_query")
        across = self.node("Transpose", [key], "key_across", perm=[0, 1, 3, 2])
        logits = self.node("MatMul", [scaled, across], "logits")
        if add is not None:
            logits = self.node("Add", [logits, add], "masked")
        weights = self.node("Softmax", [logits], "weights", axis=-1)
        return self.node("MatMul", [weights, value], "context")

    def joined(self, context: str, output: str) -> None:
        """(B, H, N, d) as (B, N, C)."""
        by_token = self.node("Transpose", [context], "context_by_token", perm=[0, 2, 1, 3])
        sizes = self.weight(np.array([0, 0, -1], np.int64), "joined_sizes")
        self.node("Reshape", [by_token, sizes], "joined", output)


@dataclass(frozen=True)
class Known:
    """The facts about tensors that the operators' inputs are, by their names."""

    ranks: Mapping[str, int]
    dtypes: Mapping[str, np.dtype[Any]]


def write_out(model: onnx.ModelProto, scales: Mapping[str, float], known: Known) -> onnx.ModelProto:
    """The model with some attention operators written out.

    Args:
        model: left as it is.
        scales: what each operator multiplies its logits by, by the name of its first output.
        known: of all inputs of these operators.

    Raises:
        SurgeryError: an operator does what is not understood; the message names it.
    """
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if not node.output or node.output[0] not in scales:
            nodes.append(node)
            continue
        write = _WRITERS.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
        if write is None or opset < OLDEST:
            raise SurgeryError(
                f"{node.op_type} {node.name!r} of the domain {node.domain or 'ai.onnx'!r} holds a whole attention, and "
                f"is not written out {'yet' if write is None else f'below opset {OLDEST}'}: export without it"
            )
        writer = _Writer(f"{node.name or node.output[0]}/written_out")
        write(writer, node, scales[node.output[0]], known)
        nodes.extend(writer.nodes)
        weights.extend(writer.weights)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(kept)
    made.graph.initializer.extend(weights)
    return made


def _refuse(node: onnx.NodeProto, attributes: Iterable[str], inputs: Iterable[int], outputs: int = 1) -> dict[str, Any]:
    """The attributes of a node, which must not have these attributes set or these inputs.

    Raises:
        SurgeryError: it has one, or more outputs than its first.
    """
    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    has = [name for name in attributes if found.get(name)]
    has += [f"input {index}" for index in inputs if len(node.input) > index and node.input[index]]
    has += [f"output {index}" for index, name in enumerate(node.output) if index >= outputs and name]
    if has:
        raise SurgeryError(f"{node.op_type} {node.name!r} with {', '.join(has)} is not supported yet")
    return found


def _standard(write: _Writer, node: onnx.NodeProto, scale: float, known: Known) -> None:
    """Attention of opset 23: q, k, v of (B, H, N, d) or (B, N, C)."""
    attributes = _refuse(node, ("is_causal", "softcap", "qk_matmul_output_mode"), (4, 5, 6))
    query, key, value = node.input[:3]
    dtype = known.dtypes[query]
    flat = known.ranks[query] == 3
    if flat:
        heads = int(attributes.get("q_num_heads", 0))
        if not heads or heads != int(attributes.get("kv_num_heads", 0)):
            raise SurgeryError(f"Attention {node.name!r} shares keys between heads: not supported yet")
        query, key, value = (
            write.by_head(one, heads, name) for one, name in zip((query, key, value), "qkv", strict=True)
        )
    mask = node.input[3] if len(node.input) > 3 and node.input[3] else None
    if mask is not None and known.dtypes[mask] == np.bool_:
        ends = [write.weight(np.array(one, dtype), name) for one, name in ((0, "seen"), (-np.inf, "hidden"))]
        mask = write.node("Where", [mask, *ends], "additive_mask")
    context = write.attention(query, key, value, scale, dtype, mask)
    if flat:
        write.joined(context, node.output[0])
    else:
        write.nodes[-1].output[0] = node.output[0]


def _multi_head(write: _Writer, node: onnx.NodeProto, scale: float, known: Known) -> None:
    """MultiHeadAttention of ONNX Runtime: q, k, v of (B, N, C), without their biases; an added bias of positions."""
    attributes = _refuse(node, ("unidirectional",), (4, 6, 7, 8, 9))
    query, key, value = node.input[:3]
    if not key or not value or {known.ranks[one] for one in (query, key, value)} != {3}:
        raise SurgeryError(f"MultiHeadAttention {node.name!r} with packed vectors is not supported yet")
    parts = [query, key, value]
    if len(node.input) > 3 and node.input[3]:
        sizes = write.node("Shape", [query], "sizes")
        first, second, third = (write.weight(np.array([one], np.int64), f"number{one}") for one in (2, 3, 0))
        width = write.node("Slice", [sizes, first, second, third], "width")
        both = write.node("Concat", [width, width, width], "widths", axis=0)
        names = [f"{write.scope}/{one}_bias" for one in "qkv"]
        write.nodes.append(helper.make_node("Split", [node.input[3], both], names, f"{write.scope}/biases", axis=0))
        parts = [
            write.node("Add", [part, bias], f"biased_{one}")
            for part, bias, one in zip(parts, names, "qkv", strict=True)
        ]
    heads = int(attributes["num_heads"])
    by_head = [write.by_head(part, heads, name) for part, name in zip(parts, "qkv", strict=True)]
    add = node.input[5] if len(node.input) > 5 and node.input[5] else None
    context = write.attention(by_head[0], by_head[1], by_head[2], scale, known.dtypes[query], add)
    write.joined(context, node.output[0])


def _packed(write: _Writer, node: onnx.NodeProto, scale: float, known: Known) -> None:
    """Attention of ONNX Runtime: tokens (B, N, C), the packed weights of q, k, v and their biases."""
    attributes = _refuse(node, ("unidirectional", "do_rotary", "qkv_hidden_sizes"), (3, 4, 6))
    tokens, weights = node.input[:2]
    all_three = write.node("MatMul", [tokens, weights], "projected")
    if len(node.input) > 2 and node.input[2]:
        all_three = write.node("Add", [all_three, node.input[2]], "biased")
    names = [f"{write.scope}/{one}" for one in "qkv"]
    sizes = write.weight(np.array([0, 0, 3, -1], np.int64), "three")
    apart = write.node("Reshape", [all_three, sizes], "apart")
    index = [write.weight(np.array(one, np.int64), f"index{one}") for one in range(3)]
    for name, one in zip(names, index, strict=True):
        write.nodes.append(helper.make_node("Gather", [apart, one], [name], name, axis=2))
    heads = int(attributes["num_heads"])
    query, key, value = (write.by_head(name, heads, one) for name, one in zip(names, "qkv", strict=True))
    add = node.input[5] if len(node.input) > 5 and node.input[5] else None
    context = write.attention(query, key, value, scale, known.dtypes[tokens], add)
    write.joined(context, node.output[0])


_Write = Callable[[_Writer, onnx.NodeProto, float, Known], None]
_WRITERS: dict[tuple[str, str], _Write] = {
    ("", "Attention"): _standard,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "Attention"): _packed,
}
