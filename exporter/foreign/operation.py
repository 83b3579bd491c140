"""ITAE put into somebody else's graph: new nodes before a softmax, and nothing else in the file changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.probe import Probe
from exporter.foreign.survey import Measured, Survey
from exporter.methods.itae.graph.anywhere import Patches, Place, Vectors, inject_anywhere
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import scope_of
from exporter.surgery.edit import PREFIX, import_graph, is_ours, load_external_data
from runtime.contract.errors import InputError, SurgeryError, UsageError

OLDEST = 11
"""The oldest opset whose operators do what is needed."""
SHARED = "tokens"
MOST_BYTES = (2 << 30) - (16 << 20)
"""Bytes of a file whose weights fit into memory as one protobuf."""


def operate(one: Survey, probe: Probe, itae: ItaeConfig, prefix: int) -> onnx.ModelProto:
    """The model with ITAE in the chosen layers; external data is referred to where it lies.

    Raises:
        UsageError: the options do not fit the graph.
        SurgeryError: the graph is not as a rewrite needs it.
        InputError: ONNX Runtime can't load it.
    """
    if one.file.opset < OLDEST:
        raise InputError(f"{one.file.path} is of opset {one.file.opset}: export it with opset {OLDEST} or later")
    graph = import_graph(one.file.model).toposort()
    places = _places(one, probe, graph, itae, prefix)
    tokens = SHARED if one.is_dynamic else one.backbone[0].tokens
    inject_anywhere(graph, places, itae, Patches(prefix, one.behind, tokens))
    return _written(one.file, graph, places, itae)


def source_of(one: Measured, itae: ItaeConfig) -> tuple[gs.Tensor, str, float] | None:
    """The tensor whose norms are compared, its layout, and the factor in it; None if no norm is looked at.

    Raises:
        SurgeryError: the graph shows no such tensor.
    """
    if itae.source is None:
        return None
    if itae.source == "residual":
        if one.residual is None or not one.residual_layout:
            raise SurgeryError(
                f"{one.site.name!r}: the tokens that enter its block were not found ({one.residual_miss}): use "
                "--source key, query or value"
            )
        return gs.Variable(one.residual), one.residual_layout, 1.0
    tensor, layout, scale = {
        "query": (one.site.query, one.layouts[0], one.query_scale),
        "key": (one.site.key, one.layouts[1], one.key_scale),
        "value": (one.site.value, one.layouts[2], 1.0),
    }[itae.source]
    return tensor, layout, scale


def _places(one: Survey, probe: Probe, graph: gs.Graph, itae: ItaeConfig, prefix: int) -> list[Place]:
    """The attentions of the backbone in `graph`, their tensors with dtypes and shapes."""
    layers = itae.layer_indices(len(one.backbone))
    if itae.limit.kind == "positions":
        if one.is_dynamic:
            raise UsageError(
                f"--threshold {itae.threshold}: patches have no fixed positions where height and width are dynamic"
            )
        patches = one.backbone[0].tokens - prefix - one.behind
        if itae.limit.indices[-1] >= patches:
            raise UsageError(f"--threshold {itae.threshold}: the model has patches 0 to {patches - 1}")
    sources = {layer: source_of(one.backbone[layer], itae) for layer in {*map(itae.detects_in, layers)}}
    return places_in(one, probe, graph, sources, layers)


def places_in(
    one: Survey,
    probe: Probe,
    graph: gs.Graph,
    sources: Mapping[int, tuple[gs.Tensor, str, float] | None],
    layers: Sequence[int],
) -> list[Place]:
    """The attentions of the backbone in `graph`; what is asked for has its dtypes and shapes.

    Args:
        one: the survey.
        probe: of the same file.
        graph: changed in place.
        sources: the vectors whose norms are looked at, by layer.
        layers: those whose logits are looked at.
    """
    assert one.picture is not None
    batch = one.picture.shape[0]
    tokens = SHARED if one.is_dynamic else one.backbone[0].tokens
    tensors = graph.tensors()
    by_output = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    logits = {layer: one.backbone[layer].site.logits.name for layer in layers}
    names = [*logits.values(), *(found[0].name for found in sources.values() if found is not None)]
    dtypes = probe.dtypes(names)
    places = []
    for layer, measured in enumerate(one.backbone):
        heads = measured.heads
        together = batch * heads if isinstance(batch, int) else f"{batch}*{heads}"
        sizes: dict[str, int | str] = {
            "b": batch, "h": heads, "x": together, "n": tokens, "d": measured.head_dim, "c": measured.width,
        }  # fmt: skip
        if layer in logits:
            tensor = tensors[logits[layer]]
            tensor.dtype = dtypes[tensor.name]
            known = {"b": (batch, heads, tokens, tokens), "x": (together, tokens, tokens)}
            tensor.shape = list(known["x" if measured.logits_rank == 3 else "b"])
        vectors = None
        if (found := sources.get(layer)) is not None:
            tensor = tensors[found[0].name]
            tensor.dtype, tensor.shape = dtypes[tensor.name], [sizes[letter] for letter in found[1]]
            vectors = Vectors(tensor, *found[1:])
        softmax = None if measured.site.softmax is None else by_output[measured.site.softmax.outputs[0].name]
        places.append(Place(layer, softmax, heads, vectors))
    return places


def _written(file: OnnxFile, graph: gs.Graph, places: Sequence[Place], itae: ItaeConfig) -> onnx.ModelProto:
    """The file's own model with the nodes that were added, each before the softmax that needs it."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    chosen = itae.layer_indices(len(places))
    ours = [node for node in graph.nodes if is_ours(node)]
    added: dict[str, list[onnx.NodeProto]] = {}
    weights: dict[str, onnx.TensorProto] = {}
    logits: dict[str, str] = {}
    for layer in chosen:
        scopes = {scope_of(layer)} | ({scope_of(itae.detects_in(layer))} if layer == chosen[0] else set())
        mine = [node for node in ours if node.name.split("/")[1] in scopes]
        softmax = places[layer].softmax
        assert softmax is not None
        added[softmax.outputs[0].name] = [OnnxExporter.export_node(node) for node in mine]
        logits[softmax.outputs[0].name] = softmax.inputs[0].name
        for node in (*mine, softmax):
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name.startswith(f"{PREFIX}/"):
                    weights[tensor.name] = numpy_helper.from_array(np.asarray(tensor.values), tensor.name)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        key = node.output[0] if node.output else ""
        if key in added:
            nodes.extend(added[key])
            node.input[0] = logits[key]
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(weights.values())
    model.ir_version = max(model.ir_version, 4)  # before, each weight must be an input of the graph too
    return model


def save(model: onnx.ModelProto, file: OnnxFile, path: Path, data_name: str, *, as_one: bool = False) -> Path | None:
    """Write a model to `path`; weights that lay in external data go into one file `data_name` beside it.

    Args:
        model: the model; its references to external data are changed.
        file: the file that it was made from, whose folder has the external data.
        path: the file to write.
        data_name: the name of the file of external data.
        as_one: whether weights are brought into the model where 2 GiB are enough.

    Returns:
        The file of external data; None if all weights are inside.
    """
    if as_one and file.bytes <= MOST_BYTES:
        load_external_data(model, file.path.parent)
    external = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        onnx.save(model, path)
        return None
    data = path.with_name(data_name)
    with data.open("wb") as target:
        for tensor in external:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            size = int(entries.get("length", 0)) or math.prod(tensor.dims) * _item_size(tensor)
            with (file.path.parent / entries["location"]).open("rb") as source:
                source.seek(int(entries.get("offset", 0)))
                target.seek(-target.tell() % 4096, 1)
                begin, left = target.tell(), size
                while left and (piece := source.read(min(left, 1 << 24))):
                    target.write(piece)
                    left -= len(piece)
            del tensor.external_data[:]
            for key, value in (("location", data_name), ("offset", str(begin)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
    onnx.save(model, path)
    return data


def _item_size(tensor: onnx.TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
