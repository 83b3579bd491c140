"""ONNX nodes that attenuate the logits of one attention site at its artifacts. Source: itae.md 2."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from exporter.itae import Choice
from exporter.surgery.attention import AttentionSite, logits_of
from exporter.surgery.detect import cut
from exporter.surgery.edit import Editor, shape_of

_AXIS_1 = np.array([1], np.int64)
_AXES_1_2 = np.array([1, 2], np.int64)


def attenuate(edit: Editor, site: AttentionSite, artifact: gs.Tensor, how: Choice, prefix: int) -> None:
    """Attenuate the artifacts (B, P) bool of one site.

    `mask` and `scale` add one row to all logits, and `mean` changes the keys: these stay one fused attention kernel.
    `min` needs the logits themselves.
    """
    somewhere = _unless_all(edit, artifact)
    if how.kind == "mean":
        site.key_reshape.inputs[0] = _keys_of_mean_logit(edit, site.key, somewhere, prefix)
        return
    logits = logits_of(site)
    if how.kind == "min":
        columns = edit.node("Unsqueeze", [_token_flags(edit, somewhere, prefix), _AXES_1_2], "columns", dtype=bool,
                            shape=(shape_of(artifact)[0], 1, 1, site.tokens))  # fmt: skip
        inputs = [columns, _row_minimum(edit, logits, prefix), logits]
        op = "Where"
    else:
        addend = np.float32(-np.inf if how.kind == "mask" else math.log(how.number))
        bias = edit.cast(_bias(edit, somewhere, addend, prefix), logits.dtype, "bias_as_logits")
        inputs, op = [logits, bias], "Add"
    site.softmax.inputs[0] = edit.node(op, inputs, "attenuated", dtype=logits.dtype, shape=shape_of(logits))


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
    batch, P = shape_of(flags)
    patches = edit.node("Where", [flags, addend, np.float32(0)], "patch_bias", dtype=np.float32, shape=(batch, P))
    row = _for_tokens(edit, patches, prefix, "bias_row")
    return edit.node("Unsqueeze", [row, _AXES_1_2], "bias", dtype=np.float32, shape=(batch, 1, 1, prefix + int(P)))


def _token_flags(edit: Editor, flags: gs.Tensor, prefix: int) -> gs.Tensor:
    """Flags (B, P) -> (B, N) bool, false for CLS and registers."""
    # Through float32: not every runtime pads bool.
    numbers = edit.cast(flags, np.float32, "attenuate_float32")
    return edit.cast(_for_tokens(edit, numbers, prefix, "token_flags_float32"), bool, "token_flags")


def _for_tokens(edit: Editor, patches: gs.Tensor, prefix: int, name: str) -> gs.Tensor:
    """(B, P) float32 -> (B, N), zeros put in front for CLS and registers."""
    batch, P = shape_of(patches)
    pads = np.array([0, prefix, 0, 0], np.int64)
    shape = (batch, prefix + int(P))
    return edit.node("Pad", [patches, pads, np.float32(0)], name, dtype=np.float32, shape=shape)


def _row_minimum(edit: Editor, logits: gs.Tensor, prefix: int) -> gs.Tensor:
    """Smallest logit of each row over the patches, artifacts included: (B, H, N, 1)."""
    batch, H, N, columns = shape_of(logits)
    patches = cut(edit, logits, "patch_logits", axis=3, start=prefix, stop=int(columns))
    return edit.node(
        "ReduceMin", [patches, np.array([3], np.int64)], "row_minimum", dtype=logits.dtype,
        shape=(batch, H, N, 1), keepdims=1,
    )  # fmt: skip


def _keys_of_mean_logit(edit: Editor, key: gs.Tensor, flags: gs.Tensor, prefix: int) -> gs.Tensor:
    """The keys (B, N, C) with each artifact's replaced by the mean key of the patches that are none.

    A logit is linear in its key: so the mean of a row's logits over some patches is its logit at their mean key, in
    every head and every row, and no logit need be seen. The mean is summed in float32.
    """
    batch, N, C = shape_of(key)
    P = int(N) - prefix
    weights = edit.node("Where", [flags, np.float32(0), np.float32(1)], "normal", dtype=np.float32, shape=(batch, P))
    padded = _for_tokens(edit, weights, prefix, "normal_row")
    row = edit.node("Unsqueeze", [padded, _AXIS_1], "normal_tokens", dtype=np.float32, shape=(batch, 1, N))
    total = edit.node(
        "MatMul", [row, edit.cast(key, np.float32, "key_to_sum")], "key_sum", dtype=np.float32, shape=(batch, 1, C)
    )
    count = edit.node(
        "ReduceSum", [row, np.array([2], np.int64)], "normal_count", dtype=np.float32, shape=(batch, 1, 1), keepdims=1
    )
    mean = edit.node("Div", [total, count], "mean_key_float32", dtype=np.float32, shape=(batch, 1, C))
    mean = edit.cast(mean, key.dtype, "mean_key")
    artifacts = _token_flags(edit, flags, prefix)
    rows = edit.node(
        "Unsqueeze", [artifacts, np.array([2], np.int64)], "artifact_rows", dtype=bool, shape=(batch, N, 1)
    )
    return edit.node("Where", [rows, mean, key], "attenuated_key", dtype=key.dtype, shape=(batch, N, C))
