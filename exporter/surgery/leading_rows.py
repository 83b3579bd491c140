"""Pass for any graph: behind a product of queries and keys the first rows alone, where no output asks for more.

`cls_only` does it in our own traces, whose form is known. Here each axis is followed as the factors that it is made of,
through whatever Reshape and Transpose comes, until a Gather or Slice takes the first tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from exporter.surgery.edit import Editor, constant_value, is_free, is_output
from runtime.contract.errors import SurgeryError

ROWS, IMAGES, KEYS, OTHER = "rows", "images", "keys", ""
SCOPE = "leading_rows"
_EACH = (
    "Abs", "Add", "And", "BiasGelu", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
    "FastGelu", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "QuickGelu", "Reciprocal",
    "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
)  # fmt: skip
"""Operators that compute each number from those in its place."""
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax")
"""Operators that compute each number from those along the last axis."""
_SUMS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")


class Factor(NamedTuple):
    """A part of an axis."""

    what: str
    size: int


Axis = tuple[Factor, ...]
"""The factors of an axis, the slowest first; none if its size is 1."""
Axes = tuple[Axis, ...]


@dataclass
class _Walk:
    graph: gs.Graph
    shapes: Mapping[str, tuple[int, ...]]
    rows: int
    axes: dict[int, Axes] = field(default_factory=dict)
    """The axes of each tensor with fewer rows, by its id."""
    cuts: list[tuple[gs.Node, int, int]] = field(default_factory=list)
    """Node, input and axis, where a tensor with all rows enters."""
    targets: list[tuple[gs.Node, Axes, Axes]] = field(default_factory=list)
    """Reshapes, with the axes before and behind them."""
    measured: list[gs.Node] = field(default_factory=list)
    """Shape nodes of tensors with fewer rows."""
    kept: int = 0
    """Number of rows that are asked for so far."""

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        value = constant_value(tensor)
        if value is not None:
            return tuple(value.shape)
        if tensor.name in self.shapes:
            return self.shapes[tensor.name]
        if isinstance(tensor, gs.Constant):
            return tuple(map(int, tensor.shape))
        raise SurgeryError(f"the shape of {tensor.name!r} is not known")

    def row_axis(self, tensor: gs.Tensor) -> int:
        axes = self.axes[id(tensor)]
        return next(place for place, axis in enumerate(axes) if any(one.what == ROWS for one in axis))

    def give(self, tensor: gs.Tensor, axes: Axes) -> None:
        self.axes[id(tensor)] = axes


def keep_leading_rows(
    graph: gs.Graph, product: gs.Node, heads: int, images: int, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Let `product` and what follows compute the rows that the outputs need.

    Args:
        graph: sorted; changed in place, and to be thrown away if this raises.
        product: of queries and keys, in (B, H, N, d) or (B·H, N, d).
        heads: H.
        images: B in the run that gave `shapes`.
        shapes: of all tensors behind the product and of what enters there, by name.

    Returns:
        Number of rows that are left.

    Raises:
        SurgeryError: an output needs all rows, or it is not known which it needs; the message says where.
    """
    logits = product.outputs[0]
    shape = shapes[logits.name]
    row, key = Factor(ROWS, shape[-2]), Factor(KEYS, shape[-1])
    image = () if images == 1 else (Factor(IMAGES, images),)
    each = () if heads == 1 else (Factor(OTHER, heads),)
    if product.op not in ("MatMul", "FusedMatMul") or row.size < 2 or shape[:-2] not in (
        (images, heads), (images * heads,),
    ):  # fmt: skip
        raise SurgeryError(f"{product.op} {product.name!r} gives {list(shape)}, where (B, H, N, N) was looked for")
    lead = (image, each) if len(shape) == 4 else ((*image, *each),)
    walk = _Walk(graph, shapes, row.size)
    walk.give(logits, (*lead, (row,), (key,)))
    after = graph.nodes[next(place for place, node in enumerate(graph.nodes) if node is product) + 1 :]
    for node in after:
        _follow(walk, node)
    if (output := next((one for one in graph.outputs if id(one) in walk.axes), None)) is not None:
        raise SurgeryError(f"the output {output.name!r} has all tokens")
    if not walk.kept:
        raise SurgeryError("no output reads the first tokens of the last layer")
    _apply(walk, product)
    return walk.kept


def _follow(walk: _Walk, node: gs.Node) -> None:
    """Find the axes of what `node` gives, if it reads a tensor with fewer rows.

    Raises:
        SurgeryError: it mixes rows, or is not known.
    """
    for attribute in node.attrs.values():
        inner = attribute.nodes if isinstance(attribute, gs.Graph) else ()
        if any(id(one) in walk.axes for part in inner for one in part.inputs):
            raise _unknown(node)
    read = [index for index, one in enumerate(node.inputs) if id(one) in walk.axes]
    if not read:
        return
    if node.op in _EACH or (node.op == "Concat" and _is_beside_rows(walk, node)) or node.op == "SkipLayerNormalization":
        _each(walk, node, read)
        return
    follow = _FOLLOW.get(node.op)
    if follow is None or read != [0]:
        raise _unknown(node)
    follow(walk, node)


def _unknown(node: gs.Node) -> SurgeryError:
    return SurgeryError(f"{node.op} {node.name!r} behind the last attention may mix tokens")


def _each(walk: _Walk, node: gs.Node, read: Sequence[int]) -> None:
    first = node.inputs[read[0]]
    axes = walk.axes[id(first)]
    from_right = len(axes) - walk.row_axis(first)
    for index, tensor in enumerate(node.inputs):
        if tensor.is_empty() or index == read[0]:
            continue
        if index in read:
            if len(walk.axes[id(tensor)]) - walk.row_axis(tensor) != from_right:
                raise _unknown(node)
            continue
        shape = walk.shape(tensor)
        if len(shape) >= from_right and shape[-from_right] != 1:
            if shape[-from_right] != walk.rows:
                raise _unknown(node)
            walk.cuts.append((node, index, len(shape) - from_right))
    for output in node.outputs:
        if output.name in walk.shapes:
            walk.give(output, _widened(node, axes, walk.shape(output)))


def _widened(node: gs.Node, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """The axes of a result of this shape, which is aligned with `axes` on the right."""
    padded = ((),) * (len(shape) - len(axes)) + axes
    found = []
    for axis, size in zip(padded, shape, strict=True):
        if _size(axis) == size:
            found.append(axis)
        elif not any(one.what for one in axis):  # others are broadcast over it, or are joined to it
            found.append((Factor(OTHER, size),))
        else:
            raise _unknown(node)
    return tuple(found)


def _is_beside_rows(walk: _Walk, node: gs.Node) -> bool:
    first = next(one for one in node.inputs if id(one) in walk.axes)
    axis = int(node.attrs["axis"]) % len(walk.axes[id(first)])
    return axis != walk.row_axis(first)


def _matmul(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    turned = any(node.attrs.get(name) for name in ("transA", "transBatchA", "transBatchB"))
    right = walk.shape(node.inputs[1])
    bias = walk.shape(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else ()
    if turned or walk.row_axis(node.inputs[0]) == len(axes) - 1 or len(right) > len(axes) or _size((), bias[:-1]) > 1:
        raise _unknown(node)
    shape = walk.shape(node.outputs[0])
    walk.give(node.outputs[0], (*axes[:-1], (Factor(OTHER, shape[-1]),)))


def _norm(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    axis = int(node.attrs.get("axis", -1))
    if axis % len(axes) != len(axes) - 1 or walk.row_axis(node.inputs[0]) == len(axes) - 1:
        raise _unknown(node)
    if node.op in ("Softmax", "LogSoftmax") and "axis" not in node.attrs and walk.graph.opset < 13:
        raise _unknown(node)
    walk.give(node.outputs[0], axes)


def _sum(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    given = constant_value(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    over = [] if given is None else [int(one) % len(axes) for one in np.ravel(given)]
    if not over or walk.row_axis(node.inputs[0]) in over:
        raise _unknown(node)
    keep = bool(node.attrs.get("keepdims", 1))
    walk.give(node.outputs[0], tuple(
        () if place in over else axis for place, axis in enumerate(axes) if keep or place not in over
    ))  # fmt: skip


def _transpose(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    order = node.attrs.get("perm", [*reversed(range(len(axes)))])
    walk.give(node.outputs[0], tuple(axes[place] for place in order))


def _reshape(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    after = _regrouped(node, axes, walk.shape(node.outputs[0]))
    if node.op == "Reshape":
        walk.targets.append((node, axes, after))
    walk.give(node.outputs[0], after)


def _regrouped(node: gs.Node, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """The factors of `axes` in the same order, as axes of these sizes."""
    left = [one for axis in axes for one in axis]
    found = []
    for size in shape:
        group: list[Factor] = []
        missing = size
        while missing > 1:
            what, have = left[0] if left else Factor(ROWS, missing + 1)
            if missing % have == 0:
                group.append(left.pop(0))
                missing //= have
            elif what == OTHER and have % missing == 0:
                group.append(Factor(OTHER, missing))
                left[0] = Factor(OTHER, have // missing)
                missing = 1
            else:
                raise _unknown(node)
        found.append(tuple(group))
    if left:
        raise _unknown(node)
    return tuple(found)


def _squeeze(walk: _Walk, node: gs.Node) -> None:
    has_axes = bool(node.attrs.get("axes")) or len(node.inputs) > 1
    if not has_axes:  # an axis of one row would go too
        raise _unknown(node)
    _reshape(walk, node)


def _gather(walk: _Walk, node: gs.Node) -> None:
    data, index = node.inputs[:2]
    axes = walk.axes[id(data)]
    axis = int(node.attrs.get("axis", 0)) % len(axes)
    if axis != walk.row_axis(data):
        if not is_free(index):
            raise _unknown(node)
        inner = tuple((Factor(OTHER, size),) if size > 1 else () for size in walk.shape(index))
        walk.give(node.outputs[0], (*axes[:axis], *inner, *axes[axis + 1 :]))
        return
    value = constant_value(index)
    _select(walk, node, axes[axis], None if value is None else (int(value.min(initial=0)), int(value.max()) + 1))


def _select(walk: _Walk, node: gs.Node, axis: Axis, span: tuple[int, int] | None) -> None:
    """Note that `node` takes rows within `span`."""
    if span is None or span[0] < 0 or len(axis) > 1 or span[1] >= walk.rows:
        raise SurgeryError(f"{node.op} {node.name!r} reads more than the first tokens of the last layer")
    walk.kept = max(walk.kept, span[1])


def _slice(walk: _Walk, node: gs.Node) -> None:
    data = node.inputs[0]
    axes, row = walk.axes[id(data)], walk.row_axis(data)
    starts, ends, over, steps = (
        None if value is None else [int(number) for number in np.ravel(value)]
        for value in (constant_value(one) for one in [*node.inputs[1:], *[gs.Variable.empty()] * 4][:4])
    )
    if over is None or (steps is None and len(node.inputs) > 4) or any(step != 1 for step in steps or ()):
        raise _unknown(node)
    over = [axis % len(axes) for axis in over]
    found = [*axes]
    for place, axis in enumerate(over):
        if axis != row:
            size = walk.shape(node.outputs[0])[axis]
            if size != _size(axes[axis]):
                found[axis] = (Factor(OTHER, size),)
            continue
        span = None if starts is None or ends is None else (starts[place], ends[place])
        if span is None or span[0] != 0 or span[1] < walk.rows:
            is_ahead = span is not None and 0 <= span[0] < span[1]
            _select(walk, node, axes[row], span if is_ahead else None)
            return
    walk.give(node.outputs[0], tuple(found))


def _split(walk: _Walk, node: gs.Node) -> None:
    axes = walk.axes[id(node.inputs[0])]
    axis = int(node.attrs.get("axis", 0)) % len(axes)
    if axis == walk.row_axis(node.inputs[0]):
        raise SurgeryError(f"{node.op} {node.name!r} reads more than the first tokens of the last layer")
    for output in node.outputs:
        size = walk.shape(output)[axis]
        walk.give(output, (*axes[:axis], (Factor(OTHER, size),) if size > 1 else (), *axes[axis + 1 :]))


def _measure(walk: _Walk, node: gs.Node) -> None:
    walk.measured.append(node)


_Follow = Callable[[_Walk, gs.Node], None]
_FOLLOW: dict[str, _Follow] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm"), _matmul),
    **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(("Reshape", "Flatten", "Unsqueeze"), _reshape),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Shape": _measure,
}


def _size(axis: Axis, sizes: Sequence[int] = ()) -> int:
    return math.prod((*(one.size for one in axis), *sizes))


def _apply(walk: _Walk, product: gs.Node) -> None:
    """Cut what enters, and correct the targets of Reshapes."""
    edit = Editor(walk.graph, SCOPE)
    query = product.inputs[0]
    made: dict[tuple[int, int], gs.Tensor] = {}
    rank = len(walk.axes[id(product.outputs[0])])
    for node, index, axis in [(product, 0, rank - 2), *walk.cuts]:
        tensor = node.inputs[index]
        if (id(tensor), axis) not in made:
            bounds = [np.array([number], np.int64) for number in (0, walk.kept, axis)]
            made[id(tensor), axis] = edit.node(
                "Slice", [tensor, *bounds], "queries" if tensor is query else f"rows{len(made)}",
                dtype=tensor.dtype or np.float32, shape=tuple(f"size{place}" for place in range(axis + 1)),
            )  # fmt: skip
        node.inputs[index] = made[id(tensor), axis]
    for node, before, after in walk.targets:
        sizes = [_target(walk, node, before, place, axis) for place, axis in enumerate(after)]
        node.inputs[1] = gs.Constant(f"itae/{SCOPE}/{node.outputs[0].name}/sizes", np.array(sizes, np.int64))
        node.attrs.pop("allowzero", None)
    walk.graph.cleanup().toposort()
    for node in walk.measured:
        if any(one is node for one in walk.graph.nodes) and not _measures_others(walk, node):
            raise SurgeryError(f"{node.op} {node.name!r} looks at the number of tokens behind the last attention")


def _target(walk: _Walk, node: gs.Node, before: Axes, place: int, axis: Axis) -> int:
    if place < len(before) and before[place] == axis:
        return 0
    kinds = {one.what for one in axis}
    if IMAGES in kinds:
        return -1
    if KEYS in kinds:
        raise _unknown(node)
    return math.prod(walk.kept if one.what == ROWS else one.size for one in axis)


def _measures_others(walk: _Walk, node: gs.Node) -> bool:
    """Whether all that is read of a Shape are sizes of axes without rows."""
    row = walk.row_axis(node.inputs[0])
    for reader in node.outputs[0].outputs:
        index = constant_value(reader.inputs[1]) if reader.op == "Gather" else None
        if index is None or any(int(one) % len(walk.axes[id(node.inputs[0])]) == row for one in np.ravel(index)):
            return False
    return not is_output(walk.graph, node.outputs[0])


def tensors_behind(graph: gs.Graph, product: gs.Node) -> list[str]:
    """Names of the tensors that `product` reaches, and of what enters there; the graph is sorted."""
    reached = {id(one) for one in product.outputs}
    names = dict.fromkeys(one.name for one in product.outputs)
    for node in graph.nodes:
        if any(id(one) in reached for one in node.inputs):
            reached.update(map(id, node.outputs))
            names |= dict.fromkeys(
                one.name for one in (*node.inputs, *node.outputs) if isinstance(one, gs.Variable) and one.name
            )
    return [*names]
