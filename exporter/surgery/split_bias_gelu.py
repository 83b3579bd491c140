"""Pass: keep ONNX Runtime from fusing the MLP's bias with its GELU: on a CPU its fused kernel is the slower one."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.surgery.edit import Editor, dtype_of, is_constant, producer, rank_of, shape_of


def split_bias_gelu(graph: gs.Graph) -> list[str]:
    """Write `Gelu(x + bias)` with a bias of (1, 4 C) in place of (4 C): same numbers, which the fusion does not match.

    TensorRT makes the same kernels of either. With SwiGLU there is nothing to do. A sum of fewer than two dimensions,
    or of an unknown number, is left alone: the wider bias would change its shape.

    Raises:
        SurgeryError: the shape or type of a bias is not known.
    """
    changed: list[str] = []
    for gelu in [node for node in graph.nodes if node.op == "Gelu"]:
        add = producer(gelu.inputs[0])
        if add is None or add.op != "Add" or (rank_of(add.outputs[0]) or 0) < 2:
            continue
        for index, bias in enumerate(add.inputs):
            if is_constant(bias) and rank_of(bias) == 1:
                edit = Editor(graph, f"mlp{len(changed)}")
                shape = (1, *shape_of(bias))
                axes = np.array([0], np.int64)
                add.inputs[index] = edit.node("Unsqueeze", [bias, axes], "bias", dtype=dtype_of(bias), shape=shape)
                changed.append(gelu.name or gelu.outputs[0].name)
    graph.toposort()
    return changed
