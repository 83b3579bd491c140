"""k-means on the unit sphere: scikit-learn's, made repeatable, and its clusters put in order of size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, UsageError

Float32 = npt.NDArray[np.float32]

STARTS = 10
"""k-means++ starts; the one of the lowest inertia is kept."""
MAX_ITERATIONS = 300
"""Lloyd iterations of a start at most: scikit-learn's own limit."""

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Clustering:
    """n points in k clusters, the largest first; of equal ones the one whose first point comes first."""

    labels: npt.NDArray[np.int32]
    """(n,): the cluster of each point, 0 to k - 1."""
    distances: Float32
    """(n,): Euclidean distance of each point to its cluster's centroid."""
    centroids: Float32
    """(k, C): means of the clusters; shorter than 1, as means of unit vectors are."""
    sizes: npt.NDArray[np.int64]
    """(k,): points of each cluster, none 0, in falling order."""
    inertia: float
    """Sum of the squared distances."""
    iterations: int
    """Lloyd iterations of the start that was kept; `MAX_ITERATIONS` means that it was cut short."""

    def members(self) -> list[npt.NDArray[np.intp]]:
        """The points of each cluster, nearest to its centroid first; of equals, the one that comes first."""
        order = np.lexsort((self.distances, self.labels))
        return np.split(order, np.cumsum(self.sizes)[:-1])


def normalize_rows(vectors: Float32, name: Callable[[int], str] = str) -> Float32:
    """Divide each of n embeddings (n, C) by its L2 norm, in float64; gives a new array, (n, C) float32.

    Args:
        vectors: the embeddings.
        name: what to call a row in an error.

    Raises:
        InputError: a row holds NaN or infinity, or only zeros, which have no direction; the first is named.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if (bad := np.flatnonzero(~np.isfinite(norms))).size:
        raise InputError(f"the embedding of {name(int(bad[0]))} (row {bad[0]}) holds NaN or infinity; make it again")
    if (bad := np.flatnonzero(norms == 0)).size:
        raise InputError(
            f"the embedding of {name(int(bad[0]))} (row {bad[0]}) is all zeros and can't be normalised; make it again"
        )
    units = np.empty_like(vectors, order="C")
    np.divide(vectors, norms[:, None], out=units, casting="same_kind")  # float64 inside, a buffer at a time
    return units


def check_k(points: Float32, k: int) -> None:
    """Check that n points (n, C) can form k clusters.

    Raises:
        UsageError: k is below 1, or above the number of points or of distinct points.
    """
    if k < 1:
        raise UsageError(f"--k {k}: must be 1 or more")
    if k > len(points):
        raise UsageError(f"--k {k}: there are only {len(points)} embeddings; choose no more")
    distinct: set[bytes] = set()
    for row in points:  # few rows as a rule: it stops at k
        distinct.add((row + 0).tobytes())  # + 0: -0 becomes 0
        if len(distinct) == k:
            return
    raise UsageError(f"--k {k}: {len(points)} embeddings, but only {len(distinct)} distinct ones; choose no more")


def cluster(points: Float32, k: int, seed: int = 0) -> Clustering:
    """Cluster n points (n, C) by k-means: the same result for the same points, k and seed on one machine.

    Raises:
        UsageError: as `check_k`, or points lie so close together that fewer than k clusters come out.
    """
    check_k(points, k)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    # One thread: scikit-learn's add up their partial sums in the order in which they happen to end, and a
    # last bit there moved points to other clusters in runs with the same seed.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the check of the sizes below says it better
        fitted = KMeans(k, n_init=STARTS, max_iter=MAX_ITERATIONS, random_state=seed).fit(points)
    found = fitted.labels_
    sizes = np.bincount(found, minlength=k)
    if (filled := np.count_nonzero(sizes)) < k:
        raise UsageError(
            f"--k {k}: only {filled} clusters came out, the embeddings are too nearly equal; choose no more"
        )
    first = np.full(k, len(found))
    np.minimum.at(first, found, np.arange(len(found)))
    order = np.lexsort((first, -sizes))  # order[new] = old
    rank = np.empty(k, np.int32)
    rank[order] = np.arange(k, dtype=np.int32)
    labels = rank[found]
    centroids = np.ascontiguousarray(fitted.cluster_centers_[order], np.float32)
    distances = _distances(points, centroids, labels)
    return Clustering(
        labels,
        distances.astype(np.float32),
        centroids,
        sizes[order],
        float((distances**2).sum()),
        int(fitted.n_iter_),
    )


def _distances(points: Float32, centroids: Float32, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Distance of each point to its own centroid, (n,) float64."""
    distances = np.empty(len(points))
    for start in range(0, len(points), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        apart = np.subtract(points[rows], centroids[labels[rows]], dtype=np.float64)
        distances[rows] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return distances
