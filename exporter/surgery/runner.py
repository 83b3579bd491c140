"""Runs passes over a graph, and holds every pass to the same rules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from exporter.surgery.attention import count_attention
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph, is_ours
from exporter.surgery.select_outputs import select_outputs
from exporter.surgery.uint8_input import uint8_input
from runtime.contract.errors import SurgeryError

Pass = functools.partial[list[str]]
"""A pass with all of its arguments but the graph; gives the names of what it changed."""
MAY_CHANGE_INTERFACE = (cls_only, select_outputs, uint8_input)
MAY_PRUNE = (select_outputs,)
"""Flags alone need no attention after the last chosen layer's keys."""


@dataclass(frozen=True)
class PassReport:
    """The changes of one pass."""

    name: str
    changed: list[str]
    """The sites that it changed; empty if the graph is as it was."""


def run(traced: Path, passes: Sequence[Pass]) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Run passes on a traced graph; weights in external data stay where they are.

    Raises:
        SurgeryError: the graph is not what a pass needs, or a pass broke it; the message names the pass.
    """
    model = onnx.load(traced, load_external_data=False)
    graph = import_graph(model)
    graph.toposort()
    reports = []
    for operate in passes:
        try:
            reports.append(run_pass(operate, graph))
        except SurgeryError as error:
            raise SurgeryError(f"surgery pass {_name(operate)}: {error}") from error
    operated = gs.export_onnx(graph, do_type_check=False)
    operated.ir_version = model.ir_version
    operated.producer_name, operated.producer_version = "itae", ""
    return operated, reports


def run_pass(operate: Pass, graph: gs.Graph) -> PassReport:
    """Run one pass and check what it left.

    Raises:
        SurgeryError: it refused, lost an attention site, changed the interface, or left a tensor without a type.
    """
    before, sites = _interface(graph), count_attention(graph)
    report = PassReport(_name(operate), operate(graph))
    left = count_attention(graph)
    if left > sites or (left < sites and operate.func not in MAY_PRUNE):
        raise SurgeryError(f"left {left} of {sites} attention sites")
    if operate.func not in MAY_CHANGE_INTERFACE and _interface(graph) != before:
        raise SurgeryError(f"changed the interface from {before} to {_interface(graph)}")
    names = [node.name for node in graph.nodes if is_ours(node)]
    if len(set(names)) != len(names):
        raise SurgeryError("left two nodes of one name")
    for node in filter(is_ours, graph.nodes):
        for tensor in node.outputs:
            if tensor.dtype is None or tensor.shape is None:
                raise SurgeryError(f"left {tensor.name!r} without a dtype or shape")
    return report


def _name(operate: Pass) -> str:
    return str(getattr(operate.func, "__name__", operate.func))


def _interface(graph: gs.Graph) -> list[tuple[str, str, tuple[int | str, ...] | None]]:
    return [
        (tensor.name, str(tensor.dtype), tensor.shape and tuple(tensor.shape))
        for tensor in (*graph.inputs, *graph.outputs)
    ]
