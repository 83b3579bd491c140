"""Patterns of subgraphs as data, and a matcher that says how far it came if it finds none.

A pattern is read from its output to its inputs. `Mul` and `Add` match in either order. A `Var` is the boundary: any
node may produce it, and everything nearer to the output is inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx_graphsurgeon as gs

from exporter.surgery.edit import constant_value, producer, rank_of

COMMUTATIVE = ("Add", "Mul")


@dataclass(frozen=True)
class Var:
    """Any tensor, bound to `name`; `rank`, if given, must be its number of dimensions."""

    name: str
    rank: int | None = None


@dataclass(frozen=True)
class Scalar:
    """A constant of one element, bound to `name`."""

    name: str


@dataclass(frozen=True)
class Const:
    """Any constant."""


@dataclass(frozen=True)
class Op:
    """A node of type `op` whose first inputs match `inputs` and whose attributes are `attrs`."""

    op: str
    inputs: tuple[Pattern, ...]
    bind: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class AnyOf:
    """The first of several patterns that matches."""

    options: tuple[Pattern, ...]


Pattern = Var | Scalar | Const | Op | AnyOf


def maybe(op: str, inner: Pattern, *rest: Pattern, bind: str | None = None) -> AnyOf:
    """`inner`, or a node `op` around it."""
    return AnyOf((Op(op, (inner, *rest), bind), inner))


@dataclass(frozen=True)
class Match:
    """A pattern found: what its names are bound to, and the nodes inside."""

    tensors: Mapping[str, gs.Tensor]
    nodes: Mapping[str, gs.Node]
    inside: tuple[gs.Node, ...]


@dataclass(frozen=True)
class Miss:
    """A pattern not found: how many nodes matched on the deepest way, and what stood after them."""

    depth: int
    reason: str


def match(pattern: Pattern, tensor: gs.Tensor) -> Match | Miss:
    """Match `pattern` with the subgraph that ends in `tensor`."""
    return _match(pattern, tensor, Match({}, {}, ()))


def _match(pattern: Pattern, tensor: gs.Tensor, so_far: Match) -> Match | Miss:
    if isinstance(pattern, AnyOf):
        return _first(_match(option, tensor, so_far) for option in pattern.options)
    if isinstance(pattern, Op):
        return _match_op(pattern, tensor, so_far)
    if isinstance(pattern, Var):
        if pattern.rank is not None and rank_of(tensor) != pattern.rank:
            return _miss(so_far, f"`{pattern.name}` with {pattern.rank} dimensions", tensor)
        return Match({**so_far.tensors, pattern.name: tensor}, so_far.nodes, so_far.inside)
    value = constant_value(tensor)
    if isinstance(pattern, Scalar):
        if value is None or value.size != 1:
            return _miss(so_far, f"a scalar constant `{pattern.name}`", tensor)
        return Match({**so_far.tensors, pattern.name: tensor}, so_far.nodes, so_far.inside)
    return so_far if isinstance(tensor, gs.Constant) or value is not None else _miss(so_far, "a constant", tensor)


def _match_op(pattern: Op, tensor: gs.Tensor, so_far: Match) -> Match | Miss:
    node = producer(tensor)
    if node is None or node.op != pattern.op:
        return _miss(so_far, pattern.op, tensor)
    for key, value in pattern.attrs.items():
        if node.attrs.get(key) != value:
            return _miss(so_far, f"{pattern.op} with {key}={value}", tensor, f"{key}={node.attrs.get(key)}")
    if len(node.inputs) < len(pattern.inputs):
        return _miss(so_far, f"{pattern.op} with {len(pattern.inputs)} inputs", tensor)
    nodes = {**so_far.nodes, pattern.bind: node} if pattern.bind else so_far.nodes
    entered = Match(so_far.tensors, nodes, (*so_far.inside, node))
    orders = [node.inputs]
    if pattern.op in COMMUTATIVE:
        orders.append(node.inputs[::-1])
    return _first(_match_inputs(pattern.inputs, order, entered) for order in orders)


def _match_inputs(patterns: tuple[Pattern, ...], inputs: list[gs.Tensor], so_far: Match) -> Match | Miss:
    result: Match | Miss = so_far
    for pattern, tensor in zip(patterns, inputs, strict=False):
        if isinstance(result, Miss):
            break
        result = _match(pattern, tensor, result)
    return result


def _first(results: Iterable[Match | Miss]) -> Match | Miss:
    """The first match, or the deepest miss; of equally deep ones the last, since optional nodes come first."""
    misses: list[Miss] = []
    for result in results:
        if isinstance(result, Match):
            return result
        misses.append(result)
    return max(reversed(misses), key=lambda miss: miss.depth)


def _miss(so_far: Match, looked_for: str, tensor: gs.Tensor, detail: str = "") -> Miss:
    node = producer(tensor)
    if node is not None:
        found = f"{node.op} {node.name!r}" + (f" with {detail}" if detail else "")
    else:
        kind = "the constant" if isinstance(tensor, gs.Constant) else "the input"
        found = f"{kind} {tensor.name!r} {'of unknown shape' if tensor.shape is None else list(tensor.shape)}"
    return Miss(len(so_far.inside), f"looked for {looked_for}, found {found}")
