"""Lloyd's iterations, over whatever holds the points: numpy's arrays or torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.clustering.points import Float64, Int32, Points
from runtime.clustering.threads import blocks

TOLERANCE = 1e-4
"""It ends where centroids move, in all and squared, by less than this share of the points' mean variance in a
coordinate: scikit-learn's default."""

_ROWS = 64
"""Centroids whose movement is measured at a time."""
_EQUAL = 1e-10
"""A point whose squared distance to its centroid is below this share of `spread` doesn't fill an empty cluster."""


@dataclass(frozen=True)
class Fit:
    """Where one start came to."""

    labels: Int32
    """(n,): of the nearest centroid, but for points that fill what would be empty in a run that was cut short."""
    centroids: Float64
    """(k, C)."""
    iterations: int
    """The number of times that the centroids were moved, or found to stay."""


def lloyd(
    points: Points,
    start: Float64,
    max_iter: int,
    spread: float,
    tell: Callable[[str], None] = lambda line: None,
    *,
    fill: bool = True,
) -> Fit:
    """Assign each point to its nearest centroid, move each centroid to the mean of its points, and so on.

    It ends when no label changes, when the centroids hardly move (`TOLERANCE`), or after `max_iter` moves. Sums are
    float64, and only points that changed their cluster are added and subtracted. A centroid without points takes the
    point that is farthest from its own, as in scikit-learn.

    Args:
        points: the n points.
        start: (k, C) centroids, k at most n.
        max_iter: 1 or more.
        spread: `points.spread()`, which several starts share.
        tell: called after each iteration with its number and that of the points that changed their cluster, in words.
        fill: whether a centroid without points takes one; otherwise it stays where it is.
    """
    k, width = start.shape
    centroids, sums = start, np.zeros_like(start)  # start is not changed
    labels = np.zeros(0, np.int32)
    for iteration in range(1, max_iter + 1):
        found, centroids = _assigned(points, centroids, spread, fill)
        changed = np.arange(len(points)) if iteration == 1 else np.flatnonzero(found != labels)
        tell(f"iteration {iteration}, {len(changed):,} of {len(points):,} embeddings changed their cluster")
        if not len(changed):
            return Fit(labels, centroids, iteration)
        points.add_rows(sums, found, changed, 1)
        if iteration > 1:
            points.add_rows(sums, labels, changed, -1)
        labels = found
        sizes = np.bincount(labels, minlength=k)[:, None]
        moved = np.divide(sums, sizes, out=centroids.copy(), where=sizes > 0)
        shift = sum(float(np.square(centroids[rows] - moved[rows]).sum()) for rows in blocks(k, _ROWS))
        centroids = moved
        if shift <= TOLERANCE * spread / width:
            break
    return Fit(*_assigned(points, centroids, spread, fill), iteration)


def _assigned(points: Points, centroids: Float64, spread: float, fill: bool) -> tuple[Int32, Float64]:
    """The nearest centroid of each point; if `fill`, one without points goes to the farthest point of another."""
    labels = points.nearest(centroids)
    sizes = np.bincount(labels, minlength=len(centroids))
    empty = np.flatnonzero(sizes == 0).tolist() if fill else []
    if not empty:
        return labels, centroids
    squared = points.distances_to(centroids, labels) ** 2
    for row in np.argsort(-squared, kind="stable").tolist():
        if not empty or squared[row] <= _EQUAL * spread:
            break
        if sizes[labels[row]] > 1:
            sizes[labels[row]] -= 1
            labels[row] = empty.pop(0)
            centroids = centroids.copy()
            centroids[labels[row]] = points.rows(np.array([row]))[0]
    return labels, centroids
