"""Near-duplicates: groups of embeddings of one direction or nearly so, and which of each group stays.

As in SemDeDup, k-means clusters bound the pairs that are compared. Across clusters none is missed: two points of
clusters A and B that are no farther apart than d lie on two sides of the plane between the centroids, so one of them is
no farther than d/2 from it. Every such point is compared with all of the other cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.clustering.lloyd import lloyd
from runtime.clustering.points import Float32, Float64, Int32, NumpyPoints, distances_to, nearest
from runtime.clustering.seeding import plus_plus, sample_rows
from runtime.contract.atomic import cannot_write
from runtime.contract.errors import UsageError
from runtime.store import Store
from runtime.store.search import read_rows, unit_vectors

Rows = npt.NDArray[np.intp]
Say = Callable[[str], None]

KEEP = ("first", "last", "nearest", "farthest")
"""Which one of a group stays: by its row, or by its distance to the centroid of its cluster."""
ALONE = -1
"""The group of what has no duplicate."""

_BLOCK_ROWS = 1024
_OTHERS = 4096
"""Rows that a block is compared with at a time."""
_BY_BRUTE_FORCE = 8192
"""Rows up to which all are compared with all."""
_MOST_CLUSTERS = 4096
_SAMPLE = 50
"""Rows for each cluster that k-means looks at."""
_ITERATIONS = 10
_SLACK = 1e-3
"""The most that float32 errs by in distances to planes. Between centroids that are closer, no plane is computed."""
_NEAR = 1e-5
"""Similarities so close to the threshold are computed again in float64."""
_NEAR_PAIRS = 4096
_ROUNDING = 1e-6
"""More than float32 errs by in the square of a length near 1."""
_SPARSE = 64
"""Pairs of a block are looked at one by one if they are fewer than one in so many of it."""
_GAP = 4
"""Rows between two that are read along with them: cheaper than another call."""
_TRIED_BLOCKS, _TRIED_ROWS = 16, 128
_COST_OF_CANDIDATE = 1e5
"""A pair that is looked at in full for nothing, in elements of vectors that could be compared in that time."""
_MOST_PAIRS = 1 << 21
"""Pairs that are held at a time; then only what they connect is."""


@dataclass(frozen=True)
class Duplicates:
    """The groups of n rows; g of them, the largest first, of equal ones the one whose first row comes first."""

    groups: Int32
    """(n,): the group of each row, 0 to g - 1, or `ALONE`."""
    similarities: Float32
    """(n,): cosine to the row of its group that stays, 1 of that row itself; NaN if it is alone."""
    kept: npt.NDArray[np.bool_]
    """(n,): whether a row stays: all that are alone, and one of each group."""
    sizes: npt.NDArray[np.int64]
    """(g,)."""
    zeros: int
    """Rows that are all zeros: they have no direction, and no duplicate."""


def find_duplicates(store: Store, threshold: float, keep: str, work: Path, tell: Say = lambda line: None) -> Duplicates:
    """Group the rows of a store whose cosine is `threshold` or more, or that are connected by such rows.

    Every pair that is compared is decided in float64 where float32 could err. Memory does not grow with n times C: the
    embeddings lie in a temporary file in `work`, sorted by cluster.

    Args:
        store: the embeddings.
        threshold: above 0, at most 1.
        keep: one of `KEEP`.
        work: an existing folder for the temporary file, which is as large as the embeddings.
        tell: called now and then with how far it is, in words.

    Raises:
        UsageError: there is no such rule, or the threshold is out of its range.
        InputError: the store can't be read.
        OutputFileError: the temporary file can't be written.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold}: must be above 0, at most 1")
    if keep not in KEEP:
        raise UsageError(f"--keep {keep}: must be one of {', '.join(KEEP)}")
    same, is_zero = _identical(store, tell)
    distinct = np.flatnonzero((same == np.arange(len(same))) & ~is_zero)
    centroids, shorten = _centroids(store, distinct, threshold, tell)
    labels, distances = _labelled(store, same, centroids, tell)
    order = distinct[np.argsort(labels[distinct], kind="stable")]
    starts = np.searchsorted(labels[order], np.arange(len(centroids) + 1))
    try:
        with contextlib.ExitStack() as stack:
            points = stack.enter_context(_SortedFile(work / "by-cluster.f32", store, order, tell))
            shorts = points
            if shorten is not None:
                shorts = stack.enter_context(_SortedFile(work / "short.f32", store, order, tell, shorten))
            one, other = (order[side] for side in _compare(points, shorts, starts, centroids, threshold, tell))
            copies = np.flatnonzero(same != np.arange(len(same)))
            joined = np.concatenate([one, copies]), np.concatenate([other, same[copies]])
            groups, sizes = _numbered(_components(*joined, len(same)))
            stays = _chosen(groups, len(sizes), keep, distances)
            place = np.full(len(same), -1, np.intp)
            place[order] = np.arange(len(order))
            similarities = _to_kept(points, place[same], groups, stays)
    except OSError as error:
        raise cannot_write(work, error) from error
    kept = groups == ALONE
    kept[stays] = True
    return Duplicates(groups, similarities, kept, sizes, int(is_zero.sum()))


def _identical(store: Store, tell: Say) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The first row that has the direction of each row, to the bit, and whether a row is all zeros: (n,), (n,)."""
    digests = np.empty((len(store), 16), np.uint8)
    is_zero = np.zeros(len(store), np.bool_)
    first = 0
    for block in store.blocks(_BLOCK_ROWS):
        units = unit_vectors(block) + 0  # -0 becomes 0
        for row, unit in enumerate(units, first):
            digests[row] = np.frombuffer(hashlib.blake2b(unit.tobytes(), digest_size=16).digest(), np.uint8)
        is_zero[first : first + len(units)] = ~units.any(axis=1)
        first += len(units)
        tell(f"{first:,} of {len(store):,} embeddings read")
    as_one = digests.view([("a", "<u8"), ("b", "<u8")]).ravel()
    _, firsts, inverse = np.unique(as_one, return_index=True, return_inverse=True)
    same = firsts[inverse.ravel()]
    same[is_zero] = np.flatnonzero(is_zero)
    return same, is_zero


def _centroids(store: Store, distinct: Rows, threshold: float, tell: Say) -> tuple[Float64, _Shortened | None]:
    """Centroids (k, C) of a sample of the rows, and how to shorten them; the origin if all are compared with all."""
    n = len(distinct)
    k = 1 if n <= _BY_BRUTE_FORCE else min(round(n**0.5), _MOST_CLUSTERS)
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.choice(distinct, min(n, _SAMPLE * k), replace=False)) if n else distinct
    if k == 1:
        return np.zeros((1, store.width)), None
    tell(f"finding {k:,} clusters of {len(chosen):,} embeddings")
    sample = unit_vectors(read_rows(store, chosen))
    points = NumpyPoints(sample)
    start = plus_plus(points.choose(sample_rows(len(points), k, generator)), k, generator)
    centroids = lloyd(points, start, _ITERATIONS, points.spread(), tell, fill=False).centroids
    return centroids, _shortened(sample, centroids, threshold)


def _labelled(store: Store, same: Rows, centroids: Float64, tell: Say) -> tuple[Int32, Float64]:
    """The nearest centroid of each row, and the distance to it: (n,), (n,); copies have those of their first row."""
    labels, distances = np.zeros(len(same), np.int32), np.zeros(len(same))
    first = 0
    for block in store.blocks(4 * _BLOCK_ROWS):
        rows = slice(first, first + len(block))
        units = unit_vectors(block)
        labels[rows] = nearest(units, centroids)
        distances[rows] = distances_to(units, centroids, labels[rows])
        first += len(block)
        tell(f"{first:,} of {len(store):,} embeddings in clusters")
    return labels[same], distances[same]


class _SortedFile:
    """Unit vectors in a file, in order of their clusters, or shortened ones; read where they are needed."""

    def __init__(self, path: Path, store: Store, order: Rows, tell: Say, shorten: _Shortened | None = None) -> None:
        self._width = store.width if shorten is None else shorten.width
        self._bytes = 4 * self._width
        self._file = path.open("w+b", buffering=0)
        place = np.full(len(store), -1, np.intp)
        place[order] = np.arange(len(order))
        first = 0
        for block in store.blocks(4 * _BLOCK_ROWS):
            there = place[first : first + len(block)]
            rows = np.flatnonzero(there >= 0)
            rows = rows[np.argsort(there[rows])]
            units = unit_vectors(block[rows])
            if shorten is not None:
                units = shorten(units)
            breaks = np.flatnonzero(np.diff(there[rows]) != 1) + 1
            for run in np.split(np.arange(len(rows)), breaks):
                if len(run):
                    self._write(units[run[0] : run[-1] + 1].tobytes(), int(there[rows[run[0]]]) * self._bytes)
            first += len(block)
            tell(f"{first:,} of {len(store):,} embeddings sorted by cluster")

    def _write(self, data: bytes, offset: int) -> None:
        while data:  # a disk that is full takes a part first
            done = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[done:], offset + done

    def __enter__(self) -> _SortedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> Float32:
        """The points from `start` to `stop`: (m, C)."""
        data = os.pread(self._file.fileno(), (stop - start) * self._bytes, start * self._bytes)
        return np.frombuffer(data, np.float32).reshape(stop - start, self._width)

    def take(self, places: Rows) -> Float32:
        """Some points, (m, C)."""
        ordered, at = np.unique(places, return_inverse=True)
        breaks = np.flatnonzero(np.diff(ordered) > _GAP) + 1
        runs = (self.read(run[0], run[-1] + 1)[run - run[0]] for run in np.split(ordered, breaks))
        return np.concatenate(list(runs))[at]


class _Pairs:
    """Pairs of m points that belong together; when they become many, only what they connect is kept."""

    def __init__(self, m: int) -> None:
        self._m = m
        self._waiting: list[tuple[Rows, Rows]] = []
        self._count = 0

    def add(self, one: Rows, other: Rows) -> None:
        self._waiting.append((one, other))
        self._count += len(one)
        if self._count > _MOST_PAIRS:
            self._waiting = [self.connections()]
            self._count = 0

    def connections(self) -> tuple[Rows, Rows]:
        """Each point that is connected to an earlier one, and the earliest."""
        if not self._waiting:
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
        one, other = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
        labels = _components(one, other, self._m)
        _, firsts = np.unique(labels, return_index=True)
        earliest = firsts[labels]
        (later,) = np.nonzero(earliest != np.arange(self._m))
        return later, earliest[later]


def _components(one: Rows, other: Rows, n: int) -> Int32:
    """The connected component of each of n points: (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(n, n))
    found: Int32 = connected_components(graph.tocsr(), directed=False)[1]
    return found


class _Shortened:
    """Shorter vectors whose products are upper bounds of the cosines: most pairs need no look at the whole vectors.

    The first p elements are the coordinates on p orthogonal axes, the last is the length of the rest: by Cauchy-Schwarz
    the product of two rests is at most that of their lengths.
    """

    def __init__(self, axes: Float64) -> None:
        self._axes = np.ascontiguousarray(axes, np.float32)
        self.width = axes.shape[1] + 1

    def __call__(self, units: Float32) -> Float32:
        """The shorter vectors (m, p + 1) of unit vectors (m, C)."""
        coordinates = units @ self._axes
        rest = 1 + _ROUNDING - np.einsum("ij,ij->i", coordinates, coordinates, dtype=np.float64)
        return np.concatenate([coordinates, np.sqrt(np.maximum(rest, 0))[:, None]], axis=1, dtype=np.float32)


def _shortened(sample: Float32, centroids: Float64, threshold: float) -> _Shortened | None:
    """The shortening that costs least on neighbours in a sample (m, C) of unit vectors; None if nothing is won.

    The axes are those on which the sample is longest.
    """
    width = sample.shape[1]
    grouped = sample[np.argsort(nearest(sample, centroids), kind="stable")]
    starts = np.linspace(0, max(len(grouped) - _TRIED_ROWS, 0), _TRIED_BLOCKS).astype(np.intp)
    axes = np.linalg.eigh(sample.T.astype(np.float64) @ sample)[1][:, ::-1]

    def candidates(shorten: Callable[[Float32], Float32]) -> float:
        """The share of pairs that must be looked at in full."""
        blocks = (shorten(grouped[start : start + _TRIED_ROWS]) for start in starts)
        return float(np.mean([(block @ block.T >= threshold - _NEAR).mean() for block in blocks]))

    duplicates = candidates(lambda block: block)
    best, least = None, float(width)
    for p in (width // 32, width // 16, width // 8, width // 4, width // 2):
        shorten = _Shortened(axes[:, :p])
        cost = shorten.width + _COST_OF_CANDIDATE * (candidates(shorten) - duplicates)
        if p and cost < least:
            best, least = shorten, cost
    return best


def _compare(
    points: _SortedFile, shorts: _SortedFile, starts: Rows, centroids: Float64, threshold: float, tell: Say
) -> tuple[Rows, Rows]:
    """Connect all duplicates: each point that is connected to an earlier one, and the earliest."""
    k = len(centroids)
    pairs = _Pairs(int(starts[-1]))
    squares = np.einsum("ij,ij->i", centroids, centroids)
    weights = np.ascontiguousarray(-2 * centroids.T, np.float32)
    reach = _reach(threshold)

    def compare(begin: int, some: Float32, short: Float32, rows: Rows, start: int, stop: int) -> None:
        """Add the duplicates of some rows of a block, which begins at `begin`, from `start` to `stop`."""
        for first in range(start, stop, _OTHERS):
            last = min(first + _OTHERS, stop)
            scores = short[rows] @ shorts.read(first, last).T
            one, other = np.divmod(np.flatnonzero(scores.ravel() >= threshold - _NEAR), last - first)
            one = rows[one]
            is_later = begin + one < first + other if start <= begin < stop else np.ones(len(one), np.bool_)
            one, other = one[is_later], other[is_later]
            fits = _are_duplicates(some, one, points, first + other, threshold)
            pairs.add(begin + one[fits], first + other[fits])

    for cluster in range(k):
        end = int(starts[cluster + 1])
        apart = np.sqrt(np.square(centroids - centroids[cluster]).sum(axis=1))
        for begin in range(int(starts[cluster]), end, _BLOCK_ROWS):
            stop = min(begin + _BLOCK_ROWS, end)
            some, short = points.read(begin, stop), shorts.read(begin, stop)
            compare(begin, some, short, np.arange(len(some)), begin, end)
            if k == 1:
                tell(f"{stop:,} of {end:,} embeddings compared")
                continue
            scores = (some @ weights) + squares
            planes = (scores - scores[:, [cluster]]) / np.maximum(2 * apart, _SLACK)
            planes[:, apart < _SLACK] = 0
            planes[:, cluster] = np.inf
            planes[:, starts[1:] == starts[:-1]] = np.inf  # nobody is there
            near = planes <= reach
            for other in np.flatnonzero(near.any(axis=0)).tolist():
                compare(begin, some, short, np.flatnonzero(near[:, other]), int(starts[other]), int(starts[other + 1]))
        tell(f"{end:,} of {int(starts[-1]):,} embeddings compared")
    return pairs.connections()


def _reach(threshold: float) -> float:
    """The distance from the plane between two clusters within which one of two duplicates on its sides lies."""
    return float(np.sqrt(2 - 2 * threshold)) / 2 + _SLACK


def _are_duplicates(some: Float32, one: Rows, points: _SortedFile, other: Rows, threshold: float) -> npt.NDArray[Any]:
    """Whether the cosine of each of m pairs, a row of `some` and a place in the file, is high enough: (m,)."""
    fits = np.zeros(len(one), np.bool_)
    if not len(one):
        return fits
    rows, row_of = np.unique(one, return_inverse=True)
    places, place_of = np.unique(other, return_inverse=True)
    others = points.take(places)
    doubtful = np.arange(len(one))
    if len(one) * _SPARSE > len(rows) * len(places):
        scores = (some[rows] @ others.T)[row_of, place_of]
        fits = scores >= threshold + _NEAR
        doubtful = np.flatnonzero(~fits & (scores >= threshold - _NEAR))
    for first in range(0, len(doubtful), _NEAR_PAIRS):
        part = doubtful[first : first + _NEAR_PAIRS]
        fits[part] = _cosines(some[one[part]], others[place_of[part]]) >= threshold
    return fits


def _cosines(some: Float32, others: Float32) -> Float64:
    """Cosines of m points with m others, (m,), in float64."""
    a, b = some.astype(np.float64), others.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    found: Float64 = np.einsum("ij,ij->i", a, b) / lengths
    return found


def _numbered(components: Int32) -> tuple[Int32, npt.NDArray[np.int64]]:
    """Group of each row, `ALONE` where its component is of one row; and the groups' sizes, in falling order."""
    _, firsts, inverse, counts = np.unique(components, return_index=True, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    several = several[np.lexsort((firsts[several], -counts[several]))]
    number = np.full(len(counts), ALONE, np.int32)
    number[several] = np.arange(len(several))
    return number[inverse.ravel()], counts[several].astype(np.int64)


def _chosen(groups: Int32, count: int, keep: str, distances: Float64) -> Rows:
    """The row of each of `count` groups that stays: (g,); of equals the first."""
    rows = np.flatnonzero(groups != ALONE)
    by: Any = {"first": rows, "last": -rows, "nearest": distances[rows], "farthest": -distances[rows]}[keep]
    rows = rows[np.lexsort((rows, by, groups[rows]))]
    return rows[np.searchsorted(groups[rows], np.arange(count))]


def _to_kept(points: _SortedFile, place: Rows, groups: Int32, stays: Rows) -> Float32:
    """The cosine of each row to the one of its group that stays: (n,); `place` is where its vector lies in the file."""
    found = np.full(len(groups), np.nan, np.float32)
    rows = np.flatnonzero(groups != ALONE)
    for first in range(0, len(rows), _BLOCK_ROWS):
        some = rows[first : first + _BLOCK_ROWS]
        there = stays[groups[some]]
        found[some] = np.clip(_cosines(points.take(place[some]), points.take(place[there])), -1, 1)
        found[some[place[some] == place[there]]] = 1
    return found
