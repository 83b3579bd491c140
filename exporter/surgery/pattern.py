"""Patterns of subgraphs as data, and a matcher that goes back where a way ends, and says how far it came at most.

A pattern is read from its output to its inputs. `Mul` and `Add` match in either order. A `Var` is the boundary: any
node may produce it, and everything nearer to the output is inside. A name that is bound twice must be bound to the same
thing both times, and where one input does not match, other ways to match the inputs before it are tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from exporter.surgery.edit import constant_value, is_free, producer, rank_of

COMMUTATIVE = ("Add", "Mul")
MAX_STEPS = 64
"""Nodes on one way through a pattern; a longer way is none."""


@dataclass(frozen=True)
class Var:
    """Any tensor, bound to `name` unless that is empty; `rank`, if given, must be its number of dimensions."""

    name: str = ""
    rank: int | None = None


@dataclass(frozen=True)
class Scalar:
    """A constant of one element, bound to `name`."""

    name: str


@dataclass(frozen=True)
class Const:
    """Any constant."""


@dataclass(frozen=True)
class Free:
    """A tensor that no picture changes: a constant, or one that is computed from constants and shapes alone."""

    one: bool = False
    """Whether it must have one element, as far as its shape is known."""


@dataclass(frozen=True)
class Op:
    """A node of type `op` whose first inputs match `inputs` and whose attributes are `attrs`; its first output."""

    op: str
    inputs: tuple[Pattern, ...]
    bind: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The values of attributes; a tuple holds those that are allowed."""
    step: str | None = None
    """The kind of the node among `Match.steps`, where a pattern may have several nodes of a kind."""


@dataclass(frozen=True)
class AnyOf:
    """One of several patterns; the first that lets the whole match."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True)
class Hole:
    """The place in a wrap of `Wrapped` where the rest stands."""


@dataclass(frozen=True)
class Wrapped:
    """`inner` behind any number of `wraps`, in any order; each wrap has a `Hole` for what is behind it."""

    wraps: tuple[Op, ...]
    inner: Pattern


Pattern = Var | Scalar | Const | Free | Op | AnyOf | Hole | Wrapped
HOLE = Hole()


def maybe(op: str, inner: Pattern, *rest: Pattern, bind: str | None = None) -> AnyOf:
    """`inner`, or a node `op` around it."""
    return AnyOf((Op(op, (inner, *rest), bind), inner))


class Step(NamedTuple):
    """One of the nodes of a kind."""

    kind: str
    node: gs.Node


@dataclass(frozen=True)
class Match:
    """A pattern found: what its names are bound to, and the nodes inside."""

    tensors: Mapping[str, gs.Tensor]
    nodes: Mapping[str, gs.Node]
    inside: tuple[gs.Node, ...]
    steps: tuple[Step, ...] = ()
    """The nodes that have a kind, from the output on."""


@dataclass(frozen=True)
class Miss:
    """A pattern not found: how many nodes matched on the deepest way, and what stood after them."""

    depth: int
    reason: str


def match(pattern: Pattern, tensor: gs.Tensor) -> Match | Miss:
    """Match `pattern` with the subgraph that ends in `tensor`."""
    misses: list[Miss] = []
    for found in _ways(pattern, tensor, Match({}, {}, ()), misses):
        return found
    # Of equally deep ones the last, since optional nodes come first.
    return max(reversed(misses), key=lambda miss: miss.depth)


def _ways(pattern: Pattern, tensor: gs.Tensor, so_far: Match, misses: list[Miss]) -> Iterator[Match]:
    """Every way to match `pattern` with `tensor` after what was matched `so_far`; misses are collected."""
    if isinstance(pattern, AnyOf):
        for option in pattern.options:
            yield from _ways(option, tensor, so_far, misses)
    elif isinstance(pattern, Wrapped):
        if len(so_far.inside) < MAX_STEPS:
            for wrap in pattern.wraps:
                yield from _ways(_filled(wrap, pattern), tensor, so_far, misses)
        yield from _ways(pattern.inner, tensor, so_far, misses)
    elif isinstance(pattern, Op):
        yield from _ways_of_op(pattern, tensor, so_far, misses)
    else:
        found = _leaf(pattern, tensor, so_far)
        if isinstance(found, Match):
            yield found
        else:
            misses.append(found)


def _filled(pattern: Pattern, rest: Pattern) -> Pattern:
    """`pattern` with `rest` in the place of its holes."""
    if isinstance(pattern, Hole):
        return rest
    if isinstance(pattern, Op):
        return dataclasses.replace(pattern, inputs=tuple(_filled(one, rest) for one in pattern.inputs))
    if isinstance(pattern, AnyOf):
        return AnyOf(tuple(_filled(one, rest) for one in pattern.options))
    return pattern


def _leaf(pattern: Var | Scalar | Const | Free | Hole, tensor: gs.Tensor, so_far: Match) -> Match | Miss:
    """Match a pattern that ends at `tensor`."""
    if isinstance(pattern, Var):
        if pattern.rank is not None and rank_of(tensor) != pattern.rank:
            return _miss(so_far, f"`{pattern.name}` with {pattern.rank} dimensions", tensor)
        return _bound(pattern.name, tensor, so_far)
    if isinstance(pattern, Free):
        sizes = tensor.shape if pattern.one and tensor.shape is not None else ()
        if not is_free(tensor) or any(isinstance(size, int) and size != 1 for size in sizes):
            number = "one number" if pattern.one else "a tensor"
            return _miss(so_far, f"{number} that does not depend on the picture", tensor)
        return so_far
    value = constant_value(tensor)
    if isinstance(pattern, Scalar):
        if value is None or value.size != 1:
            return _miss(so_far, f"a scalar constant `{pattern.name}`", tensor)
        return _bound(pattern.name, tensor, so_far)
    return so_far if isinstance(tensor, gs.Constant) or value is not None else _miss(so_far, "a constant", tensor)


def _bound(name: str, tensor: gs.Tensor, so_far: Match) -> Match | Miss:
    if not name:
        return so_far
    before = so_far.tensors.get(name)
    if before is not None and before is not tensor:
        return _miss(so_far, f"`{name}` to be {before.name!r} here too", tensor)
    return dataclasses.replace(so_far, tensors={**so_far.tensors, name: tensor})


def _ways_of_op(pattern: Op, tensor: gs.Tensor, so_far: Match, misses: list[Miss]) -> Iterator[Match]:
    node = producer(tensor)
    if node is None or node.op != pattern.op:
        misses.append(_miss(so_far, pattern.op, tensor))
        return
    if node.outputs[0] is not tensor:
        misses.append(_miss(so_far, f"the first output of {pattern.op}", tensor))
        return
    for key, wanted in pattern.attrs.items():
        given = node.attrs.get(key)
        if given not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            misses.append(_miss(so_far, f"{pattern.op} with {key}={wanted}", tensor, f"{key}={given}"))
            return
    if len(node.inputs) < len(pattern.inputs):
        misses.append(_miss(so_far, f"{pattern.op} with {len(pattern.inputs)} inputs", tensor))
        return
    bound = so_far.nodes.get(pattern.bind) if pattern.bind else None
    if bound is not None and bound is not node:
        misses.append(_miss(so_far, f"{pattern.op} to be {bound.name!r} here too", tensor))
        return
    entered = _entered(pattern, node, so_far)
    orders = [node.inputs]
    if pattern.op in COMMUTATIVE:
        orders.append(node.inputs[::-1])
    for order in orders:
        yield from _ways_of_inputs(pattern.inputs, order, entered, misses)


def _entered(pattern: Op, node: gs.Node, so_far: Match) -> Match:
    """The match with `node` inside, once however often the pattern comes to it."""
    if any(one is node for one in so_far.inside):
        return so_far
    nodes = {**so_far.nodes, pattern.bind: node} if pattern.bind else so_far.nodes
    steps = (*so_far.steps, Step(pattern.step, node)) if pattern.step else so_far.steps
    return Match(so_far.tensors, nodes, (*so_far.inside, node), steps)


def _ways_of_inputs(
    patterns: tuple[Pattern, ...], inputs: Sequence[gs.Tensor], so_far: Match, misses: list[Miss]
) -> Iterator[Match]:
    """Every way to match inputs one by one: where a later one does not match, another way for the earlier is tried."""
    if not patterns:
        yield so_far
        return
    for found in _ways(patterns[0], inputs[0], so_far, misses):
        yield from _ways_of_inputs(patterns[1:], inputs[1:], found, misses)


def _miss(so_far: Match, looked_for: str, tensor: gs.Tensor, detail: str = "") -> Miss:
    node = producer(tensor)
    if node is not None:
        found = f"{node.op} {node.name!r}" + (f" with {detail}" if detail else "")
    else:
        kind = "the constant" if isinstance(tensor, gs.Constant) else "the input"
        found = f"{kind} {tensor.name!r} {'of unknown shape' if tensor.shape is None else list(tensor.shape)}"
    return Miss(len(so_far.inside), f"looked for {looked_for}, found {found}")
