"""ITAE at an attention of any graph: nothing but the input of its softmax changes, and no size need be known.

Where `inject` rewrites our own traces so that builders keep their kernels, this reads the logits as they are, in
whatever layout, precision and opset: the patches' norms are compared as (B, P), P being what a run brings. Where no
patch is flagged, every logit that the softmax reads is the one that it read before, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from exporter.methods.itae.graph.detect import ARTIFACT, EPSILON, MAD_TO_SIGMA, NORM
from exporter.methods.itae.options import Choice, ItaeConfig
from exporter.surgery.attention import scope_of
from exporter.surgery.edit import Editor, Shape

ALL = np.iinfo(np.int64).max
_ONE = np.array([1], np.int64)
FLAGGED = "flagged"
"""The name of the patches that the threshold flags, (B, P) bool, in a layer where artifacts are found."""
PATCH_NORM = "patch_norm"
"""The name of the patches' norms, (B, P) float32, in the same layer."""


@dataclass(frozen=True)
class Vectors:
    """The vectors whose norms are compared, as a graph has them."""

    tensor: gs.Tensor
    layout: str
    """A letter for each axis: b batch, h heads, x both in one, n tokens, d and c channels; one of each."""
    scale: float = 1.0
    """The factor that is in them and does not belong to them."""


@dataclass(frozen=True)
class Place:
    """One attention of any graph; its tensors have their dtypes and shapes."""

    layer: int
    softmax: gs.Node | None
    """Reads logits (B, H, N, N) or (B·H, N, N); None in a layer that is not chosen and is one operator."""
    heads: int
    vectors: Vectors | None
    """None if no norm is looked at."""


@dataclass(frozen=True)
class Patches:
    """Which of the tokens are patches."""

    prefix: int
    """Number of tokens before them, which are never artifacts: CLS, registers."""
    behind: int
    """Number of tokens behind them, alike."""
    tokens: int | str
    """N, or the name of a number that is not known."""

    @property
    def stop(self) -> int:
        """The end of the patches, for a Slice."""
        return -self.behind if self.behind else ALL


def inject_anywhere(graph: gs.Graph, places: Sequence[Place], itae: ItaeConfig, patches: Patches) -> None:
    """Find artifacts and attenuate their logits in the chosen layers. Source: exporter/ITAE.md 1 to 3.

    Args:
        graph: changed in place.
        places: all attentions of the backbone, in order.
        itae: the method.
        patches: which tokens they are.
    """
    artifacts: dict[int, gs.Tensor] = {}
    for layer in itae.layer_indices(len(places)):
        source = itae.detects_in(layer)
        if source not in artifacts:
            edit = Editor(graph, scope_of(source))
            artifacts[source] = _artifacts(edit, places[source], itae, patches)
        attenuate(Editor(graph, scope_of(layer)), places[layer], artifacts[source], itae.attenuation, patches)


def _artifacts(edit: Editor, place: Place, itae: ItaeConfig, which: Patches) -> gs.Tensor:
    """Which tokens are artifacts to attenuate: (B, N) bool, or (1, N) if they are the same in every image."""
    prefix, tokens = which.prefix, which.tokens
    if itae.limit.kind == "positions":
        row = np.zeros((1, int(tokens)), np.bool_)
        if not (isinstance(tokens, int) and itae.may_flag_all(tokens - prefix - which.behind)):
            row[0, [prefix + patch for patch in itae.limit.indices]] = True
        return gs.Constant(f"itae/{edit.scope}/{ARTIFACT}", row)
    assert place.vectors is not None
    norm = norms_of(edit, place.vectors, place.heads, tokens)
    batch = norm.shape[0]
    shape = (batch, "patches")
    patches = _part(edit, norm, PATCH_NORM, prefix, which.stop, shape)
    flags = _flagged(edit, patches, itae, batch)
    ones = _cast(edit, flags, np.float32, "flags_float32")
    every = edit.node("ReduceMin", [ones, _ONE], "every_patch", dtype=np.float32, shape=(batch, 1), keepdims=1)
    some_normal = edit.node("Less", [every, np.float32(0.5)], "some_normal", dtype=bool, shape=(batch, 1))
    flags = edit.node("And", [flags, some_normal], "attenuated_patches", dtype=bool, shape=shape)
    parts: list[gs.Tensor] = [flags]
    for name, count, start, stop in (("prefix", prefix, 0, prefix), ("behind", which.behind, -which.behind, ALL)):
        if count:
            others = _part(edit, norm, f"{name}_norm", start, stop, (batch, count))
            never = edit.node("Less", [others, np.float32(-1)], f"never_{name}", dtype=bool, shape=(batch, count))
            parts = [never, *parts] if name == "prefix" else [*parts, never]
    return edit.node("Concat", parts, ARTIFACT, dtype=bool, shape=(batch, tokens), axis=1)


def norms_of(edit: Editor, vectors: Vectors, heads: int, tokens: int | str) -> gs.Tensor:
    """L2 norm over heads and channels of each token: (B, N) float32."""
    layout, shape = vectors.layout, tuple(vectors.tensor.shape)
    exact = _cast(edit, vectors.tensor, np.float32, "source_float32")
    batch = shape[layout.index("b")] if "b" in layout else "batch"
    whole: Shape = (batch, tokens)
    if "x" in layout:
        axis = np.array([layout.index("d")], np.int64)
        apart = (shape[0], tokens)
        squares = edit.node("Mul", [exact, exact], "squares", dtype=np.float32, shape=shape)
        sums = edit.node("ReduceSum", [squares, axis], "head_squares", dtype=np.float32, shape=apart, keepdims=0)
        three = edit.node("Unsqueeze", [sums, _ONE], "heads_apart", dtype=np.float32, shape=(shape[0], 1, tokens))
        by_head = edit.node(
            "Reshape", [three, np.array([-1, heads, 0], np.int64)], "by_head", dtype=np.float32,
            shape=(batch, heads, tokens),
        )  # fmt: skip
        total = edit.node("ReduceSum", [by_head, _ONE], "token_squares", dtype=np.float32, shape=whole, keepdims=0)
        name = NORM if vectors.scale == 1 else f"scaled_{NORM}"
        norm = edit.node("Sqrt", [total], name, dtype=np.float32, shape=whole)
    else:
        axes = np.array([axis for axis, letter in enumerate(layout) if letter not in "bn"], np.int64)
        turned = layout.index("n") < layout.index("b")
        order: Shape = (tokens, batch) if turned else whole
        name = NORM if vectors.scale == 1 and not turned else f"raw_{NORM}"
        norm = edit.node("ReduceL2", [exact, axes], name, dtype=np.float32, shape=order, keepdims=0)
        if turned:
            name = NORM if vectors.scale == 1 else f"scaled_{NORM}"
            norm = edit.node("Transpose", [norm], name, dtype=np.float32, shape=whole, perm=[1, 0])
    if vectors.scale == 1:
        return norm
    return edit.node("Div", [norm, np.float32(abs(vectors.scale))], NORM, dtype=np.float32, shape=whole)


def _cast(edit: Editor, tensor: gs.Tensor, dtype: npt.DTypeLike, name: str) -> gs.Tensor:
    """`tensor` in `dtype`; the tensor itself if it has this dtype already."""
    if tensor.dtype == np.dtype(dtype):
        return tensor
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return edit.node("Cast", [tensor], name, dtype=dtype, shape=tuple(tensor.shape), to=int(to))


def _part(edit: Editor, tensor: gs.Tensor, name: str, start: int, stop: int, shape: Shape) -> gs.Variable:
    """Entries `start` to `stop` along the last axis."""
    axis = len(shape) - 1
    bounds = [np.array([value], np.int64) for value in (start, stop, axis)]
    return edit.node("Slice", [tensor, *bounds], name, dtype=tensor.dtype, shape=shape)


def _flagged(edit: Editor, norm: gs.Tensor, itae: ItaeConfig, batch: int | str) -> gs.Tensor:
    """Which patches the threshold flags, of norms (B, P)."""
    shape, one = tuple(norm.shape), (batch, 1)
    number = np.float32(itae.limit.number)
    upper: gs.Tensor | np.float32 = number
    lower: gs.Tensor | np.float32 = -number
    scored = norm
    if itae.limit.kind == "absolute":
        lower = number
    elif itae.limit.kind == "ratio":
        middle = _median(edit, norm, "median", batch)
        upper = edit.node("Mul", [middle, number], "upper", dtype=np.float32, shape=one)
        lower = edit.node("Div", [middle, number], "lower", dtype=np.float32, shape=one)
    else:
        if itae.limit.kind == "mad":
            centre = _median(edit, norm, "median", batch)
            off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
            size = edit.node("Abs", [off], "absolute_deviation", dtype=np.float32, shape=shape)
            mad = _median(edit, size, "mad", batch)
            spread = edit.node("Mul", [mad, MAD_TO_SIGMA], "spread", dtype=np.float32, shape=one)
        else:
            centre = edit.node("ReduceMean", [norm, _ONE], "mean_norm", dtype=np.float32, shape=one, keepdims=1)
            off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
            squares = edit.node("Mul", [off, off], "squared_deviation", dtype=np.float32, shape=shape)
            variance = edit.node("ReduceMean", [squares, _ONE], "variance", dtype=np.float32, shape=one, keepdims=1)
            spread = edit.node("Sqrt", [variance], "spread", dtype=np.float32, shape=one)
        divisor = edit.node("Add", [spread, EPSILON], "divisor", dtype=np.float32, shape=one)
        scored = edit.node("Div", [off, divisor], "score", dtype=np.float32, shape=shape)
    found = []
    high, low = ("high", "low") if itae.side == "both" else (FLAGGED, FLAGGED)
    if itae.side in ("high", "both"):
        found.append(edit.node("Greater", [scored, upper], high, dtype=bool, shape=shape))
    if itae.side in ("low", "both"):
        if itae.limit.kind == "absolute":  # at the threshold counts as low
            above = edit.node("Greater", [scored, lower], "not_low", dtype=bool, shape=shape)
            found.append(edit.node("Not", [above], low, dtype=bool, shape=shape))
        else:
            found.append(edit.node("Less", [scored, lower], low, dtype=bool, shape=shape))
    return found[0] if len(found) == 1 else edit.node("Or", found, FLAGGED, dtype=bool, shape=shape)


def _median(edit: Editor, values: gs.Tensor, name: str, batch: int | str) -> gs.Tensor:
    """Median of (B, P): (B, 1); of an even P the mean of the two middle ones."""
    integer: dict[str, Any] = {"dtype": np.int64, "shape": (1,)}
    sizes = edit.node("Shape", [values], f"{name}_sizes", dtype=np.int64, shape=(2,))
    bounds = [np.array([value], np.int64) for value in (1, 2, 0)]
    count = edit.node("Slice", [sizes, *bounds], f"{name}_count", **integer)
    half = edit.node("Div", [count, np.array([2], np.int64)], f"{name}_half", **integer)
    more = edit.node("Add", [half, _ONE], f"{name}_upper", **integer)
    top = edit.node(
        "TopK", [values, more], f"{name}_top", dtype=np.float32, shape=(batch, f"{name}_upper"), axis=1, largest=1,
        sorted=1,
    )  # fmt: skip
    node = top.inputs[0]
    node.outputs.append(gs.Variable(f"{node.name}/indices", dtype=np.dtype(np.int64), shape=[*top.shape]))
    rest = edit.node("Sub", [count, more], f"{name}_rest", **integer)
    two = [
        edit.node("Gather", [top, index], f"{name}_{part}", dtype=np.float32, shape=(batch, 1), axis=1)
        for part, index in (("first", half), ("second", rest))
    ]
    total = edit.node("Add", two, f"{name}_sum", dtype=np.float32, shape=(batch, 1))
    return edit.node("Mul", [total, np.float32(0.5)], name, dtype=np.float32, shape=(batch, 1))


def attenuate(edit: Editor, place: Place, artifact: gs.Tensor, how: Choice, which: Patches) -> None:
    """Let the softmax read logits, their columns at artifacts (B or 1, N) attenuated. Source: exporter/ITAE.md 2."""
    assert place.softmax is not None
    logits = place.softmax.inputs[0]
    shape, dtype = tuple(logits.shape), logits.dtype
    columns = _columns(edit, artifact, shape, place.heads)
    row = (*shape[:-1], 1)
    last = np.array([len(shape) - 1], np.int64)
    if how.kind == "mask":
        instead: gs.Tensor | np.generic = np.dtype(dtype).type(-np.inf)
    elif how.kind == "scale":
        factor = np.dtype(dtype).type(math.log(how.number))
        instead = edit.node("Add", [logits, factor], "scaled_down", dtype=dtype, shape=shape)
    else:
        over = (*shape[:-1], "patches")
        patches = _part(edit, logits, "patch_logits", which.prefix, which.stop, over)
        if how.kind == "min":
            instead = edit.node("ReduceMin", [patches, last], "row_minimum", dtype=dtype, shape=row, keepdims=1)
        else:
            exact = _cast(edit, patches, np.float32, "patch_logits_float32")
            flags = _part(
                edit, columns, "patch_columns", which.prefix, which.stop, (*tuple(columns.shape)[:-1], "patches")
            )
            zero, one = np.float32(0), np.float32(1)
            kept = edit.node("Where", [flags, zero, exact], "normal_logits", dtype=np.float32, shape=over)
            ones = edit.node("Where", [flags, zero, one], "normal", dtype=np.float32, shape=tuple(flags.shape))
            total = edit.node("ReduceSum", [kept, last], "logit_sum", dtype=np.float32, shape=row, keepdims=1)
            few = (*tuple(columns.shape)[:-1], 1)
            count = edit.node("ReduceSum", [ones, last], "normal_count", dtype=np.float32, shape=few, keepdims=1)
            mean = edit.node("Div", [total, count], "mean_logit_float32", dtype=np.float32, shape=row)
            instead = _cast(edit, mean, dtype, "mean_logit")
    place.softmax.inputs[0] = edit.node("Where", [columns, instead, logits], "attenuated", dtype=dtype, shape=shape)


def _columns(edit: Editor, artifact: gs.Tensor, logits: Shape, heads: int) -> gs.Tensor:
    """The artifacts (B or 1, N) as columns of logits: (B, 1, 1, N), or (B·H, 1, N)."""
    batch, tokens = tuple(artifact.shape)
    if len(logits) == 4:
        axes = np.array([1, 2], np.int64)
        return edit.node("Unsqueeze", [artifact, axes], "columns", dtype=bool, shape=(batch, 1, 1, tokens))
    three = edit.node("Unsqueeze", [artifact, _ONE], "flags_apart", dtype=bool, shape=(batch, 1, tokens))
    if isinstance(artifact, gs.Constant):
        return three
    sizes = np.array([1, heads, 1], np.int64)
    by_head = edit.node("Expand", [three, sizes], "flags_by_head", dtype=bool, shape=(batch, heads, tokens))
    together = np.array([-1, 1, 0], np.int64)
    return edit.node("Reshape", [by_head, together], "columns", dtype=bool, shape=(logits[0], 1, tokens))
