"""Which images stand for a cluster: most central, borderline, outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from runtime.clustering.clusters import Clustering
from runtime.clustering.metrics import contingency
from runtime.clustering.points import Float32, Int32
from runtime.contract.keys import Key
from runtime.contract.labels import NOISE
from runtime.report.content import Cluster, Confusion, Shown

Integers = npt.NDArray[np.integer]

MOST_PER_CLUSTER, LEAST_PER_CLUSTER, MOST_IN_ALL = 24, 3, 2_400
"""Images shown of clusters; of 800 clusters or more, three each."""
MAX_SHEETS = 1_000
"""Clusters whose images are shown; the sizes of all are."""


def describe_clusters(
    clustering: Clustering,
    other: tuple[Int32, Float32],
    key_of: Callable[[int], Key],
    *,
    classes: Sequence[str] | None = None,
) -> tuple[Cluster, ...]:
    """The clusters of n images, in order of their numbers, noise last.

    Args:
        clustering: the clusters.
        other: what `nearest_other` gives of them.
        key_of: gives the key of a row, under its root as it is now.
        classes: n classes, where they are known.
    """
    other_cluster, other_distances = other
    margins = other_distances - clustering.distances
    shown_of = min(len(clustering.sizes) + bool(clustering.noise), MAX_SHEETS)
    per = min(MOST_PER_CLUSTER, max(LEAST_PER_CLUSTER, MOST_IN_ALL // max(shown_of, 1)))

    def show(row: int, nearest_other: int | None = None) -> Shown:
        is_noise = clustering.labels[row] == NOISE
        return Shown(
            key_of(row),
            None if is_noise else float(clustering.distances[row]),
            None if classes is None else classes[row],
            nearest_other,
        )

    clusters = []
    for cluster, rows in enumerate(clustering.members()):
        central, borderline, outliers = _choose(rows, margins, per if cluster < MAX_SHEETS else 0)
        clusters.append(
            Cluster(
                cluster,
                len(rows),
                [show(row) for row in central],
                [show(row, int(other_cluster[row])) for row in borderline],
                [show(row) for row in outliers],
                *_majority(rows, classes),
            )
        )
    if noise := clustering.noise:
        rows = np.flatnonzero(clustering.labels == NOISE)
        sample = rows[np.linspace(0, noise - 1, min(noise, per)).astype(np.intp)]
        clusters.append(Cluster(NOISE, noise, [show(row) for row in sample.tolist()]))
    return tuple(clusters)


def count_confusion(labels: Integers, classes: Sequence[str]) -> Confusion:
    """Classes against clusters, of n labels (n,) and n classes, with the matching that ACC counts."""
    from scipy.optimize import linear_sum_assignment

    names, truth = np.unique(np.asarray(classes, dtype=object), return_inverse=True)
    found, columns = np.unique(labels, return_inverse=True)
    counts = contingency(truth, columns, len(names), len(found))
    class_of: list[str | None] = [None] * len(found)
    real = np.flatnonzero(found != NOISE)
    for row, column in zip(*linear_sum_assignment(counts[:, real], maximize=True), strict=True):
        class_of[real[column]] = str(names[row])
    return Confusion([str(name) for name in names], found.tolist(), counts, class_of)


def _choose(rows: npt.NDArray[np.intp], margins: Float32, per: int) -> tuple[list[int], list[int], list[int]]:
    """Central, borderline and outliers of rows sorted by distance, no row twice; all as central where so few."""
    if len(rows) <= per or not per:
        return rows[:per].tolist(), [], []
    few = max(1, per // 4)
    central, rest, outliers = np.split(rows, [per - 2 * few, len(rows) - few])
    borderline = rest[np.argsort(margins[rest], kind="stable")[:few]] if np.isfinite(margins[rest]).all() else rest[:0]
    return central.tolist(), borderline.tolist(), outliers[::-1].tolist()


def _majority(rows: npt.NDArray[np.intp], classes: Sequence[str] | None) -> tuple[str | None, int]:
    """The most frequent class, of equals the first by name, and how often it is there."""
    if classes is None or not len(rows):
        return None, 0
    counted = Counter(classes[row] for row in rows.tolist())
    return min(counted.items(), key=lambda item: (-item[1], item[0]))
