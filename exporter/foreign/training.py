"""The parts of training in a graph: dropout that is on, paths that are dropped at random. In use, both do nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

RANDOM = ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial")
_OF_A_MASK = ("Add", "Sub", "Floor", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Cast", "Div", "Mul", "Where")
"""Operators by which random numbers and constants become a mask."""


def take_out(model: onnx.ModelProto) -> list[str]:
    """Turn dropout off and let dropped paths through, in place; returns what was done, in clauses.

    A path is dropped as `x / keep * floor(keep + random)`, or by a mask of zeros and ones that is divided by `keep`.
    Random numbers of another use stay: a graph that draws them is refused later.
    """
    graph = model.graph
    values = {one.name: one for one in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    dropouts = 0
    for node in graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2 and _number(node.input[2], values, made):
            del node.input[2:]
            dropouts += 1
    paths = [node for node in graph.node if node.op_type in RANDOM and _let_through(node, values, made, readers)]
    if paths:
        _remove_unused(graph)
    said = []
    if dropouts:
        said.append(f"{dropouts} Dropout were on, and are turned off")
    if paths:
        said.append(f"{len(paths)} paths were dropped at random, and are not any more")
    return said


def _number(name: str, values: dict[str, onnx.TensorProto], made: dict[str, onnx.NodeProto]) -> float | None:
    """The number that a constant of one element holds; None if it is none."""
    tensor = values.get(name)
    node = made.get(name)
    if tensor is None and node is not None and node.op_type == "Constant":
        tensor = next((one.t for one in node.attribute if one.name == "value"), None)
    if tensor is None or np.prod(tensor.dims) != 1 or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return float(numpy_helper.to_array(tensor).reshape(-1)[0])


def _let_through(
    drawn: onnx.NodeProto,
    values: dict[str, onnx.TensorProto],
    made: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
) -> bool:
    """Replace the product with the mask that `drawn` becomes by what is multiplied; returns whether it was found."""
    mask, keeps, divided = drawn.output[0], [], False
    for _ in range(8):
        following = readers.get(mask, [])
        if len(following) != 1:
            return False
        (node,) = following
        others = [name for name in node.input if name != mask]
        numbers = [_number(name, values, made) for name in others]
        if node.op_type not in _OF_A_MASK:
            return False
        if None in numbers:
            break
        keeps += [number for number in numbers if number is not None]
        divided |= node.op_type == "Div" and node.input[0] == mask
        mask = node.output[0]
    else:
        return False
    if node.op_type != "Mul" or len(others) != 1:
        return False
    path, before = others[0], made.get(others[0])
    if not divided:
        if before is None or before.op_type != "Div":
            return False
        keep = _number(before.input[1], values, made)
        if keep is None or not any(np.isclose(keep, one) for one in keeps):
            return False
        path = before.input[0]
    through = helper.make_node("Identity", [path], [node.output[0]], node.name)
    node.CopyFrom(through)
    return True


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output needs any more."""
    made = {name: node for node in graph.node for name in node.output}
    waiting = [one.name for one in graph.output]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made:
            waiting.extend(_read_by(made[name]))
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node if needed.intersection(node.output)
    ]
    del graph.node[:]
    graph.node.extend(kept)


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    """Names that a node reads, and those that the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for one in inner.node:
                yield from _read_by(one)
            yield from (one.name for one in inner.output)
