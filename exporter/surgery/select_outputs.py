"""Pass: the outputs that were asked for, in place of all tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.edit import Editor, cut, dtype_of, shape_of
from runtime.contract.errors import SurgeryError

SMALLEST_LENGTH = np.float32(1e-12)
"""The same as in torch.nn.functional.normalize: zero stays zero."""


@dataclass(frozen=True)
class Outputs:
    """The outputs that a model shall have."""

    names: tuple[str, ...]
    """`embedding`, `patch_tokens`, or a name in `by_layer`."""
    mean_patch: bool = False
    """Whether the embedding is the CLS token with the mean patch token behind it."""
    normalize: bool = False
    """Whether the embedding is divided by its L2 norm."""
    by_layer: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Further outputs that a method offers: for each, by layer, the name of the tensor (B, N) that holds it."""


def select_outputs(graph: gs.Graph, facts: GraphFacts, outputs: Outputs) -> list[str]:
    """Replace the graph's only output, all tokens (B, N, C), by the named ones, in their order.

    If `cls_only` left one token, (B, 1, C), that is the embedding.

    Raises:
        SurgeryError: the graph has another output than all tokens, or an output needs what the graph does not have.
    """
    if tuple(tensor.name for tensor in graph.outputs) == outputs.names:  # a second run changes nothing
        return []
    (tokens,) = graph.outputs if len(graph.outputs) == 1 else (None,)
    N, C = facts.tokens, facts.width
    if tokens is None or tokens.dtype != np.float32 or shape_of(tokens)[1:] not in ((N, C), (1, C)):
        found = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in graph.outputs)
        raise SurgeryError(f"looked for one float32 output (B, {N}, {C}), found {found or 'none'}")
    edit = Editor(graph, "outputs")
    graph.outputs = [_output(edit, name, tokens, facts, outputs) for name in outputs.names]
    graph.cleanup().toposort()
    return list(outputs.names)


def _output(edit: Editor, name: str, tokens: gs.Tensor, facts: GraphFacts, outputs: Outputs) -> gs.Tensor:
    if name == "embedding":
        tensor = _embedding(edit, tokens, facts, outputs)
    elif name == "patch_tokens":
        tensor = cut(edit, tokens, name, axis=1, start=facts.prefix, stop=facts.tokens)
    elif name in outputs.by_layer:
        tensor = _by_layer(edit, name, outputs.by_layer[name], facts)
    else:
        raise SurgeryError(f"nothing gives the output {name}")
    tensor.name = name
    return tensor


def _embedding(edit: Editor, tokens: gs.Tensor, facts: GraphFacts, outputs: Outputs) -> gs.Tensor:
    """The tokens (B, N, C) or (B, 1, C) as the embedding: (B, C), or (B, 2 C) with the mean patch token."""
    batch, rows, C = shape_of(tokens)
    axis = np.array([1], np.int64)
    cls = cut(edit, tokens, "cls_token", axis=1, start=0, stop=1) if rows != 1 else tokens
    tensor: gs.Tensor = edit.node("Squeeze", [cls, axis], "cls", dtype=np.float32, shape=(batch, C))
    if outputs.mean_patch:
        patches = cut(edit, tokens, "patches", axis=1, start=facts.prefix, stop=facts.tokens)
        mean = edit.node("ReduceMean", [patches, axis], "mean_patch", dtype=np.float32, shape=(batch, C), keepdims=0)
        tensor = edit.node("Concat", [tensor, mean], "pooled", dtype=np.float32, shape=(batch, 2 * int(C)), axis=1)
    if outputs.normalize:
        one = (batch, 1)
        length = edit.node("ReduceL2", [tensor, axis], "length", dtype=np.float32, shape=one, keepdims=1)
        divisor = edit.node("Max", [length, SMALLEST_LENGTH], "divisor", dtype=np.float32, shape=one)
        tensor = edit.node("Div", [tensor, divisor], "normalized", dtype=np.float32, shape=shape_of(tensor))
    return tensor


def _by_layer(edit: Editor, name: str, offered: Mapping[int, str], facts: GraphFacts) -> gs.Tensor:
    """Join the tensors that a method offers for K layers, (B, N) each, to (B, K, P)."""
    tensors = edit.graph.tensors()
    axis = np.array([1], np.int64)
    layers: list[gs.Tensor] = []
    for layer, tensor_name in offered.items():
        tokens = tensors.get(tensor_name)
        if tokens is None or shape_of(tokens)[1:] != (facts.tokens,):
            raise SurgeryError(f"looked for {tensor_name!r} of (B, {facts.tokens}) for the output {name}, found none")
        one = cut(edit, tokens, f"{name}_layer{layer}", axis=1, start=facts.prefix, stop=facts.tokens)
        shape = (shape_of(one)[0], 1, facts.patches)
        apart = f"{name}_layer{layer}_apart"
        layers.append(edit.node("Unsqueeze", [one, axis], apart, dtype=dtype_of(tokens), shape=shape))
    return layers[0] if len(layers) == 1 else _joined(edit, name, layers, facts)


def _joined(edit: Editor, name: str, layers: Sequence[gs.Tensor], facts: GraphFacts) -> gs.Tensor:
    shape = (shape_of(layers[0])[0], len(layers), facts.patches)
    return edit.node("Concat", list(layers), name, dtype=dtype_of(layers[0]), shape=shape, axis=1)
