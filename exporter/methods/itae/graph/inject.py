"""Pass: ITAE in the chosen layers, and what it offers as outputs."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.methods.itae.graph.attenuate import attenuate
from exporter.methods.itae.graph.detect import ARTIFACT, NORM, at_positions, find_artifacts, token_norm
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import AttentionSite, find_attention, scope_of
from exporter.surgery.edit import PREFIX, Editor


def inject_itae(graph: gs.Graph, facts: GraphFacts, itae: ItaeConfig) -> list[str]:
    """Find artifacts by a norm of each patch and attenuate their logits. Source: exporter/ITAE.md 1 to 3.

    Works in whatever precision and on whatever rows of the logits it finds; its statistics are float32.

    Raises:
        SurgeryError: the graph does not have the attention sites of `facts`.
    """
    layers = itae.layer_indices(facts.depth)
    if any(name in graph.tensors() for name in offered_outputs(itae, facts.depth)["artifact_mask"].values()):
        return []  # a second run changes nothing
    sites = find_attention(graph, facts)
    artifacts: dict[int, gs.Tensor] = {}
    for layer in layers:
        source = itae.detects_in(layer)
        if source not in artifacts:
            artifacts[source] = _detect(Editor(graph, sites[source].scope), sites[source], itae, facts)
        if itae.attenuation.kind != "none":
            attenuate(Editor(graph, sites[layer].scope), sites[layer], artifacts[source], itae, facts)
    graph.toposort()  # what no output reads yet stays, for `select_outputs` to take
    return [sites[layer].scope for layer in layers]


def _detect(edit: Editor, site: AttentionSite, itae: ItaeConfig, facts: GraphFacts) -> gs.Tensor:
    """The artifacts (B, N) bool, or (1, N) if they are the same in every image."""
    if itae.limit.kind == "positions":
        return at_positions(edit, site, itae.limit.indices, facts.prefix)
    return find_artifacts(edit, token_norm(edit, site, itae), itae, facts.prefix)


def offered_outputs(itae: ItaeConfig, depth: int) -> dict[str, dict[int, str]]:
    """The outputs that `inject_itae` makes possible: for each, by layer, the name of a tensor of all tokens (B, N)."""
    parts = {"artifact_mask": ARTIFACT, "artifact_norm": NORM}
    return {
        name: {layer: f"{PREFIX}/{scope_of(itae.detects_in(layer))}/{part}" for layer in itae.layer_indices(depth)}
        for name, part in parts.items()
    }
