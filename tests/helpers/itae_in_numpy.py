"""A slow implementation of exporter/ITAE.md in numpy, patch by patch and row by row, without code of the exporter."""

import math

import numpy as np


def is_artifact(norms: np.ndarray, threshold: str, side: str) -> np.ndarray:
    """(P,) norms -> (P,) bool."""
    kind, number = threshold.split(":")
    if kind == "positions":
        return np.isin(np.arange(len(norms)), [int(patch) for patch in number.split(",")])
    x = float(number)
    median, mean, std = np.median(norms), norms.mean(), norms.std()
    mad = np.median(np.abs(norms - median))
    flags = []
    for n in norms:
        if kind == "mad":
            z = (n - median) / (1.4826 * mad + 1e-6)
            high, low = z > x, z < -x
        elif kind == "zscore":
            z = (n - mean) / (std + 1e-6)
            high, low = z > x, z < -x
        elif kind == "ratio":
            high, low = n > x * median, n < median / x
        else:
            high, low = n > x, n <= x
        flags.append({"high": high, "low": low, "both": high or low}[side])
    return np.array(flags)


def attention(q, k, v, artifact, prefix, attenuate) -> np.ndarray:
    """q, k, v (H, N, d), artifact (P,) -> (H, N, d)."""
    H, N, d = q.shape
    out = np.zeros_like(v)
    acts = artifact.any() and not artifact.all() and attenuate != "none"
    kind, _, alpha = attenuate.partition(":")
    for h in range(H):
        for i in range(N):
            row = np.array([q[h, i] @ k[h, j] / math.sqrt(d) for j in range(N)])
            patches = row[prefix:].copy()
            for j in np.flatnonzero(artifact) if acts else []:
                if kind == "min":
                    row[prefix + j] = patches.min()
                elif kind == "mask":
                    row[prefix + j] = -np.inf
                elif kind == "scale":
                    row[prefix + j] = patches[j] + math.log(float(alpha))
                else:
                    row[prefix + j] = patches[~artifact].mean()
            weights = np.exp(row - row.max())
            out[h, i] = (weights / weights.sum()) @ v[h]
    return out
