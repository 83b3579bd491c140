"""A finished clustering, whatever found it: its clusters in order of size, and each point's distances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.clustering.points import Float32, Float64, Int32, add_rows, distances_to, nearest
from runtime.contract.labels import NOISE


@dataclass(frozen=True)
class Clustering:
    """n points in k clusters, the largest first; of equal ones the one whose first point comes first.

    One that `--assign` made has the clusters of an older one, in their order, and some may be empty.
    """

    labels: Int32
    """(n,): the cluster of each point, 0 to k - 1; `NOISE` where it is in none, which only HDBSCAN says."""
    distances: Float32
    """(n,): Euclidean distance of each point to its cluster's centroid; to the nearest one where it is in none, and NaN
    where there is no cluster at all."""
    centroids: Float32
    """(k, C): means of the clusters; shorter than 1 where the points are unit vectors."""
    sizes: npt.NDArray[np.int64]
    """(k,): points of each cluster, in falling order."""
    inertia: float
    """Sum of the squared distances, of the points that are in a cluster."""
    iterations: int
    """Lloyd iterations of the start that was kept, or passes of `minibatch`; 0 if nothing is iterated."""

    @property
    def noise(self) -> int:
        """Number of points in no cluster."""
        return len(self.labels) - int(self.sizes.sum())

    def members(self) -> list[npt.NDArray[np.intp]]:
        """The points of each cluster, nearest to its centroid first; of equals, the one that comes first."""
        if not len(self.sizes):
            return []
        order = np.lexsort((self.distances, self.labels))[self.noise :]  # noise is the lowest label
        return np.split(order, np.cumsum(self.sizes)[:-1])

    def noise_members(self) -> npt.NDArray[np.intp]:
        """The points in no cluster, farthest from any centroid first."""
        rows = np.flatnonzero(self.labels == NOISE)
        return rows[np.argsort(-self.distances[rows], kind="stable")]


def arranged(labels: Int32, distances: Float64, centroids: Float64, iterations: int) -> Clustering:
    """Put clusters in order of size; those without a point are dropped.

    Args:
        labels: (n,), 0 to k - 1 or `NOISE`.
        distances: (n,).
        centroids: (k, C).
        iterations: as in `Clustering`.
    """
    k = len(centroids)
    clustered = np.flatnonzero(labels != NOISE)
    found = labels[clustered]
    sizes = np.bincount(found, minlength=k)
    first = np.full(k, len(labels))
    np.minimum.at(first, found, clustered)
    order = np.lexsort((first, -sizes))[: np.count_nonzero(sizes)]  # order[new] = old
    rank = np.full(k + 1, NOISE, np.int32)  # the last is the noise's
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Clustering(
        labels=rank[labels],
        distances=distances.astype(np.float32),
        centroids=np.ascontiguousarray(centroids[order], np.float32),
        sizes=sizes[order],
        inertia=float((distances[clustered] ** 2).sum()),
        iterations=iterations,
    )


def from_labels(points: Float32, labels: Int32) -> Clustering:
    """The clustering that labels (n,) make of n points (n, C): centroids are the clusters' means."""
    k = int(labels.max()) + 1
    sums = np.zeros((k, points.shape[1]))
    add_rows(sums, points, labels, np.flatnonzero(labels != NOISE))
    sizes = np.bincount(labels[labels != NOISE], minlength=k)
    centroids = sums / sizes[:, None]
    own, noise = labels, labels == NOISE
    if k and noise.any():
        own = labels.copy()
        own[noise] = nearest(points[noise], centroids)
    distances = distances_to(points, centroids, own) if k else np.full(len(points), np.nan)
    return arranged(labels, distances, centroids, 0)


def nearest_other(parts: Iterable[Float32], clustering: Clustering) -> tuple[Int32, Float32]:
    """The nearest centroid of each point besides its own, and its distance, which shows the points on a border.

    It costs as much as one Lloyd iteration, and holds one part at a time.

    Args:
        parts: the n points, as they were clustered, in arrays (m, C).
        clustering: of the points.

    Returns:
        labels (n,) and Euclidean distances (n,); of noise, to the nearest centroid of all; infinite where there is no
        other.
    """
    centroids = clustering.centroids.astype(np.float64)
    labels, distances = np.zeros_like(clustering.labels), np.full(len(clustering.labels), np.inf, np.float32)
    start = 0
    for points in parts if len(centroids) else ():
        rows = slice(start, start + len(points))
        own = clustering.labels[rows]
        labels[rows] = nearest(points, centroids, own)
        distances[rows] = distances_to(points, centroids, labels[rows])
        distances[rows][labels[rows] == own] = np.inf  # it is the only one
        start += len(points)
    return labels, distances
