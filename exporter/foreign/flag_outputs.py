"""The outputs `artifact_mask` and `artifact_norm` of a foreign graph with ITAE, (B, K, P) as in this program's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.foreign.request import FLAG_OUTPUTS
from exporter.foreign.survey import Survey
from exporter.methods.itae.graph.anywhere import FLAGGED, PATCH_NORM
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import scope_of
from exporter.surgery.edit import PREFIX
from runtime.contract.errors import UsageError

MASK, NORM = FLAG_OUTPUTS
_TYPES = {MASK: TensorProto.BOOL, NORM: TensorProto.FLOAT}


def check_flag_outputs(names: Sequence[str], found: Survey) -> None:
    """Refuse outputs whose names the graph uses itself.

    Raises:
        UsageError: it has a tensor of that name.
    """
    graph = found.file.model.graph
    known = {one for node in graph.node for one in (*node.input, *node.output)} | {one.name for one in graph.input}
    if taken := [name for name in names if name in known]:
        raise UsageError(f"the output {taken[0]} can't be added: the graph has a tensor of that name already")


def add_flag_outputs(
    model: onnx.ModelProto, names: Sequence[str], found: Survey, itae: ItaeConfig, prefix: int
) -> None:
    """Add outputs to a model with ITAE in it, in place, behind its own.

    Args:
        model: the operated graph.
        names: some of `artifact_mask` (bool) and `artifact_norm` (float32).
        found: the survey of the graph without ITAE.
        itae: the method in it.
        prefix: number of tokens before the patches.
    """
    assert found.picture is not None
    layers = itae.layer_indices(len(found.backbone))
    count = found.backbone[0].tokens - prefix - found.behind
    patches: int | str = "patches" if found.is_dynamic else count
    for name in names:
        if itae.limit.kind == "positions":
            _add_positions(model, itae, found.picture.name, len(layers), count)
        else:
            part = {MASK: FLAGGED, NORM: PATCH_NORM}[name]
            tensors = [f"{PREFIX}/{scope_of(itae.detects_in(layer))}/{part}" for layer in layers]
            _add_stacked(model, name, tensors, found.file.opset)
        shape = (found.picture.shape[0], len(layers), patches)
        model.graph.output.append(helper.make_tensor_value_info(name, _TYPES[name], shape))


def _add_stacked(model: onnx.ModelProto, name: str, tensors: Sequence[str], opset: int) -> None:
    """The tensors (B, P) of K layers as one (B, K, P)."""
    scope = f"{PREFIX}/{name}"
    axes = f"{scope}/axis"
    if opset >= 13:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axes))
    rows = []
    for place, tensor in enumerate(tensors):
        row = f"{scope}/{place}"
        more: dict[str, Any] = {} if opset >= 13 else {"axes": [1]}
        inputs = [tensor] if more else [tensor, axes]
        model.graph.node.append(helper.make_node("Unsqueeze", inputs, [row], row, **more))
        rows.append(row)
    model.graph.node.append(helper.make_node("Concat", rows, [name], scope, axis=1))


def _add_positions(model: onnx.ModelProto, itae: ItaeConfig, picture: str, layers: int, patches: int) -> None:
    """The same flags for every image and layer, as many times as there are images."""
    scope = f"{PREFIX}/{MASK}"
    flags = np.zeros((1, layers, patches), np.bool_)
    flags[..., list(itae.limit.indices)] = True
    constants = {
        "flags": flags, "first": np.array([0], np.int64), "sizes": np.array([layers, patches], np.int64)
    }  # fmt: skip
    model.graph.initializer.extend(
        numpy_helper.from_array(value, f"{scope}/{part}") for part, value in constants.items()
    )
    on_axis: dict[str, Any] = {"axis": 0}
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Shape", [picture], f"{scope}/picture", {}),
        ("Gather", [f"{scope}/picture", f"{scope}/first"], f"{scope}/batch", on_axis),
        ("Concat", [f"{scope}/batch", f"{scope}/sizes"], f"{scope}/shape", on_axis),
        ("Expand", [f"{scope}/flags", f"{scope}/shape"], MASK, {}),
    )
    for op, inputs, output, more in steps:
        model.graph.node.append(helper.make_node(op, inputs, [output], f"{scope}/{op}", **more))
