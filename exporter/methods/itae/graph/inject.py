"""Pass: ITAE in the chosen layers."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.methods.itae.graph.attenuate import attenuate
from exporter.methods.itae.graph.detect import find_artifacts, token_norm
from exporter.options import ExportSpec
from exporter.surgery.attention import find_attention, is_injected
from exporter.surgery.edit import Editor
from exporter.surgery.pass_report import PassReport


def inject_itae(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Find artifacts by a norm of each patch and attenuate their logits. Source: exporter/ITAE.md 1 to 3.

    Raises:
        SurgeryError: the graph has not `spec.backbone.depth` attention sites.
    """
    report = PassReport("inject_itae")
    if spec.itae is None:
        return report
    sites = find_attention(graph, expected=spec.backbone.depth)
    prefix = spec.backbone.prefix
    for site in (sites[layer] for layer in spec.layers):
        if is_injected(site):
            continue
        edit = Editor(graph, site.scope)
        norm = token_norm(edit, site, spec.itae)
        artifact = find_artifacts(edit, norm, spec.itae, prefix)
        attenuate(edit, site, artifact, spec.itae, prefix)
        report.changed.append(site.scope)
    graph.cleanup().toposort()
    return report
