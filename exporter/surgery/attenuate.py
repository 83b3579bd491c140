"""ONNX nodes that attenuate the logits of one attention site at its artifacts. Source: itae.md 2."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from exporter.itae import Choice
from exporter.surgery.attention import AttentionSite, logits_of
from exporter.surgery.detect import cut
from exporter.surgery.edit import Editor, shape_of


def attenuate(edit: Editor, site: AttentionSite, artifact: gs.Tensor, how: Choice, prefix: int) -> None:
    """Put the attenuation between the logits (B, H, N, N) and their softmax; artifact: (B, P) bool."""
    logits = logits_of(site)
    somewhere = _unless_all(edit, artifact)
    if how.kind in ("mask", "scale"):
        addend = np.float32(-np.inf if how.kind == "mask" else math.log(how.number))
        bias = _bias(edit, somewhere, addend, prefix)
        bias = edit.cast(bias, logits.dtype, "bias_as_logits")
        weakened = edit.node("Add", [logits, bias], "attenuated", dtype=logits.dtype, shape=shape_of(logits))
    else:
        flags = _token_flags(edit, somewhere, prefix)
        instead = _row_minimum(edit, logits, prefix) if how.kind == "min" else _row_mean(
            edit, logits, somewhere, prefix
        )  # fmt: skip
        weakened = edit.node(
            "Where", [flags, instead, logits], "attenuated", dtype=logits.dtype, shape=shape_of(logits)
        )
    site.softmax.inputs[0] = weakened


def _unless_all(edit: Editor, artifact: gs.Tensor) -> gs.Tensor:
    """The flags (B, P), but none in an image that has no normal patch."""
    batch, P = shape_of(artifact)
    ones = edit.cast(artifact, np.float32, "artifact_float32")
    count = edit.node(
        "ReduceSum", [ones, np.array([1], np.int64)], "count", dtype=np.float32, shape=(batch, 1), keepdims=1
    )
    some_normal = edit.node("Less", [count, np.float32(P)], "some_normal", dtype=bool, shape=(batch, 1))
    return edit.node("And", [artifact, some_normal], "attenuate", dtype=bool, shape=(batch, P))


def _bias(edit: Editor, flags: gs.Tensor, addend: np.float32, prefix: int) -> gs.Tensor:
    """Flags (B, P) -> what to add to each column: (B, 1, 1, N) float32, 0 for CLS and registers."""
    patches = edit.node("Where", [flags, addend, np.float32(0)], "patch_bias", dtype=np.float32, shape=shape_of(flags))
    return _for_tokens(edit, patches, prefix, "bias")


def _token_flags(edit: Editor, flags: gs.Tensor, prefix: int) -> gs.Tensor:
    """Flags (B, P) -> (B, 1, 1, N) bool, false for CLS and registers."""
    # Through float32: not every runtime pads bool.
    numbers = edit.cast(flags, np.float32, "attenuate_float32")
    return edit.cast(_for_tokens(edit, numbers, prefix, "columns_float32"), bool, "columns")


def _for_tokens(edit: Editor, patches: gs.Tensor, prefix: int, name: str) -> gs.Tensor:
    """(B, P) -> (B, 1, 1, N), zeros put in front for CLS and registers."""
    batch, P = shape_of(patches)
    N = prefix + int(P)
    pads = np.array([0, prefix, 0, 0], np.int64)
    row = edit.node("Pad", [patches, pads, np.float32(0)], f"{name}_row", dtype=np.float32, shape=(batch, N))
    axes = np.array([1, 2], np.int64)
    return edit.node("Unsqueeze", [row, axes], name, dtype=np.float32, shape=(batch, 1, 1, N))


def _row_minimum(edit: Editor, logits: gs.Tensor, prefix: int) -> gs.Tensor:
    """Smallest logit of each row over the patches, artifacts included: (B, H, N, 1)."""
    batch, H, N, columns = shape_of(logits)
    patches = cut(edit, logits, "patch_logits", axis=3, start=prefix, stop=int(columns))
    return edit.node(
        "ReduceMin", [patches, np.array([3], np.int64)], "row_minimum", dtype=logits.dtype,
        shape=(batch, H, N, 1), keepdims=1,
    )  # fmt: skip


def _row_mean(edit: Editor, logits: gs.Tensor, flags: gs.Tensor, prefix: int) -> gs.Tensor:
    """Mean logit of each row over the patches that are not artifacts: (B, H, N, 1), summed in float32."""
    batch, H, N, columns = shape_of(logits)
    P = int(columns) - prefix
    weights = edit.node("Where", [flags, np.float32(0), np.float32(1)], "normal", dtype=np.float32, shape=(batch, P))
    across = edit.node(
        "Unsqueeze", [weights, np.array([1, 2], np.int64)], "normal_columns", dtype=np.float32,
        shape=(batch, 1, 1, P),
    )  # fmt: skip
    patches = cut(edit, logits, "patch_logits", axis=3, start=prefix, stop=int(columns))
    exact = edit.cast(patches, np.float32, "patch_logits_float32")
    kept = edit.node("Mul", [exact, across], "normal_logits", dtype=np.float32, shape=(batch, H, N, P))
    last = np.array([3], np.int64)
    total = edit.node("ReduceSum", [kept, last], "row_sum", dtype=np.float32, shape=(batch, H, N, 1), keepdims=1)
    count = edit.node("ReduceSum", [across, last], "normal_count", dtype=np.float32, shape=(batch, 1, 1, 1), keepdims=1)
    mean = edit.node("Div", [total, count], "row_mean_float32", dtype=np.float32, shape=(batch, H, N, 1))
    return edit.cast(mean, logits.dtype, "row_mean")
