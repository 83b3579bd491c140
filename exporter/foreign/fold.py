"""Nodes that depend on no input, such as those that resize a position embedding: computed once, and stored."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from exporter.foreign.probe import open_session
from exporter.foreign.training import RANDOM


def fold_constants(path: Path) -> list[str]:
    """Replace the nodes of a file that depend on no input by their results; external data stays where it is.

    Returns:
        The operators that are gone.

    Raises:
        InputError: ONNX Runtime can't run them.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    free = {one.name for one in graph.initializer}
    folded: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        has_graph = any(one.HasField("g") or one.graphs for one in node.attribute)
        if has_graph or node.op_type in RANDOM or not all(name in free or not name for name in node.input):
            kept.append(node)
            continue
        folded.append(node)
        free.update(node.output)
    made = {name for node in folded for name in node.output if name}
    needed = [*dict.fromkeys(name for node in kept for name in _inputs(node) if name in made)]
    needed += [one.name for one in graph.output if one.name in made and one.name not in needed]
    if not folded or not needed:
        return []
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:]
    part.graph.node.extend(folded)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in needed)
    place = path.with_name("constants.onnx")
    onnx.save(part, place)
    results = open_session(place, path).run(needed, {})
    place.unlink()
    operators = [node.op_type for node in folded]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in zip(needed, results, strict=True))
    known = [one for one in graph.value_info if one.name not in made]
    del graph.value_info[:]
    graph.value_info.extend(known)
    used = {name for node in graph.node for name in _inputs(node)} | {one.name for one in graph.output}
    weights = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    onnx.save(model, path)
    return operators


def _inputs(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, in the graphs inside it too."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names += [name for one in inner.node for name in _inputs(one)]
    return names
