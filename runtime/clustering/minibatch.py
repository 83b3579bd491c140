"""k-means over a store that is read part by part, again and again: scikit-learn's mini-batches, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from runtime.clustering.clusters import Clustering, Float32, Float64, arranged, distances_to, nearest
from runtime.clustering.kmeans import normalize_rows
from runtime.clustering.lloyd import TOLERANCE, NumpyPoints
from runtime.clustering.seeding import plus_plus, sample_rows
from runtime.contract.errors import UsageError
from runtime.contract.keys import location
from runtime.store import Embeddings, Store

PASSES = 10
"""Over the data, at most."""

_BATCH = 1024
"""Points of a mini-batch, at least: scikit-learn's default."""


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


def cluster(
    reader: StoreReader,
    k: int,
    seed: int = 0,
    max_iter: int = PASSES,
    tell: Callable[[str], None] = lambda line: None,
) -> Clustering:
    """Cluster a store: k-means++ on a sample, then passes of mini-batches; gives fewer clusters where some end empty.

    Args:
        reader: the store.
        k: how many clusters.
        seed: same seed, same bytes, on one machine.
        max_iter: passes over the store, besides one for the sample and one for the labels.
        tell: told after each batch how far it is, in words.

    Raises:
        UsageError: k is below 1 or above the number of points.
        InputError: the store can't be read.
    """
    n = len(reader.store)
    if not 1 <= k <= n:
        raise UsageError(f"--k {k}: must be from 1 to {n}, the number of embeddings")
    from sklearn.cluster import MiniBatchKMeans

    generator = np.random.default_rng(seed)
    sample = reader.sample(sample_rows(n, k, generator))
    limit = TOLERANCE * NumpyPoints(sample).spread() / sample.shape[1]
    start = plus_plus(sample, k, generator)
    del sample
    # No reassignment: it moves every centroid that no point has come to yet, and a store is in order of its folders.
    model = MiniBatchKMeans(
        k, init=start.astype(np.float32), n_init=1, random_state=seed, reassignment_ratio=0, compute_labels=False
    )
    centroids, passes = start, 0
    for passes in range(1, max_iter + 1):
        done = 0
        for batch in reader.batches(max(_BATCH, 2 * k), generator):
            model.partial_fit(batch)
            done += len(batch)
            tell(f"pass {passes} of at most {max_iter}: {done:,} of {n:,} embeddings")
        before, centroids = centroids, model.cluster_centers_.astype(np.float64)
        if ((centroids - before) ** 2).sum() <= limit:
            break
    labels, distances = reader.labelled(centroids)
    return arranged(labels, distances, centroids, passes)
