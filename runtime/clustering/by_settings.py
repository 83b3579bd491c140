"""Clusters a store as its `Settings` ask: points, the number of clusters where it is to be found, one algorithm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.clustering import algorithms, by_ray, choose_k, kmeans, minibatch
from runtime.clustering.choose_k import Curve
from runtime.clustering.clusters import Clustering
from runtime.clustering.options import Settings
from runtime.clustering.points import Float32, Int32, StoreReader
from runtime.contract.progress import NowAndThen

Say = Callable[[str], None]


def cluster_store(
    reader: StoreReader, settings: Settings, say: Say, ray: str | None = None
) -> tuple[Clustering, Curve | None]:
    """Cluster the embeddings of a store; they are in memory no longer than this takes, and never for `minibatch`.

    Args:
        reader: the store, in the metric to cluster by.
        settings: the options of the command; `settings.assign` has no meaning here.
        say: receives the progress, a line at a time.
        ray: address of the Ray cluster that does the work, for `kmeans` with a given k; None for this process.

    Returns:
        the clusters, and the curve by which k was chosen; None if k was given.

    Raises:
        UsageError: an option has no meaning for these embeddings.
        InputError: the embeddings can't be read or clustered.
        BackendError: there is no such device, or it lacks memory.
    """
    store = reader.store
    if ray is not None and settings.k is not None:
        say(f"clustering {len(store):,} embeddings of width {store.width} into {settings.k:,}")
        tell = NowAndThen(say)
        return by_ray.cluster(reader, settings.k, settings.seed, ray, **settings.given, tell=tell), None
    points = reader.load(NowAndThen(say)) if settings.algorithm != "minibatch" else None
    if points is not None and settings.k is not None:
        kmeans.check_k(points, settings.k)  # the algorithm checks it again; here it fails before the first line
    curve = None if settings.k_range is None else _curve(reader, points, settings, say)
    k = settings.k or (curve.best if curve else None)
    say(f"clustering {len(store):,} embeddings of width {store.width}{f' into {k:,}' if k else ''}")
    clustering = _cluster(reader, points, settings, k, NowAndThen(say))
    if k and len(clustering.sizes) < k:
        say(f"only {len(clustering.sizes):,} of {k:,} clusters came out: no embedding is nearest to the others")
    return clustering, curve


def _cluster(reader: StoreReader, points: Float32 | None, settings: Settings, k: int | None, tell: Say) -> Clustering:
    """Call the algorithm; `points` is None for `minibatch`, k for `hdbscan`."""
    if points is None:
        assert k is not None
        return minibatch.cluster(reader, k, settings.seed, **settings.given, tell=tell)
    if k is None:
        return algorithms.hdbscan(points, **settings.given, tell=tell)
    if settings.algorithm == "agglomerative":
        return algorithms.agglomerative(points, k, **settings.given, tell=tell)
    return kmeans.cluster(points, k, settings.seed, **settings.given, tell=tell)


def _curve(reader: StoreReader, points: Float32 | None, settings: Settings, say: Say) -> Curve:
    """The silhouette of each k of `settings.k_range`, on a sample."""
    assert settings.k_range is not None
    low, high = settings.k_range
    n = len(reader.store)
    generator = np.random.default_rng(settings.seed)
    rows = np.sort(generator.choice(n, min(n, choose_k.SAMPLE), replace=False))
    sample = reader.sample(rows) if points is None else points[rows]
    say(f"trying {low} to {high} clusters on {len(sample):,} embeddings")

    def labels(sample: Float32, k: int) -> Int32:
        if settings.algorithm == "agglomerative":
            return algorithms.agglomerative(sample, k, **settings.given).labels
        given = settings.given if settings.algorithm == "kmeans" else {}  # passes are no iterations
        return kmeans.cluster(sample, k, settings.seed, **given).labels

    return choose_k.choose(
        sample, reader.metric, range(low, high + 1), labels, lambda k, found: say(f"k = {k}: silhouette {found:.3f}")
    )
