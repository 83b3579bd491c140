"""Lloyd's iterations, over whatever holds the points: numpy's arrays or torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from runtime.clustering.clusters import (
    Chosen,
    Float32,
    Float64,
    Int32,
    Vectors,
    add_rows,
    blocks,
    distances_to,
    in_threads,
    nearest,
)

TOLERANCE = 1e-4
"""It ends where centroids move, in all and squared, by less than this share of the points' mean variance in a
coordinate: scikit-learn's default."""

_ROWS, _PART = 64, 8192
_EQUAL = 1e-10
"""A point whose squared distance to its centroid is below this share of `spread` doesn't fill an empty cluster."""


class Points(Protocol):
    """n points of width C, wherever they lie."""

    def __len__(self) -> int: ...

    def nearest(self, centroids: Float64) -> Int32:
        """As `clustering.nearest`."""

    def distances_to(self, centroids: Float64, labels: Int32) -> Float64:
        """As `clustering.distances_to`."""

    def add_rows(self, sums: Float64, labels: Int32, rows: npt.NDArray[np.intp], sign: int) -> None:
        """As `clustering.add_rows`."""

    def rows(self, rows: npt.NDArray[np.intp]) -> Float64:
        """A few of the points, (len(rows), C)."""

    def choose(self, rows: npt.NDArray[np.intp]) -> Points:
        """Some of the points, by themselves."""

    def spread(self) -> float:
        """Mean squared distance of the points to their mean."""


@runtime_checkable
class Approaching(Protocol):
    """Points that another library can iterate on, faster and less exactly."""

    def approach(self, start: Float64, max_iter: int) -> tuple[Float64, int]:
        """Centroids (k, C) after its iterations from `start`, and how many it took, at most `max_iter`."""


class NumpyPoints:
    """Points in this machine's memory; they are neither copied nor changed."""

    def __init__(self, points: Float32, chosen: npt.NDArray[np.intp] | None = None) -> None:
        """Take all the points (n, C), or the `chosen` rows."""
        self._all = points
        self._points: Vectors = points if chosen is None else Chosen(points, chosen)

    def __len__(self) -> int:
        return len(self._points)

    def nearest(self, centroids: Float64) -> Int32:  # noqa: D102
        return nearest(self._points, centroids)

    def distances_to(self, centroids: Float64, labels: Int32) -> Float64:  # noqa: D102
        return distances_to(self._points, centroids, labels)

    def add_rows(self, sums: Float64, labels: Int32, rows: npt.NDArray[np.intp], sign: int) -> None:  # noqa: D102
        add_rows(sums, self._points, labels, rows, sign)

    def rows(self, rows: npt.NDArray[np.intp]) -> Float64:  # noqa: D102
        return self._points[rows].astype(np.float64)

    def choose(self, rows: npt.NDArray[np.intp]) -> NumpyPoints:  # noqa: D102
        return NumpyPoints(self._all, rows)

    def spread(self) -> float:  # noqa: D102
        mean = self._sum(lambda block: block.sum(axis=0, dtype=np.float64)) / len(self)
        return float(self._sum(lambda block: ((block - mean) ** 2).sum())) / len(self)

    def _sum(self, of: Callable[[Float32], Any]) -> Any:  # noqa: ANN401  # a number or an array, as `of` gives
        """The sum of what each block of the points gives, added in their order; little is held meanwhile."""
        parts = blocks(len(self), _PART)
        found: list[Any] = [None] * len(parts)

        def fill(number: int) -> None:
            end = parts[number].stop
            begins = range(parts[number].start, end, _ROWS)
            found[number] = sum(of(self._points[begin : min(begin + _ROWS, end)]) for begin in begins)

        in_threads(fill, range(len(parts)))
        return sum(found)


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

    It ends where no label changes, where the centroids hardly move (`TOLERANCE`), or after `max_iter` moves. Sums are
    float64, and only what changed is added and taken away. A centroid without points takes the point that is farthest
    from its own, as in scikit-learn.

    Args:
        points: n of them.
        start: (k, C) centroids, k at most n.
        max_iter: 1 or more.
        spread: `points.spread()`, which several starts share.
        tell: told after each iteration which it was, and how many points changed their cluster.
        fill: whether a centroid without points takes one; else it stays where it is.
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
