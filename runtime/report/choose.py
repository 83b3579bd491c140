"""Which images stand for a cluster: most central, borderline, outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.report.content import NOISE, Cluster, Confusion, Key, Shown

Float32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]

MOST_PER_CLUSTER, LEAST_PER_CLUSTER, MOST_IN_ALL = 24, 3, 2_400
"""Images shown of clusters; of 800 clusters or more, three each."""
MAX_SHEETS = 1_000
"""Clusters whose images are shown; the sizes of all are."""
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class _Distances:
    """Of n points to the centres of k clusters."""

    own: Float32
    """(n,): to its own; infinite for noise."""
    other: Float32
    """(n,): to the nearest of another cluster; infinite where there is none."""
    other_cluster: npt.NDArray[np.intp]
    """(n,): which that is."""


def describe_clusters(
    points: Float32,
    labels: Integers,
    key_of: Callable[[int], Key],
    *,
    centroids: Float32 | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Cluster, ...]:
    """The clusters of n points (n, C), in order of their numbers, noise last.

    Args:
        points: as they were clustered: unit vectors, where it was by cosine.
        labels: (n,), 0 to k - 1 or `NOISE`.
        key_of: gives the key of a row, under its root as it is now.
        centroids: (k, C), the means of the clusters where None.
        classes: n classes, where they are known.
    """
    k = int(labels.max(initial=NOISE)) + 1
    centroids = _means(points, labels, k) if centroids is None else centroids
    k = len(centroids)
    distances = _measure(points, labels, centroids)
    order = np.lexsort((distances.own, labels))
    sizes = np.bincount(labels[labels != NOISE].astype(np.intp), minlength=k)
    noise = len(labels) - int(sizes.sum())
    members = np.split(order[noise:], np.cumsum(sizes)[:-1]) if k else []
    shown_of = min(k + bool(noise), MAX_SHEETS)
    per = min(MOST_PER_CLUSTER, max(LEAST_PER_CLUSTER, MOST_IN_ALL // max(shown_of, 1)))

    def show(row: int, other: bool = False) -> Shown:
        distance = float(distances.own[row])
        return Shown(
            key_of(row),
            distance if np.isfinite(distance) else None,
            None if classes is None else classes[row],
            int(distances.other_cluster[row]) if other else None,
        )

    clusters = []
    for cluster, rows in enumerate(members):
        central, borderline, outliers = _choose(rows, distances, per if cluster < MAX_SHEETS else 0)
        clusters.append(
            Cluster(
                cluster,
                len(rows),
                [show(row) for row in central],
                [show(row, other=True) for row in borderline],
                [show(row) for row in outliers],
                *_majority(rows, classes),
            )
        )
    if noise:
        rows = np.sort(order[:noise])
        sample = rows[np.linspace(0, noise - 1, min(noise, per)).astype(np.intp)]
        clusters.append(Cluster(NOISE, noise, [show(row) for row in sample.tolist()]))
    return tuple(clusters)


def count_confusion(labels: Integers, classes: Sequence[str]) -> Confusion:
    """Classes against clusters, of n labels (n,) and n classes, with the matching that ACC counts."""
    from scipy.optimize import linear_sum_assignment

    names, truth = np.unique(np.asarray(classes, dtype=object), return_inverse=True)
    found, columns = np.unique(labels, return_inverse=True)
    counts = np.bincount(truth * len(found) + columns, minlength=len(names) * len(found)).reshape(len(names), -1)
    class_of: list[str | None] = [None] * len(found)
    real = np.flatnonzero(found != NOISE)
    for row, column in zip(*linear_sum_assignment(counts[:, real], maximize=True), strict=True):
        class_of[real[column]] = str(names[row])
    return Confusion([str(name) for name in names], found.tolist(), counts, class_of)


def _choose(rows: npt.NDArray[np.intp], distances: _Distances, per: int) -> tuple[list[int], list[int], list[int]]:
    """Central, borderline and outliers of rows sorted by distance, no row twice; all as central where so few."""
    if len(rows) <= per or not per:
        return rows[:per].tolist(), [], []
    few = max(1, per // 4)
    central, rest, outliers = np.split(rows, [per - 2 * few, len(rows) - few])
    margin = distances.other[rest] - distances.own[rest]
    borderline = rest[np.argsort(margin, kind="stable")[:few]] if np.isfinite(margin).all() else rest[:0]
    return central.tolist(), borderline.tolist(), outliers[::-1].tolist()


def _majority(rows: npt.NDArray[np.intp], classes: Sequence[str] | None) -> tuple[str | None, int]:
    """The most frequent class, of equals the first by name, and how often it is there."""
    if classes is None or not len(rows):
        return None, 0
    counted = Counter(classes[row] for row in rows.tolist())
    return min(counted.items(), key=lambda item: (-item[1], item[0]))


def _means(points: Float32, labels: Integers, k: int) -> Float32:
    """The mean of each cluster, (k, C); zeros for an empty one."""
    means = np.zeros((k, points.shape[1]), np.float32)
    for cluster in range(k):
        if (members := np.flatnonzero(labels == cluster)).size:
            means[cluster] = points[members].mean(axis=0, dtype=np.float64)
    return means


def _measure(points: Float32, labels: Integers, centroids: Float32) -> _Distances:
    """Distances of n points, a chunk at a time, so that nothing of size (n, k) is kept."""
    n, k = len(points), len(centroids)
    own, other = np.full((2, n), np.inf, np.float32)
    other_cluster = np.zeros(n, np.intp)
    step = max(1, _CHUNK_BYTES // (4 * max(k, 1)))
    squares = np.einsum("ij,ij->i", centroids, centroids)
    for start in range(0, n if k else 0, step):
        chunk, mine = points[start : start + step], labels[start : start + step]
        apart = squares - 2 * (chunk @ centroids.T)
        apart += np.einsum("ij,ij->i", chunk, chunk)[:, None]
        apart = np.sqrt(np.maximum(apart, 0, out=apart), out=apart)
        rows = np.arange(len(chunk))
        inside = np.flatnonzero(mine != NOISE)
        own[start + inside] = apart[inside, mine[inside]]
        apart[inside, mine[inside]] = np.inf
        nearest = apart.argmin(axis=1)
        other[start : start + step] = apart[rows, nearest]
        other_cluster[start : start + step] = nearest
    return _Distances(own, other, other_cluster)
