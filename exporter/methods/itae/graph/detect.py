"""ONNX nodes that find the artifacts of one attention site. Source: exporter/ITAE.md 1. All of it is float32.

Everything is as wide as all tokens, (B, N), and constants keep CLS and registers out of it: so TensorRT computes norms
and flags within few kernels, which slices and pads would cut apart. Evidence: exporter/DECISIONS.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from exporter.methods.itae.graph.median import for_tokens, median, median_and_mad
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import AttentionSite, block_input
from exporter.surgery.edit import PREFIX, Editor, shape_of

MAD_TO_SIGMA = np.float32(1.4826)
EPSILON = np.float32(1e-6)
NORM = "token_norm"
"""Norms of all tokens, (B, N); those of CLS and registers have no meaning."""
ARTIFACT = "artifact"
"""(B, N) bool, false for CLS and registers."""
_AXIS = np.array([1], np.int64)


def token_norm(edit: Editor, site: AttentionSite, itae: ItaeConfig) -> gs.Tensor:
    """L2 norm over heads and channels of each token: (B, N, C) -> (B, N).

    Taken from the projection as it leaves the MatMul, before it is cut into heads, so that nothing is transposed; or
    from the tokens that enter the block.
    """
    assert itae.source is not None
    source: gs.Tensor = block_input(site) if itae.source == "residual" else getattr(site, itae.source)
    # A squared norm overflows float16.
    exact = edit.cast(source, np.float32, f"{itae.source}_float32")
    axes = np.array([2], np.int64)
    return edit.node("ReduceL2", [exact, axes], NORM, dtype=np.float32, shape=shape_of(source)[:2], keepdims=0)


def at_positions(edit: Editor, site: AttentionSite, patches: Sequence[int], prefix: int) -> gs.Tensor:
    """The same artifacts in every image: a constant (1, N) bool; for outputs, the same as (B, N)."""
    batch, N, _ = shape_of(site.key)
    row = np.zeros((1, int(N)), np.bool_)
    row[0, [prefix + patch for patch in patches]] = True
    images = edit.node("Shape", [site.key], "images", dtype=np.int64, shape=(1,), start=0, end=1)
    whole = edit.node("Concat", [images, np.array([N], np.int64)], "mask_shape", dtype=np.int64, shape=(2,), axis=0)
    constant = gs.Constant(f"{PREFIX}/{edit.scope}/positions", row)
    edit.node("Expand", [constant, whole], ARTIFACT, dtype=bool, shape=(batch, N))
    return constant


def find_artifacts(edit: Editor, norm: gs.Tensor, itae: ItaeConfig, prefix: int) -> gs.Tensor:
    """The norms (B, N) of all tokens against the threshold: (B, N) bool, false for CLS and registers."""
    number = np.float32(itae.limit.number)
    if itae.limit.kind == "absolute":
        if itae.side == "high":
            return _above(edit, norm, number, prefix, ARTIFACT)
        return _below(edit, norm, number, prefix, ARTIFACT, op="LessOrEqual")
    if itae.limit.kind == "ratio":
        middle = median(edit, norm, prefix, "median")
        one = shape_of(middle)
        scored = norm
        upper: gs.Tensor | np.float32 = edit.node("Mul", [middle, number], "upper", dtype=np.float32, shape=one)
        lower: gs.Tensor | np.float32 = edit.node("Div", [middle, number], "lower", dtype=np.float32, shape=one)
    else:
        scored = _score(edit, norm, itae.limit.kind, prefix)
        upper, lower = number, -number
    if itae.side == "high":
        return _above(edit, scored, upper, prefix, ARTIFACT)
    if itae.side == "low":
        return _below(edit, scored, lower, prefix, ARTIFACT)
    either = [_above(edit, scored, upper, prefix, "high"), _below(edit, scored, lower, prefix, "low")]
    return edit.node("Or", either, ARTIFACT, dtype=bool, shape=shape_of(norm))


def _above(edit: Editor, scored: gs.Tensor, limit: gs.Tensor | np.float32, prefix: int, name: str) -> gs.Tensor:
    """Patches whose score (B, N) is over a limit that is never negative."""
    shape = shape_of(scored)
    never = for_tokens(prefix, int(shape[1]), -1, np.inf)
    patches = edit.node("Min", [scored, never], f"{name}_score", dtype=np.float32, shape=shape)
    return edit.node("Greater", [patches, limit], name, dtype=bool, shape=shape)


def _below(
    edit: Editor, scored: gs.Tensor, limit: gs.Tensor | np.float32, prefix: int, name: str, op: str = "Less"
) -> gs.Tensor:
    """Patches whose score (B, N) is under a limit, or with `LessOrEqual` at it."""
    shape = shape_of(scored)
    never = for_tokens(prefix, int(shape[1]), np.inf, -np.inf)
    patches = edit.node("Max", [scored, never], f"{name}_score", dtype=np.float32, shape=shape)
    return edit.node(op, [patches, limit], name, dtype=bool, shape=shape)


def _score(edit: Editor, norm: gs.Tensor, kind: str, prefix: int) -> gs.Tensor:
    """Robust or plain z-score of each norm, by the statistics of the patches: (B, N)."""
    shape = shape_of(norm)
    one = (shape[0], 1)
    if kind == "mad":
        centre, mad = median_and_mad(edit, norm, prefix)
        off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
        spread = edit.node("Mul", [mad, MAD_TO_SIGMA], "spread", dtype=np.float32, shape=one)
    else:
        centre = _mean(edit, norm, prefix, "mean_norm")
        off = edit.node("Sub", [norm, centre], "deviation", dtype=np.float32, shape=shape)
        squares = edit.node("Mul", [off, off], "squared_deviation", dtype=np.float32, shape=shape)
        variance = _mean(edit, squares, prefix, "variance")
        spread = edit.node("Sqrt", [variance], "spread", dtype=np.float32, shape=one)
    divisor = edit.node("Add", [spread, EPSILON], "divisor", dtype=np.float32, shape=one)
    return edit.node("Div", [off, divisor], "score", dtype=np.float32, shape=shape)


def _mean(edit: Editor, values: gs.Tensor, prefix: int, name: str) -> gs.Tensor:
    """Mean over the patches of (B, N): (B, 1)."""
    batch, N = shape_of(values)
    is_patch = for_tokens(prefix, int(N), 0, 1)
    kept = edit.node("Mul", [values, is_patch], f"{name}_of", dtype=np.float32, shape=(batch, N))
    total = edit.node("ReduceSum", [kept, _AXIS], f"{name}_sum", dtype=np.float32, shape=(batch, 1), keepdims=1)
    return edit.node("Div", [total, np.float32(int(N) - prefix)], name, dtype=np.float32, shape=(batch, 1))
