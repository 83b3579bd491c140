"""ONNX nodes that find the artifacts of one attention site. Source: itae.md 1. All of it is float32."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.itae import ItaeConfig
from exporter.surgery.attention import AttentionSite
from exporter.surgery.edit import Editor, shape_of

MAD_TO_SIGMA = np.float32(1.4826)
EPSILON = np.float32(1e-6)
NORM = "norm"
ARTIFACT = "artifact"


def patch_norm(edit: Editor, site: AttentionSite, itae: ItaeConfig, prefix: int) -> gs.Tensor:
    """L2 norm over heads and channels of each patch: (B, N, C) -> (B, P).

    Taken from the projection as it leaves the MatMul, before it is cut into heads, so that nothing is transposed.
    """
    source: gs.Tensor = getattr(site, itae.source)
    batch, tokens, _ = shape_of(source)
    # A squared norm overflows float16.
    exact = edit.cast(source, np.float32, f"{itae.source}_float32")
    norms = edit.node("ReduceL2", [exact, _axes(2)], "token_norm", dtype=np.float32, shape=(batch, tokens), keepdims=0)
    return cut(edit, norms, NORM, axis=1, start=prefix, stop=int(tokens))


def find_artifacts(edit: Editor, norm: gs.Tensor, itae: ItaeConfig) -> gs.Tensor:
    """The norms (B, P) against the threshold: (B, P) bool."""
    number = np.float32(itae.limit.number)
    shape = shape_of(norm)

    def compare(op: str, left: gs.Tensor, right: gs.Tensor | np.float32, side: str) -> gs.Tensor:
        name = ARTIFACT if itae.side == side else side
        return edit.node(op, [left, np.array(right) if isinstance(right, np.float32) else right], name,
                         dtype=bool, shape=shape)  # fmt: skip

    if itae.limit.kind == "absolute":
        if itae.side == "high":
            return compare("Greater", norm, number, "high")
        return compare("LessOrEqual", norm, number, "low")
    if itae.limit.kind == "ratio":
        middle = _median(edit, norm, "median")
        one = (shape[0], 1)
        scored = norm
        upper: gs.Tensor | np.float32 = edit.node("Mul", [middle, number], "upper", dtype=np.float32, shape=one)
        lower: gs.Tensor | np.float32 = edit.node("Div", [middle, number], "lower", dtype=np.float32, shape=one)
    else:
        scored = _score(edit, norm, itae.limit.kind)
        upper, lower = number, np.float32(-number)
    if itae.side == "high":
        return compare("Greater", scored, upper, "high")
    if itae.side == "low":
        return compare("Less", scored, lower, "low")
    either = [compare("Greater", scored, upper, "high"), compare("Less", scored, lower, "low")]
    return edit.node("Or", either, ARTIFACT, dtype=bool, shape=shape)


def _score(edit: Editor, norm: gs.Tensor, kind: str) -> gs.Tensor:
    """Robust or plain z-score of each norm: (B, P)."""
    shape = shape_of(norm)
    one = (shape[0], 1)
    if kind == "mad":
        centre = _median(edit, norm, "median")
        off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
        size = edit.node("Abs", [off], "absolute_deviation", dtype=np.float32, shape=shape)
        mad = _median(edit, size, "mad")
        spread = edit.node("Mul", [mad, MAD_TO_SIGMA], "spread", dtype=np.float32, shape=one)
    else:
        centre = edit.node("ReduceMean", [norm, _axes(1)], "mean_norm", dtype=np.float32, shape=one, keepdims=1)
        off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
        squares = edit.node("Mul", [off, off], "squared_deviation", dtype=np.float32, shape=shape)
        variance = edit.node("ReduceMean", [squares, _axes(1)], "variance", dtype=np.float32, shape=one, keepdims=1)
        spread = edit.node("Sqrt", [variance], "spread", dtype=np.float32, shape=one)
    divisor = edit.node("Add", [spread, EPSILON], "divisor", dtype=np.float32, shape=one)
    return edit.node("Div", [off, divisor], "score", dtype=np.float32, shape=shape)


def _median(edit: Editor, values: gs.Tensor, name: str) -> gs.Tensor:
    """Median of (B, P), kept as (B, 1), by one TopK of the upper half; of an even P the mean of the two middle ones."""
    batch, P = shape_of(values)
    upper = int(P) // 2 + 1
    top = edit.node(
        "TopK", [values, np.array([upper], np.int64)], f"{name}_upper_half", dtype=np.float32,
        shape=(batch, upper), axis=1, largest=1, sorted=1,
    )  # fmt: skip
    node = top.inputs[0]
    node.outputs.append(gs.Variable(f"{node.name}/indices", dtype=np.dtype(np.int64), shape=[batch, upper]))
    if int(P) % 2:
        return cut(edit, top, name, axis=1, start=upper - 1, stop=upper)
    middle = cut(edit, top, f"{name}_pair", axis=1, start=upper - 2, stop=upper)
    return edit.node("ReduceMean", [middle, _axes(1)], name, dtype=np.float32, shape=(batch, 1), keepdims=1)


def cut(edit: Editor, tensor: gs.Tensor, name: str, *, axis: int, start: int, stop: int) -> gs.Variable:
    """`tensor[start:stop]` along `axis`."""
    shape = list(shape_of(tensor))
    shape[axis] = stop - start
    bounds = [np.array([value], np.int64) for value in (start, stop, axis)]
    return edit.node("Slice", [tensor, *bounds], name, dtype=tensor.dtype, shape=tuple(shape))


def _axes(*axes: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(axes, np.int64)
