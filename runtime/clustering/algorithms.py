"""Clusterings that aren't k-means: HDBSCAN and agglomerative, scikit-learn's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from runtime.clustering.clusters import Clustering, from_labels
from runtime.clustering.kmeans import check_k
from runtime.clustering.points import Float32, Int32
from runtime.contract.errors import UsageError
from runtime.contract.progress import FIRST_LINE

MIN_CLUSTER_SIZE = 5
MAX_AGGLOMERATIVE = 30_000
"""Points that agglomerative takes: the distances of each two, 8 bytes each, are 3.6 GB then."""


def hdbscan(
    points: Float32,
    min_cluster_size: int = MIN_CLUSTER_SIZE,
    min_samples: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Clustering:
    """Clusters of any shape where the n points (n, C) lie densely; the others are noise. Deterministic.

    Time grows as n² C; memory as n C.

    Args:
        points: the embeddings.
        min_cluster_size: 2 or more; smaller groups are noise.
        min_samples: number of neighbours that make a place dense; by default `min_cluster_size`.
        tell: called every few seconds with the time that it has computed, in words.

    Raises:
        UsageError: there are fewer points than `min_cluster_size` or `min_samples`.
    """
    from sklearn.cluster import HDBSCAN

    if len(points) < 2:
        raise UsageError(f"--algorithm hdbscan needs 2 embeddings or more, there is {len(points)}")
    for option, value, least in (("min-cluster-size", min_cluster_size, 2), ("min-samples", min_samples or 1, 1)):
        if not least <= value <= len(points):
            raise UsageError(f"--{option} {value}: must be from {least} to {len(points)}, the number of embeddings")
    model = HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples, copy=True)
    return from_labels(points, _labels(lambda: model.fit(points), tell))


def agglomerative(
    points: Float32, k: int, linkage: str = "ward", tell: Callable[[str], None] = lambda line: None
) -> Clustering:
    """Merge the two nearest clusters of n points (n, C) until there are k. Deterministic; `tell` as in `hdbscan`.

    Raises:
        UsageError: as `check_k`, or there are too many points for the distances of each two.
    """
    check_k(points, k)
    if len(points) > MAX_AGGLOMERATIVE:
        gigabytes = 4 * len(points) ** 2 / 1e9
        raise UsageError(
            f"--algorithm agglomerative keeps the distances of each two of {len(points):,} embeddings, "
            f"{gigabytes:,.1f} GB, and takes {MAX_AGGLOMERATIVE:,} at most; use kmeans or minibatch"
        )
    from sklearn.cluster import AgglomerativeClustering

    if len(points) == 1:
        return from_labels(points, np.zeros(1, np.int32))
    return from_labels(points, _labels(lambda: AgglomerativeClustering(k, linkage=linkage).fit(points), tell))


def _labels(fit: Callable[[], Any], tell: Callable[[str], None]) -> Int32:
    """The labels that scikit-learn finds, in a thread: its compiled code, for minutes or hours, hears no Ctrl-C."""
    done: Future[Int32] = Future()

    def work() -> None:
        try:
            done.set_result(fit().labels_.astype(np.int32))
        except BaseException as error:
            done.set_exception(error)

    started = time.monotonic()
    threading.Thread(target=work, name="fit", daemon=True).start()  # a daemon: nothing waits for it at exit
    while not wait([done], timeout=FIRST_LINE).done:
        tell(f"computing for {time.monotonic() - started:.0f} s")
    return done.result()
