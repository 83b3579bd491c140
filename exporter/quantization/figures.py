"""How far int8 embeddings are from float32 ones, in figures that users can judge."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.clustering.kmeans import cluster
from runtime.contract.errors import UsageError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
NEIGHBOURS = 10
CENTROIDS = 10
PICTURES_PER_CENTROID = 4


@dataclass(frozen=True)
class Figures:
    """The figures of one comparison."""

    pictures: int
    worst_cosine: float
    median_cosine: float
    neighbours: float
    """Share of the float32 embedding's `NEIGHBOURS` nearest others that are the int8 embedding's too."""
    same_centroid: float
    """Share of the pictures whose int8 embedding has the same nearest k-means centroid of the float32 embeddings."""


def compare(exact: Float32, got: Float32) -> Figures:
    """Compare embeddings (n, C) of the same pictures."""
    a, b = _unit(exact), _unit(got)
    cosines = (a * b).sum(axis=1)
    n = len(a)
    k = min(NEIGHBOURS, n - 1)
    near, near_got = _nearest(a, k), _nearest(b, k)
    kept = [len(np.intersect1d(one, other)) for one, other in zip(near, near_got, strict=True)]
    found = _centroids(a.astype(np.float32), max(min(CENTROIDS, n // PICTURES_PER_CENTROID), 1))
    return Figures(
        pictures=n,
        worst_cosine=float(cosines.min()),
        median_cosine=float(np.median(cosines)),
        neighbours=float(np.mean(kept) / k),
        same_centroid=float((_closest(a, found) == _closest(b, found)).mean()),
    )


def cosines(exact: Float32, got: Float32) -> Float64:
    """(n,): of each picture's embeddings."""
    return np.asarray((_unit(exact) * _unit(got)).sum(axis=1))


def _unit(vectors: Float32) -> Float64:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300))


def _nearest(vectors: Float64, k: int) -> npt.NDArray[np.intp]:
    """(n, k): the other rows with the largest cosines."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argpartition(-likeness, k - 1, axis=1)[:, :k]


def _centroids(vectors: Float32, k: int) -> npt.NDArray[np.floating]:
    """K centroids, or fewer where the vectors are too nearly equal for k clusters."""
    for fewer in range(k, 1, -1):
        with contextlib.suppress(UsageError):
            return cluster(vectors, fewer, seed=0).centroids
    return np.asarray(vectors.mean(axis=0, keepdims=True))


def _closest(vectors: Float64, centroids: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """(n,): the centroid at the smallest distance."""
    wide = centroids.astype(np.float64)
    return np.asarray(np.argmin((wide**2).sum(axis=1) - 2 * vectors @ wide.T, axis=1))
