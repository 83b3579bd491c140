"""ITAE in numpy, in float64, for a graph's own queries, keys and values: the proof of a foreign graph.

Shares nothing with the ONNX form but the options. Source: exporter/ITAE.md 1 and 2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from exporter.methods.itae.options import ItaeConfig

Float64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def norms(vectors: Float64, prefix: int, behind: int) -> Float64:
    """The L2 norm of each patch over heads and channels: (B, H, N, d) to (B, P)."""
    lengths: Float64 = np.sqrt(np.square(vectors[:, :, prefix : vectors.shape[2] - behind]).sum(axis=(1, 3)))
    return lengths


def bounds(norm: Float64, itae: ItaeConfig) -> tuple[Float64, Float64]:
    """The norms above and below which a patch is an artifact, (B, 1) each; infinite where a side does not count."""
    number = itae.limit.number
    if itae.limit.kind == "absolute":
        high = low = np.full_like(norm[:, :1], number)
    elif itae.limit.kind == "ratio":
        middle = np.median(norm, axis=1, keepdims=True)
        high, low = middle * number, middle / number
    else:
        if itae.limit.kind == "mad":
            centre = np.median(norm, axis=1, keepdims=True)
            spread = 1.4826 * np.median(np.abs(norm - centre), axis=1, keepdims=True) + 1e-6
        else:
            centre, spread = norm.mean(axis=1, keepdims=True), norm.std(axis=1, keepdims=True) + 1e-6
        high, low = centre + number * spread, centre - number * spread
    never = np.full_like(high, np.inf)
    return high if itae.side in ("high", "both") else never, low if itae.side in ("low", "both") else -never


def detect(norm: Float64, itae: ItaeConfig) -> tuple[Flags, Float64]:
    """Which patches (B, P) are artifacts, and how far each norm is from a threshold, as a share of itself."""
    if itae.limit.kind == "positions":
        flags = np.zeros(norm.shape, np.bool_)
        flags[:, list(itae.limit.indices)] = True
        return flags, np.full(norm.shape, np.inf)
    high, low = bounds(norm, itae)
    below = norm <= low if itae.limit.kind == "absolute" else norm < low
    distance = np.minimum(np.abs(norm - high), np.abs(norm - low)) / np.maximum(norm, 1e-30)
    return (norm > high) | below, distance


def attenuate(logits: Float64, artifact: Flags, prefix: int, itae: ItaeConfig) -> Float64:
    """The logits (B, H, N, N) with the columns of the artifacts (B, P) attenuated, in images with a normal patch."""
    how = itae.attenuation
    changed = logits.copy()
    for image, flags in enumerate(artifact):
        if not flags.any() or flags.all() or how.kind == "none":
            continue
        patches = logits[image, :, :, prefix : prefix + len(flags)]
        if how.kind == "min":
            instead = patches.min(axis=-1, keepdims=True)
        elif how.kind == "mean":
            instead = patches[..., ~flags].mean(axis=-1, keepdims=True)
        elif how.kind == "mask":
            instead = np.full_like(patches[..., :1], -np.inf)
        else:
            instead = patches[..., flags] + math.log(how.number)
        changed[image][..., prefix + np.flatnonzero(flags)] = instead
    return changed


def attend(logits: Float64, value: Float64) -> Float64:
    """The softmax of logits (B, H, N, N) times values (B, H, N, d)."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed: Float64 = (weights / weights.sum(axis=-1, keepdims=True)) @ value
    return mixed
