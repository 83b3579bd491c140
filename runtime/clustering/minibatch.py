"""k-means over a store that is read part by part, again and again: scikit-learn's mini-batches, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.clustering.clusters import Clustering, arranged
from runtime.clustering.lloyd import TOLERANCE
from runtime.clustering.points import NumpyPoints, StoreReader
from runtime.clustering.seeding import plus_plus, sample_rows
from runtime.contract.errors import UsageError

PASSES = 10
"""Over the data, at most."""

_BATCH = 1024
"""Points of a mini-batch, at least: scikit-learn's default."""


def cluster(
    reader: StoreReader,
    k: int,
    seed: int = 0,
    max_iter: int = PASSES,
    tell: Callable[[str], None] = lambda line: None,
) -> Clustering:
    """Cluster a store: k-means++ on a sample, then passes of mini-batches. Clusters that end empty are dropped.

    Args:
        reader: the store.
        k: number of clusters.
        seed: the same seed gives the same bytes on one machine.
        max_iter: passes over the store, besides one for the sample and one for the labels.
        tell: called after each batch with the progress in words.

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
    start = plus_plus(NumpyPoints(sample), k, generator)
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
