"""A finished clustering, whatever found it: its clusters in order of size, and each point's distances."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import InputError
from runtime.contract.labels import NOISE

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
_Item = TypeVar("_Item")

_ROWS = 256
"""Points that are copied at a time, in each thread."""
_SQUARES = (1e-30, 1e36)
"""Between these, squared distances and sums of products are far from the ends of float32."""
_SCORES = 1 << 18
"""Points times centroids that are compared at a time, in each thread: 1 MiB, which fits a core's cache."""


class Vectors(Protocol):
    """n points of width C float32, wherever they lie: an array, or what gives arrays when it is indexed as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C)."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Float32: ...  # noqa: ANN401  # slice or array of rows, as in numpy


@dataclass(frozen=True)
class Chosen:
    """Some `rows` of points, in that order, read where they lie: a copy would be memory."""

    points: Float32
    rows: npt.NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows, and the width."""
        return len(self.rows), self.points.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> Float32:
        return self.points[self.rows[rows]]


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
    """Of Lloyd in the start that was kept, or passes over the data of minibatch; 0 where nothing is iterated."""

    @property
    def noise(self) -> int:
        """How many points are in no cluster."""
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


def distances_to(points: Vectors, centroids: Float64, labels: npt.NDArray[np.integer]) -> Float64:
    """Distance of each point (n, C) to the centroid (k, C) of its label (n,): (n,) float64."""
    distances = np.empty(len(points))

    def fill(rows: slice) -> None:
        apart = points[rows] - centroids[labels[rows]]  # float64: a difference of float32 loses what is near
        distances[rows] = np.sqrt(np.einsum("ij,ij->i", apart, apart))

    in_threads(fill, blocks(len(points), _ROWS))
    return distances


def add_rows(sums: Float64, points: Vectors, labels: Int32, rows: npt.NDArray[np.intp], sign: int = 1) -> None:
    """Add `sign` times each of `points[rows]` to `sums[labels[row]]`, in float64.

    A sum's terms are added in the order of their rows, by one thread: the same bits however many threads there are.
    """
    if not len(rows):
        return
    order = np.argsort(labels[rows], kind="stable")
    rows = rows[order]
    owners = labels[rows]
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    ends = np.r_[starts[1:], len(rows)]

    def add(segment: tuple[int, int]) -> None:
        start, end = segment
        total = np.zeros(points.shape[1])
        for begin in range(start, end, _ROWS):
            total += points[rows[begin : min(begin + _ROWS, end)]].sum(axis=0, dtype=np.float64)
        sums[owners[start]] += sign * total

    in_threads(add, list(zip(starts.tolist(), ends.tolist(), strict=True)))


def nearest(points: Vectors, centroids: Float64, besides: Int32 | None = None) -> Int32:
    """The nearest centroid (k, C) of each point (n, C); of equally near ones the first: (n,).

    What is compared is `|c|² - 2 x·c` in float32, with centroids measured from their mean, since what they have in
    common would drown what parts them. Nothing of n times k numbers is kept.

    Args:
        points: n embeddings.
        centroids: k of them.
        besides: (n,) a label each, which is left out, if it is not `NOISE`.

    Raises:
        InputError: as `score_bias`.
    """
    origin = centroids.mean(axis=0)
    shifted = centroids - origin
    bias = score_bias(shifted, origin)
    weights = np.ascontiguousarray(shifted.T, np.float32)  # (C, k)
    weights *= -2
    del shifted
    labels = np.empty(len(points), np.int32)

    def fill(rows: slice) -> None:
        scores = points[rows] @ weights
        scores += bias
        if besides is not None:
            (has_own,) = np.nonzero(besides[rows] != NOISE)
            scores[has_own, besides[rows][has_own]] = np.inf
        labels[rows] = scores.argmin(axis=1)

    with one_blas_thread():
        in_threads(fill, blocks(len(points), int(np.clip(_SCORES // len(centroids), _ROWS, 4 * _ROWS))))
    return labels


def score_bias(shifted: Float64, origin: Float64) -> Float32:
    """What `nearest` adds to the products of points with k centroids (k, C), which are `shifted` by `origin`: (k,).

    Raises:
        InputError: as `check_squares`.
    """
    bias: Float64 = np.einsum("ij,ij->i", shifted, shifted) + 2 * shifted @ origin
    check_squares(float(np.abs(bias).max()))
    return bias.astype(np.float32)


def check_squares(largest: float) -> None:
    """Check that float32 can hold squared distances, of which this is the largest.

    Raises:
        InputError: squares of such numbers are infinite or 0 in float32, and every label would be wrong in silence.
    """
    if largest and not _SQUARES[0] < largest < _SQUARES[1]:
        raise InputError(
            f"squared distances of about {largest:.0e} can't be compared in float32: take --metric cosine, or scale "
            "the embeddings"
        )


def nearest_other(parts: Iterable[Float32], clustering: Clustering) -> tuple[Int32, Float32]:
    """The nearest centroid of each point besides its own, and the distance to it: what tells who is on a border.

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


def blocks(n: int, rows: int) -> list[slice]:
    """0 to n in slices of `rows`: the same whatever the number of threads, and so what is computed of each."""
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def in_threads(work: Callable[[_Item], None], items: Sequence[_Item]) -> None:
    """Call `work` with each item, in a thread for each core: numpy lets go of Python's lock where it computes."""
    threads = min(len(items), len(os.sched_getaffinity(0)))
    if threads < 2:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads, "clustering") as pool:
        for _ in pool.map(work, items):  # raises what a thread raised
            pass


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread in each of ours: the same bits whatever the cores, and no threads that wait spinning."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> Any:  # noqa: ANN401  # it ships no types; looking for the libraries takes milliseconds, once
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # scikit-learn brings it

    return ThreadpoolController()
