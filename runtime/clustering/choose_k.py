"""`--k auto`: the number of clusters whose silhouette is the highest, and the curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.clustering.points import Float32, Int32
from runtime.contract.console import count
from runtime.contract.errors import UsageError

SAMPLE = 4000
"""Points that are clustered and compared, each with each: 64 MB of distances. Of fewer, all."""
K_RANGE = (2, 30)
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Largest distance of two unit vectors that may be of rounding alone."""
_LOOK = "look whether the pictures are the same, or differ only outside of the model's crop (--fit of the exporter)"


@dataclass(frozen=True)
class Curve:
    """The mean silhouette of each k, of a sample of m points; 1 is the best, 0 means that clusters overlap."""

    ks: tuple[int, ...]
    silhouettes: tuple[float, ...]
    points: int
    """m."""

    @property
    def best(self) -> int:
        """The k of the highest silhouette; of equals the smallest."""
        return self.ks[int(np.argmax(self.silhouettes))]


def choose(
    sample: Float32,
    metric: str,
    ks: Sequence[int],
    cluster: Callable[[Float32, int], Int32],
    tell: Callable[[int, float], None] = lambda k, silhouette: None,
) -> Curve:
    """Cluster a sample with each k and measure.

    Args:
        sample: (m, C), unit vectors where the metric is cosine.
        metric: `cosine` or `euclidean`: of the silhouette's distances.
        ks: 2 or more each, rising; those that m points can't have are left out.
        cluster: the labels (m,) that points (m, C) get for a k; may raise UsageError for points that are too equal.
        tell: called with each k and its silhouette.

    Raises:
        UsageError: no k is left, or the points are equal but for rounding.
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    distances = pairwise_distances(sample, metric=metric).astype(np.float32)
    np.fill_diagonal(distances, 0)  # of rounding
    farthest = float(distances.max(initial=0))
    norm = 1.0 if metric == "cosine" else float(np.linalg.norm(sample, axis=1).max(initial=0))
    if len(sample) > ks[0] and farthest <= _ROUNDING * norm:
        raise _no_k(ks, sample, "they are all equal, at least but for rounding", _LOOK)
    found: dict[int, float] = {}
    for k in ks:
        if k >= len(sample):  # with k = m each silhouette is 0 by definition
            break
        try:
            labels = cluster(sample, k)
        except UsageError:  # fewer distinct points
            break
        found[k] = float(silhouette_score(distances, labels, metric="precomputed"))
        tell(k, found[k])
    if not found:
        if ks[0] >= len(sample):
            raise _no_k(
                ks, sample, "k must be less than their number", "give more embeddings, --k or a lower --k-range"
            )
        distinct = len(np.unique(sample, axis=0))
        why = f"only {distinct} of them are distinct" if distinct < ks[0] else "they are too nearly equal"
        raise _no_k(ks, sample, why, "give --k or a lower --k-range")
    return Curve(tuple(found), tuple(found.values()), len(sample))


def _no_k(ks: Sequence[int], sample: Float32, why: str, advice: str) -> UsageError:
    """The error where nothing can be chosen from."""
    return UsageError(
        f"--k auto: no k of {ks[0]} to {ks[-1]} can be tried on {count(len(sample), 'embedding')}: {why}; {advice}"
    )
