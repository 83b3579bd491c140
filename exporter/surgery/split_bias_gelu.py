"""Pass: keep ONNX Runtime from fusing the MLP's bias with its GELU: on a CPU its fused kernel is the slower one."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.options import ExportSpec
from exporter.surgery.edit import Editor, is_constant, producer, shape_of
from exporter.surgery.pass_report import PassReport


def split_bias_gelu(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Write `Gelu(x + bias)` with a bias of (1, 4 C) in place of (4 C): the same numbers, which the fusion looks over.

    TensorRT makes the same kernels of either. With SwiGLU there is nothing to do.
    """
    del spec  # of every export
    report = PassReport("split_bias_gelu")
    for gelu in [node for node in graph.nodes if node.op == "Gelu"]:
        add = producer(gelu.inputs[0])
        if add is None or add.op != "Add":
            continue
        for index, bias in enumerate(add.inputs):
            if is_constant(bias) and len(shape_of(bias)) == 1:
                edit = Editor(graph, f"mlp{len(report.changed)}")
                shape = (1, *shape_of(bias))
                axes = np.array([0], np.int64)
                add.inputs[index] = edit.node("Unsqueeze", [bias, axes], "bias", dtype=bias.dtype, shape=shape)
                report.changed.append(gelu.name or gelu.outputs[0].name)
    graph.toposort()
    return report
