"""Attentions that are one operator: which of them must be written out, and the model with them written out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from exporter.foreign.probe import Probe
from exporter.foreign.request import ForeignSpec
from exporter.foreign.survey import Measured, Survey, feeds_for
from exporter.surgery.write_out import Known, write_out
from runtime.contract.errors import SurgeryError


def fused_layers(found: Survey, spec: ForeignSpec) -> list[Measured]:
    """The attentions that are one operator and that ITAE works in; for an engine, all that are one operator."""
    itae = spec.itae
    if spec.makes_engine:
        return [one for one in found.backbone if one.site.fused is not None]
    if itae is None:
        return []
    layers = itae.layer_indices(len(found.backbone))
    needed = {*layers, *(map(itae.detects_in, layers) if itae.source not in (None, "residual") else ())}
    return [found.backbone[layer] for layer in sorted(needed) if found.backbone[layer].site.fused is not None]


def written_out(found: Survey, probe: Probe, sites: list[Measured]) -> onnx.ModelProto:
    """The model with these attentions written out."""
    assert found.image_size is not None
    names = [one.name for site in sites for one in site.site.context.inputs if one.name]
    constants = {one.name: one for one in found.file.model.graph.initializer}
    computed = [name for name in dict.fromkeys(names) if name not in constants]
    shapes = probe.shapes(feeds_for(found, found.image_size, found.batch), computed)
    ranks = {name: len(shape) for name, shape in shapes.items()}
    dtypes = probe.dtypes(computed)
    for name, one in constants.items():
        ranks[name] = len(one.dims)
        dtypes[name] = np.dtype(helper.tensor_dtype_to_np_dtype(one.data_type))
    scales = {}
    for site in sites:
        if site.scale is None:
            raise SurgeryError(f"{site.site.name!r}: the scale of {site.site.form} is not known")
        scales[str(site.site.context.outputs[0].name)] = site.scale
    return write_out(found.file.model, scales, Known(ranks, dtypes))
