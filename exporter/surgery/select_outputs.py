"""Pass: the outputs that were asked for, in place of all tokens."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.methods.itae.graph.detect import ARTIFACT, NORM
from exporter.options import ExportSpec
from exporter.surgery.edit import PREFIX, Editor, cut, shape_of
from exporter.surgery.pass_report import PassReport
from runtime.contract.errors import SurgeryError

SMALLEST_LENGTH = np.float32(1e-12)
"""As in torch.nn.functional.normalize: keeps zero zero."""


def select_outputs(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Replace the output `tokens` (B, N, C) by `embedding`, `patch_tokens`, `artifact_mask`, `artifact_norm`.

    Where `cls_only` left one token, (B, 1, C), that is the embedding.

    Raises:
        SurgeryError: the graph has another output than all tokens of `spec`.
    """
    report = PassReport("select_outputs")
    if tuple(tensor.name for tensor in graph.outputs) == spec.outputs:
        return report
    (tokens,) = graph.outputs if len(graph.outputs) == 1 else (None,)
    expected = (1 if spec.computes_cls_only else spec.tokens, spec.backbone.width)
    if tokens is None or shape_of(tokens)[1:] != expected:
        found = ", ".join(f"{tensor.name} {list(shape_of(tensor))}" for tensor in graph.outputs)
        raise SurgeryError(f"looked for one output (B, {expected[0]}, {expected[1]}), found {found}")
    edit = Editor(graph, "outputs")
    graph.outputs = [_output(edit, name, tokens, spec) for name in spec.outputs]
    report.changed.extend(spec.outputs)
    graph.cleanup().toposort()
    return report


def _output(edit: Editor, name: str, tokens: gs.Tensor, spec: ExportSpec) -> gs.Tensor:
    if name == "embedding":
        tensor = _embedding(edit, tokens, spec)
    elif name == "patch_tokens":
        tensor = cut(edit, tokens, name, axis=1, start=spec.backbone.prefix, stop=spec.tokens)
    else:
        tensor = _by_layer(edit, name, spec)
    tensor.name = name
    return tensor


def _embedding(edit: Editor, tokens: gs.Tensor, spec: ExportSpec) -> gs.Tensor:
    """The tokens (B, N, C) or (B, 1, C) as the embedding: (B, C), or (B, 2 C) with the mean patch token."""
    batch, _, C = shape_of(tokens)
    axis = np.array([1], np.int64)
    cls = cut(edit, tokens, "cls_token", axis=1, start=0, stop=1) if not spec.computes_cls_only else tokens
    tensor: gs.Tensor = edit.node("Squeeze", [cls, axis], "cls", dtype=np.float32, shape=(batch, C))
    if spec.pooling == "cls+mean":
        patches = cut(edit, tokens, "patches", axis=1, start=spec.backbone.prefix, stop=spec.tokens)
        mean = edit.node("ReduceMean", [patches, axis], "mean_patch", dtype=np.float32, shape=(batch, C), keepdims=0)
        tensor = edit.node("Concat", [tensor, mean], "pooled", dtype=np.float32, shape=(batch, 2 * int(C)), axis=1)
    if spec.normalize:
        one = (batch, 1)
        length = edit.node("ReduceL2", [tensor, axis], "length", dtype=np.float32, shape=one, keepdims=1)
        divisor = edit.node("Max", [length, SMALLEST_LENGTH], "divisor", dtype=np.float32, shape=one)
        tensor = edit.node("Div", [tensor, divisor], "normalized", dtype=np.float32, shape=shape_of(tensor))
    return tensor


def _by_layer(edit: Editor, name: str, spec: ExportSpec) -> gs.Tensor:
    """Flags or norms of all chosen layers, (B, N) each, as (B, K, P)."""
    part, dtype = (ARTIFACT, np.bool_) if name == "artifact_mask" else (NORM, np.float32)
    tensors = edit.graph.tensors()
    axis = np.array([1], np.int64)
    layers = []
    for layer in spec.layers:
        tokens = tensors[f"{PREFIX}/layer{layer}/{part}"]
        one = cut(edit, tokens, f"{name}_layer{layer}", axis=1, start=spec.backbone.prefix, stop=spec.tokens)
        shape = (shape_of(one)[0], 1, spec.patches)
        layers.append(edit.node("Unsqueeze", [one, axis], f"{name}_layer{layer}_apart", dtype=dtype, shape=shape))
    if len(layers) == 1:
        return layers[0]
    shape = (shape_of(layers[0])[0], len(layers), spec.patches)
    return edit.node("Concat", layers, name, dtype=dtype, shape=shape, axis=1)
