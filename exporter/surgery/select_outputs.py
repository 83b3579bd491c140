"""Pass: the outputs that were asked for, in place of all tokens."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.spec import ExportSpec
from exporter.surgery.detect import ARTIFACT, NORM, cut
from exporter.surgery.edit import PREFIX, Editor, shape_of
from exporter.surgery.report import PassReport
from runtime.errors import SurgeryError


def select_outputs(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Replace the output `tokens` (B, N, C) by `embedding`, `patch_tokens`, `artifact_mask`, `artifact_norm`.

    Raises:
        SurgeryError: the graph has another output than all tokens of `spec`.
    """
    report = PassReport("select_outputs")
    if tuple(tensor.name for tensor in graph.outputs) == spec.outputs:
        return report
    (tokens,) = graph.outputs if len(graph.outputs) == 1 else (None,)
    expected = (spec.tokens, spec.backbone.width)
    if tokens is None or shape_of(tokens)[1:] != expected:
        found = ", ".join(f"{tensor.name} {list(shape_of(tensor))}" for tensor in graph.outputs)
        raise SurgeryError(f"looked for one output (B, {expected[0]}, {expected[1]}), found {found}")
    edit = Editor(graph, "outputs")
    graph.outputs = [_output(edit, name, tokens, spec) for name in spec.outputs]
    report.changed.extend(spec.outputs)
    graph.cleanup().toposort()
    return report


def _output(edit: Editor, name: str, tokens: gs.Tensor, spec: ExportSpec) -> gs.Tensor:
    batch, _, C = shape_of(tokens)
    prefix = spec.backbone.prefix
    if name == "embedding":
        tensor: gs.Tensor = edit.node(
            "Gather", [tokens, np.array(0, np.int64)], name, dtype=np.float32, shape=(batch, C), axis=1
        )
    elif name == "patch_tokens":
        tensor = cut(edit, tokens, name, axis=1, start=prefix, stop=spec.tokens)
    else:
        tensor = _by_layer(edit, name, spec)
    tensor.name = name
    return tensor


def _by_layer(edit: Editor, name: str, spec: ExportSpec) -> gs.Tensor:
    """Flags or norms of all chosen layers, (B, P) each, as (B, K, P)."""
    part, dtype = (ARTIFACT, np.bool_) if name == "artifact_mask" else (NORM, np.float32)
    tensors = edit.graph.tensors()
    axis = np.array([1], np.int64)
    layers = []
    for layer in spec.layers:
        one = tensors[f"{PREFIX}/layer{layer}/{part}"]
        shape = (shape_of(one)[0], 1, spec.patches)
        layers.append(edit.node("Unsqueeze", [one, axis], f"{name}_layer{layer}", dtype=dtype, shape=shape))
    if len(layers) == 1:
        return layers[0]
    shape = (shape_of(layers[0])[0], len(layers), spec.patches)
    return edit.node("Concat", layers, name, dtype=dtype, shape=shape, axis=1)
