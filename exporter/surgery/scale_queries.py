"""Pass: scale the query instead of the logits, as TensorRT's documentation asks for fusion."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.attention import find_attention
from exporter.surgery.edit import Editor, replace_uses, shape_of


def scale_queries(graph: gs.Graph, facts: GraphFacts) -> list[str]:
    """Rewrite `softmax((q @ k.T) * s)` as `softmax((q * s) @ k.T)`; q: (B, H, N, d).

    Raises:
        SurgeryError: the graph does not have the attention sites of `facts`.
    """
    changed = []
    for site in find_attention(graph, facts):
        if site.late is None:  # scaled early already: a second run changes nothing
            continue
        query = site.qk.inputs[0]
        scale = next(tensor for tensor in site.late.inputs if tensor is not site.qk.outputs[0])
        early = Editor(graph, site.scope).node(
            "Mul", [query, scale], "scaled_query", dtype=query.dtype, shape=shape_of(query)
        )
        site.qk.inputs[0] = early
        replace_uses(graph, site.late.outputs[0], site.qk.outputs[0])
        changed.append(site.scope)
    graph.cleanup().toposort()
    return changed
