"""Pass: write attention so that a builder can't compute it in one kernel, and every number stays what it is."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.attention import find_attention, logits_of
from exporter.surgery.edit import Editor, shape_of


def unfuse_attention(graph: gs.Graph, facts: GraphFacts) -> list[str]:
    """Rewrite `softmax(x)` as `softmax(max(x, m))`, m the smallest of a row's logits over all heads; x: (B, H, N, N).

    No logit is smaller than m, so nothing changes. But a fused kernel computes one head, and m needs the logits of all
    of them: they must lie in memory before a softmax begins. Runs after a method's pass, which looks for the softmax
    behind the logits.

    Raises:
        SurgeryError: the graph does not have the attention sites of `facts`.
    """
    changed = []
    for site in find_attention(graph, facts):
        if site.barrier is not None:  # a second run changes nothing
            continue
        logits = logits_of(site)
        batch, _, rows, _ = shape = shape_of(logits, 4)
        edit = Editor(graph, site.scope)
        heads_and_tokens = np.array([1, 3], np.int64)
        smallest = edit.node(
            "ReduceMin", [logits, heads_and_tokens], "smallest_logit",
            dtype=logits.dtype, shape=(batch, 1, rows, 1), keepdims=1,
        )  # fmt: skip
        site.softmax.inputs[0] = edit.node("Max", [logits, smallest], "barrier", dtype=logits.dtype, shape=shape)
        changed.append(site.scope)
    graph.toposort()
    return changed
