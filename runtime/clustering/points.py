"""Points, the rows of an array or of a store in a metric, with their norms, distances and nearest centroids."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.clustering.threads import blocks, in_threads, one_blas_thread
from runtime.contract.errors import InputError
from runtime.contract.keys import location
from runtime.contract.labels import NOISE
from runtime.store import Embeddings, Store

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

_ROWS = 256
"""Points that are copied at a time, in each thread."""
_SQUARES = (1e-30, 1e36)
"""Between these, squared distances and sums of products are far from the ends of float32."""
_SCORES = 1 << 18
"""Points times centroids that are compared at a time, in each thread: 1 MiB, which fits a core's cache."""
_SUM_ROWS, _SUM_PART = 64, 8192
"""Points whose sum is taken at a time, and by one thread."""
NEAR = 1e-5
"""Squared distances below this share of the squared norms are computed again: float32 has lost them."""
NEAR_PAIRS = 4096
"""Pairs of near points that are computed again at a time."""

SquaredFrom = Callable[[npt.NDArray[np.integer]], Float32]
"""Takes the rows (s,) of some of n points, and returns their squared distances to all of them: (s, n), 0 of equals."""


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
        """Number of rows, and their width."""
        return len(self.rows), self.points.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> Float32:
        return self.points[self.rows[rows]]


class Points(Protocol):
    """n points of width C, wherever they lie."""

    def __len__(self) -> int: ...

    def nearest(self, centroids: Float64) -> Int32:
        """Returns what the function `nearest` returns."""

    def distances_to(self, centroids: Float64, labels: Int32) -> Float64:
        """Returns what the function `distances_to` returns."""

    def add_rows(self, sums: Float64, labels: Int32, rows: npt.NDArray[np.intp], sign: int) -> None:
        """Does what the function `add_rows` does."""

    def rows(self, rows: npt.NDArray[np.intp]) -> Float64:
        """A few of the points, (len(rows), C)."""

    def choose(self, rows: npt.NDArray[np.intp]) -> Points:
        """Some of the points, by themselves."""

    def spread(self) -> float:
        """Mean squared distance of the points to their mean."""

    def squared_from(self) -> SquaredFrom:
        """Returns what computes squared distances; it holds a copy of the points, less their mean.

        Raises:
            InputError: as `check_squares`.
        """


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

    def squared_from(self) -> SquaredFrom:  # noqa: D102
        return squared_from(self._points[np.arange(len(self))])

    def _sum(self, of: Callable[[Float32], Any]) -> Any:  # noqa: ANN401  # a number or an array, as `of` gives
        """The sum of what each block of the points gives, added in their order; little is held meanwhile."""
        parts = blocks(len(self), _SUM_PART)
        found: list[Any] = [None] * len(parts)

        def fill(number: int) -> None:
            end = parts[number].stop
            begins = range(parts[number].start, end, _SUM_ROWS)
            found[number] = sum(of(self._points[begin : min(begin + _SUM_ROWS, end)]) for begin in begins)

        in_threads(fill, range(len(parts)))
        return sum(found)


def normalize_rows(
    vectors: Float32, name: Callable[[int], str] = str, *, first: int = 0, out: Float32 | None = None
) -> Float32:
    """Divide each of n embeddings (n, C) by its L2 norm, in float64; gives a new array, (n, C) float32.

    Args:
        vectors: the embeddings.
        name: what to call a row in an error.
        first: the number that an error gives row 0.
        out: where the result goes instead; may be `vectors` itself.

    Raises:
        InputError: a row holds NaN or infinity, or only zeros, which have no direction; the first is named.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if (bad := np.flatnonzero(~np.isfinite(norms))).size:
        raise InputError(
            f"the embedding of {name(int(bad[0]))} (row {first + bad[0]}) holds NaN or infinity; make it again"
        )
    if (bad := np.flatnonzero(norms == 0)).size:
        raise InputError(
            f"the embedding of {name(int(bad[0]))} (row {first + bad[0]}) is all zeros and can't be normalised; "
            "make it again"
        )
    units = np.empty_like(vectors, order="C") if out is None else out
    np.divide(vectors, norms[:, None], out=units, casting="same_kind")  # float64 inside, a buffer at a time
    return units


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


def squared_from(points: Float32) -> SquaredFrom:
    """Returns what computes the squared distances of some of n points (n, C) to all; the contents of `points` change.

    Raises:
        InputError: as `check_squares`.
    """
    points -= points.mean(axis=0, dtype=np.float64).astype(np.float32)  # products lose less
    squares = np.einsum("ij,ij->i", points, points, dtype=np.float64)
    check_squares(float(squares.max()))
    norms = squares.astype(np.float32)

    def compute(rows: npt.NDArray[np.integer]) -> Float32:
        some, some_norms = points[rows], norms[rows][:, None]
        weights = -2 * some
        squared = np.empty((len(rows), len(points)), np.float32)

        def fill(part: slice) -> None:
            others = points[part]
            scale = some_norms + norms[part]
            found = weights @ others.T
            found += scale
            scale *= NEAR
            near = np.nonzero(found < scale)
            for pairs in blocks(len(near[0]), NEAR_PAIRS):
                one, other = near[0][pairs], near[1][pairs]
                apart = others[other].astype(np.float64) - some[one]
                found[one, other] = np.einsum("ij,ij->i", apart, apart)
            squared[:, part] = found

        with one_blas_thread():
            in_threads(fill, blocks(len(points), 2 * _ROWS))
        return squared

    return compute


def score_bias(shifted: Float64, origin: Float64) -> Float32:
    """The (k,) numbers that `nearest` adds to products of points with k centroids (k, C), `shifted` by `origin`.

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


@dataclass(frozen=True)
class StoreReader:
    """A store's points, in the metric they are clustered by: all at once, or never."""

    store: Store
    metric: str

    def load(self, tell: Callable[[str], None] = lambda line: None) -> Float32:
        """All points, (n, C), in an array of their own; `tell` as in `Store.load`; raises InputError."""
        points = self.store.load(tell)
        return normalize_rows(points, self._name, out=points) if self.metric == "cosine" else points

    def _name(self, row: int) -> str:
        return location(*next(itertools.islice(self.store.images(), row, None)))

    def parts(self) -> Iterator[Float32]:
        """Some thousand points (m, C) at a time; raises InputError."""
        first = 0
        for part in self.store.parts():
            yield normalize_rows(part.vectors, _names(part), first=first) if self.metric == "cosine" else part.vectors
            first += len(part)

    def sample(self, rows: np.ndarray) -> Float32:
        """The points of `rows`, which are in order; reads the store once."""
        found, first = [], 0
        for points in self.parts():
            low, high = np.searchsorted(rows, [first, first + len(points)])
            found.append(points[rows[low:high] - first])
            first += len(points)
        return np.concatenate(found)

    def batches(self, rows: int, generator: np.random.Generator) -> Iterator[Float32]:
        """All points in batches of `rows`, those of a part in any order; the last batch may be smaller."""
        waiting = np.empty((0, self.store.width), np.float32)
        for points in self.parts():
            waiting = np.concatenate([waiting, points[generator.permutation(len(points))]])
            whole = len(waiting) - len(waiting) % rows
            for start in range(0, whole, rows):
                yield waiting[start : start + rows]
            waiting = waiting[whole:].copy()
        if len(waiting):
            yield waiting

    def labelled(self, centroids: Float64) -> tuple[np.ndarray, Float64]:
        """The nearest centroid (k, C) of each point, and the distance to it: (n,) int32, (n,)."""
        labels, distances = [], []
        for points in self.parts():
            labels.append(nearest(points, centroids))
            distances.append(distances_to(points, centroids, labels[-1]))
        return np.concatenate(labels), np.concatenate(distances)


def _names(part: Embeddings) -> Callable[[int], str]:
    return lambda row: location(part.roots[row], part.paths[row])
