"""Pass: ITAE in the chosen layers, and what it offers as outputs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.methods.itae.graph.attenuate import attenuate
from exporter.methods.itae.graph.detect import ARTIFACT, NORM, find_artifacts, token_norm
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import find_attention, is_injected, scope_of
from exporter.surgery.edit import PREFIX, Editor


def inject_itae(graph: gs.Graph, facts: GraphFacts, itae: ItaeConfig) -> list[str]:
    """Find artifacts by a norm of each patch and attenuate their logits. Source: exporter/ITAE.md 1 to 3.

    Works in whatever precision and on whatever rows of the logits it finds; its statistics are float32.

    Raises:
        SurgeryError: the graph does not have the attention sites of `facts`.
    """
    changed = []
    sites = find_attention(graph, facts)
    for site in (sites[layer] for layer in itae.layer_indices(facts.depth)):
        if is_injected(site):  # a second run changes nothing
            continue
        edit = Editor(graph, site.scope)
        norm = token_norm(edit, site, itae)
        artifact = find_artifacts(edit, norm, itae, facts.prefix)
        attenuate(edit, site, artifact, itae, facts)
        changed.append(site.scope)
    graph.cleanup().toposort()
    return changed


def offered_outputs(layers: Sequence[int]) -> dict[str, dict[int, str]]:
    """The outputs that `inject_itae` makes possible: for each, by layer, the name of a tensor of all tokens (B, N)."""
    parts = {"artifact_mask": ARTIFACT, "artifact_norm": NORM}
    return {name: {layer: f"{PREFIX}/{scope_of(layer)}/{part}" for layer in layers} for name, part in parts.items()}
