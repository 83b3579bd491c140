"""How far two models' embeddings of the same pictures agree, in the units of those who search and cluster them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NEIGHBOURS = 10
"""Nearest pictures that are compared, of each picture."""
TIE = 1e-7
"""Cosines this near are a tie: what a float32 embedding can hold of one."""
PICTURES_PER_CLUSTER = 10
MAX_CLUSTERS = 10
_CHUNK = 1 << 22
"""Similarities of pictures that exist at a time, for each model: 32 MiB."""


@dataclass(frozen=True)
class Agreement:
    """n embeddings of one model beside another's, the reference. A figure that can't be computed for NaN is NaN."""

    max_abs: float
    """Largest absolute difference of an element."""
    cosines: Float64
    """(n,): between a picture's two embeddings; NaN where one is zero or holds NaN or infinity."""
    neighbours: float | None
    """Mean share of a picture's nearest others that are so for the reference too; none for a single picture."""
    neighbours_k: int
    """How many nearest: 10, or n - 1 where there are fewer others; at n - 1 the share is 1 whatever the model does."""
    ari: float | None
    """Adjusted Rand index of the two k-means clusterings; none for too few pictures."""
    clusters: int
    """k of that; 0 where there are too few pictures."""


def agreement(got: Float32, expected: Float32, clusters: int | None = None, seed: int = 0) -> Agreement:
    """Compare n embeddings (n, C) with those (n, C) of the reference.

    Args:
        got: by the model in question.
        expected: by the reference.
        clusters: k of the clusterings, at most n; by default n / 10, at most 10, and none below 2.
        seed: of the pictures that the reference's clustering starts from.
    """
    n = len(got)
    k = min(NEIGHBOURS, n - 1)
    if clusters is None:
        clusters = min(MAX_CLUSTERS, n // PICTURES_PER_CLUSTER)
    clusters = clusters if clusters > 1 else 0
    with np.errstate(invalid="ignore"):  # infinity less infinity: NaN, which counts as off
        max_abs = float(np.abs(np.subtract(got, expected, dtype=np.float64)).max())
        a, b = _units(got), _units(expected)
        cosines = np.einsum("ij,ij->i", a, b)
    comparable = bool(np.isfinite(cosines).all())
    return Agreement(
        max_abs=max_abs,
        cosines=cosines,
        neighbours=None if k < 1 else share_of_neighbours(a, b, k) if comparable else np.nan,
        neighbours_k=k,
        ari=None if not clusters else _clusterings_ari(a, b, clusters, seed) if comparable else np.nan,
        clusters=clusters,
    )


def _units(vectors: Float32) -> Float64:
    """The rows (n, C), each divided by its L2 norm; NaN where that is 0 or no number."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows[~(np.isfinite(norms) & (norms > 0))[:, 0]] = np.nan
    units: Float64 = rows / norms
    return units


def share_of_neighbours(got: Float64, expected: Float64, k: int) -> float:
    """Mean share of each picture's k nearest others, by cosine in `got`, that are among its k nearest in `expected`.

    A tie is no difference: what `got` names counts where its cosine in `expected` is within `TIE` of the k-th largest
    there, so copies of a picture may stand for each other. Of ties in `got`, any k are taken.

    Args:
        got: unit vectors (n, C).
        expected: the reference's (n, C), of the same pictures.
        k: 1 to n - 1.
    """
    n = len(got)
    shared = 0
    step = max(1, _CHUNK // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        near = _cosines_with_others(got, rows)
        chosen = np.argpartition(near, n - k, axis=1)[:, n - k :]
        wanted = _cosines_with_others(expected, rows)
        kth = np.partition(wanted, n - k, axis=1)[:, n - k, None]
        shared += int((np.take_along_axis(wanted, chosen, axis=1) >= kth - TIE).sum())
    return shared / (n * k)


def _cosines_with_others(units: Float64, rows: npt.NDArray[np.intp]) -> Float64:
    """Cosines (len(rows), n) of some pictures with all; with itself -infinity, no picture is its own neighbour."""
    cosines: Float64 = units[rows] @ units.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    return cosines


def _clusterings_ari(got: Float64, expected: Float64, k: int, seed: int) -> float:
    """Adjusted Rand index of k-means on the reference and of k-means that starts from its clusters.

    The reference starts by k-means++; the other from the means of its own vectors over the clusters found. If both
    started from the same k pictures, they would differ by chance, not by their embeddings: a picture between two
    clusters is enough for Lloyd's iterations to end elsewhere.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score
    from threadpoolctl import threadpool_limits

    # One thread, for the same result each time: more add their sums in any order. Copies make empty clusters.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start, _ = kmeans_plusplus(expected, k, random_state=seed)
        clusters = KMeans(k, init=start, n_init=1).fit(expected).labels_
        means = np.zeros((k, got.shape[1]))
        np.add.at(means, clusters, got)
        means /= np.maximum(np.bincount(clusters, minlength=k), 1)[:, None]
        labels = KMeans(k, init=means, n_init=1).fit(got).labels_
    return float(adjusted_rand_score(clusters, labels))
