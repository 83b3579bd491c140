"""ONNX nodes that attenuate the logits of one attention site at its artifacts. Source: exporter/ITAE.md 2.

Written so that the attention stays one kernel in half precision: nothing reads the logits that it computes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.methods.itae.graph.median import for_tokens
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.attention import AttentionSite, logits_of
from exporter.surgery.edit import Editor, cut, shape_of
from runtime.contract.errors import SurgeryError

FAR_BELOW = np.float32(-50)
"""Stands for -infinity, added to what is at most a row's largest logit: e^-50 is 2e-22, nothing in float32."""
_AXIS = np.array([1], np.int64)
_AXES_1_2 = np.array([1, 2], np.int64)


def attenuate(edit: Editor, site: AttentionSite, artifact: gs.Tensor, itae: ItaeConfig, facts: GraphFacts) -> None:
    """Attenuate the artifacts (B or 1, N) bool of one site, in every row of its logits (B, H, rows, N).

    Raises:
        SurgeryError: the logits are scaled after their MatMul, and `min` would miss it.
    """
    how, prefix = itae.attenuation, facts.prefix
    if itae.limit.kind == "positions" and itae.may_flag_all(facts.patches):
        return
    if itae.may_flag_all(facts.patches):
        artifact = _unless_all(edit, artifact, prefix)
    if how.kind == "mean":
        site.key_reshape.inputs[0] = _keys_of_mean_logit(edit, site.key, artifact, prefix)
        return
    logits = logits_of(site)
    if how.kind == "mask":
        site.key_reshape.inputs[0] = _cls_keys(edit, site.key, artifact)
    batch, N = shape_of(artifact)
    columns = (batch, 1, 1, N)
    if how.kind == "min":
        flags = edit.node("Unsqueeze", [artifact, _AXES_1_2], "columns", dtype=bool, shape=columns)
        smallest = edit.cast(_row_minimum(edit, site, prefix), logits.dtype, "row_minimum_as_logits")
        op, inputs = "Where", [flags, smallest, logits]
    else:
        addend = FAR_BELOW if how.kind == "mask" else np.float32(math.log(how.number))
        row = edit.node("Where", [artifact, addend, np.float32(0)], "bias_row", dtype=np.float32, shape=(batch, N))
        bias = edit.node("Unsqueeze", [row, _AXES_1_2], "bias", dtype=np.float32, shape=columns)
        op, inputs = "Add", [logits, edit.cast(bias, logits.dtype, "bias_as_logits")]
    site.softmax.inputs[0] = edit.node(op, inputs, "attenuated", dtype=logits.dtype, shape=shape_of(logits))


def _cls_keys(edit: Editor, key: gs.Tensor, artifact: gs.Tensor) -> gs.Tensor:
    """The keys (B, N, C) with each artifact's replaced by the CLS token's, so that `FAR_BELOW` is far whatever it was.

    -infinity itself would be right, but not fast: it makes ONNX Runtime's softmax six times slower on a CPU, which
    turns it into a denormal number, and TensorRT adds six kernels to skip blocks that are masked as a whole.
    """
    cls = cut(edit, key, "cls_key", axis=1, start=0, stop=1)
    return _replaced(edit, key, artifact, cls)


def _replaced(edit: Editor, key: gs.Tensor, artifact: gs.Tensor, by: gs.Tensor) -> gs.Tensor:
    """The keys (B, N, C) with each artifact's replaced by another (B, 1, C)."""
    shape = (*shape_of(artifact), 1)
    rows = edit.node("Unsqueeze", [artifact, np.array([2], np.int64)], "rows", dtype=bool, shape=shape)
    return edit.node("Where", [rows, by, key], "attenuated_key", dtype=key.dtype, shape=shape_of(key))


def _unless_all(edit: Editor, artifact: gs.Tensor, prefix: int) -> gs.Tensor:
    """The flags (B, N), but none in an image that has no normal patch."""
    batch, N = shape_of(artifact)
    ones = edit.cast(artifact, np.float32, "artifact_float32")
    count = edit.node("ReduceSum", [ones, _AXIS], "count", dtype=np.float32, shape=(batch, 1), keepdims=1)
    some_normal = edit.node("Less", [count, np.float32(int(N) - prefix)], "some_normal", dtype=bool, shape=(batch, 1))
    return edit.node("And", [artifact, some_normal], "attenuate", dtype=bool, shape=(batch, N))


def _row_minimum(edit: Editor, site: AttentionSite, prefix: int) -> gs.Tensor:
    """Smallest logit of each row over the patches, artifacts included: (B, H, rows, 1).

    From a product of its own, of the queries with the patches' keys alone: one that shared the attention's logits would
    keep TensorRT from computing these inside the attention kernel.
    """
    if site.late is not None:
        raise SurgeryError(f"{site.scope}: logits are scaled after their MatMul: scale the queries first")
    keys = site.key_reshape.outputs[0]
    batch, N, H, d = shape_of(keys)
    P = int(N) - prefix
    rows = shape_of(site.qk.outputs[0])[2]
    patches = cut(edit, keys, "patch_keys", axis=1, start=prefix, stop=int(N))
    shape = (batch, H, d, P)
    across = edit.node("Transpose", [patches], "patch_keys_t", dtype=keys.dtype, shape=shape, perm=[0, 2, 3, 1])
    inputs = [site.qk.inputs[0], across]
    logits = edit.node("MatMul", inputs, "patch_logits", dtype=keys.dtype, shape=(batch, H, rows, P))
    last = np.array([3], np.int64)
    shape = (batch, H, rows, 1)
    return edit.node("ReduceMin", [logits, last], "row_minimum", dtype=keys.dtype, shape=shape, keepdims=1)


def _keys_of_mean_logit(edit: Editor, key: gs.Tensor, artifact: gs.Tensor, prefix: int) -> gs.Tensor:
    """The keys (B, N, C) with each artifact's replaced by the mean key of the patches that are none.

    A logit is linear in its key: so the mean of a row's logits over some patches is its logit at their mean key, in
    every head and every row, and no logit need be seen. The mean is taken in float32.
    """
    batch, N, C = shape_of(key)
    flagged, _ = tokens = shape_of(artifact)
    none, is_patch = np.float32(0), for_tokens(prefix, int(N), 0, 1)
    normal = edit.node("Where", [artifact, none, is_patch], "normal", dtype=np.float32, shape=tokens)
    count = edit.node("ReduceSum", [normal, _AXIS], "normal_count", dtype=np.float32, shape=(flagged, 1), keepdims=1)
    share = edit.node("Div", [normal, count], "share", dtype=np.float32, shape=tokens)
    shares = edit.node("Unsqueeze", [share, np.array([2], np.int64)], "shares", dtype=np.float32, shape=(*tokens, 1))
    exact = edit.cast(key, np.float32, "key_to_average")
    parts = edit.node("Mul", [exact, shares], "key_shares", dtype=np.float32, shape=(batch, N, C))
    mean = edit.node("ReduceSum", [parts, _AXIS], "mean_key", dtype=np.float32, shape=(batch, 1, C), keepdims=1)
    instead = edit.cast(mean, key.dtype, "mean_key_as_key")
    return _replaced(edit, key, artifact, instead)
