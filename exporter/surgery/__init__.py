"""The passes that turn traced DINOv2 into the model that was asked for, and what every pass is held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from exporter.methods.itae.graph.inject import inject_itae
from exporter.options import ExportSpec
from exporter.surgery.attention import count_attention, find_attention
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph, is_ours
from exporter.surgery.half_precision import half_precision
from exporter.surgery.pass_report import PassReport
from exporter.surgery.scale_queries import scale_queries
from exporter.surgery.select_outputs import select_outputs
from exporter.surgery.split_bias_gelu import split_bias_gelu
from exporter.surgery.uint8_input import uint8_input
from runtime.contract.errors import SurgeryError

Pass = Callable[[gs.Graph, ExportSpec], PassReport]

PASSES: tuple[Pass, ...] = (
    scale_queries, half_precision, cls_only, inject_itae, select_outputs, split_bias_gelu, uint8_input,
)  # fmt: skip
"""In this order: `inject_itae` works in whatever precision and on whatever rows it finds, its statistics in float32."""
MAY_CHANGE_INTERFACE = (cls_only, select_outputs, uint8_input)
MAY_PRUNE = (select_outputs,)
"""Flags alone need no attention after the last chosen layer's keys."""


def run(traced: Path, spec: ExportSpec) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Run all passes on a traced graph; weights in external data stay where they are.

    Raises:
        SurgeryError: the graph isn't what a pass needs, or a pass broke it; the pass is named.
    """
    model = onnx.load(traced, load_external_data=False)
    graph = import_graph(model)
    graph.toposort()
    reports = []
    for operate in PASSES:
        try:
            reports.append(run_pass(operate, graph, spec))
        except SurgeryError as error:
            raise SurgeryError(f"surgery pass {operate.__name__}: {error}") from error
    operated = gs.export_onnx(graph, do_type_check=False)
    operated.ir_version = model.ir_version
    operated.producer_name, operated.producer_version = "itae", ""
    return operated, reports


def attention_nodes(path: Path) -> list[frozenset[str]]:
    """Names of the MatMul, Softmax and MatMul of each attention in an operated file, from the first layer on."""
    graph = import_graph(onnx.load(path, load_external_data=False))
    sites = find_attention(graph, expected=count_attention(graph))
    return [frozenset(node.name for node in (site.qk, site.softmax, site.context)) for site in sites]


def run_pass(operate: Pass, graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Run one pass and check what it left.

    Raises:
        SurgeryError: it refused, lost an attention site, changed the interface, or left a tensor untyped.
    """
    before, sites = _interface(graph), count_attention(graph)
    report = operate(graph, spec)
    left = count_attention(graph)
    if left > sites or (left < sites and operate not in MAY_PRUNE):
        raise SurgeryError(f"left {left} of {sites} attention sites")
    if operate not in MAY_CHANGE_INTERFACE and _interface(graph) != before:
        raise SurgeryError(f"changed the interface from {before} to {_interface(graph)}")
    names = [node.name for node in graph.nodes if is_ours(node)]
    if len(set(names)) != len(names):
        raise SurgeryError("left two nodes of one name")
    for node in filter(is_ours, graph.nodes):
        for tensor in node.outputs:
            if tensor.dtype is None or tensor.shape is None:
                raise SurgeryError(f"left {tensor.name!r} without a dtype or shape")
    return report


def _interface(graph: gs.Graph) -> list[tuple[str, str, tuple[int | str, ...]]]:
    return [(tensor.name, str(tensor.dtype), tuple(tensor.shape)) for tensor in (*graph.inputs, *graph.outputs)]
