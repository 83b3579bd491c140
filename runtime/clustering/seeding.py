"""Where k-means starts: greedy k-means++, on a sample where there are many points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.clustering.points import Float32, Float64, check_squares
from runtime.clustering.threads import one_blas_thread

SAMPLE = 4096
"""Points that are looked at, at least; of fewer, all."""
SAMPLE_PER_CLUSTER = 4
"""Points that are looked at for each centroid, at least."""

_NEAR = 1e-5
"""Squared distances below this share of the squared norms are computed again: float32 has lost them."""


def sample_rows(n: int, k: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The rows of n points to look for k centroids in, drawn without replacement, in order."""
    count = min(n, max(SAMPLE, SAMPLE_PER_CLUSTER * k))
    return np.arange(n) if count == n else np.sort(generator.choice(n, count, replace=False))


def plus_plus(points: Float32, k: int, generator: np.random.Generator) -> Float64:
    """Choose k of the points (m, C), m >= k, far from each other: (k, C) float64. What is in `points` is lost.

    Each is drawn with probability in proportion to the squared distance to the nearest one before; of `2 + ln k`
    such candidates the one that lowers the sum of those the most is taken, as in scikit-learn. Where every point equals
    one that was drawn, the rest are any others.

    Raises:
        InputError: as `check_squares`.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """
    mean = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    points -= mean  # the less is lost in products
    squares = np.einsum("ij,ij->i", points, points, dtype=np.float64)
    check_squares(float(squares.max()))
    norms = squares.astype(np.float32)
    candidates = 2 + int(np.log(k))
    chosen = [int(generator.integers(len(points)))]
    with one_blas_thread():
        closest = _squared(points, norms, chosen)[:, 0]  # (m,)
        while len(chosen) < k:
            cumulative = np.cumsum(closest, dtype=np.float64)
            if cumulative[-1] <= 0:
                others = np.setdiff1d(np.arange(len(points)), chosen)
                chosen += generator.choice(others, k - len(chosen), replace=False).tolist()
                break
            drawn = np.searchsorted(cumulative, generator.random(candidates) * cumulative[-1], side="right")
            drawn = np.minimum(drawn, len(points) - 1)  # of rounding
            lowered = np.minimum(closest[:, None], _squared(points, norms, drawn.tolist()))  # (m, candidates)
            best = int(lowered.sum(axis=0, dtype=np.float64).argmin())
            chosen.append(int(drawn[best]))
            closest = lowered[:, best]
    starts: Float64 = points[chosen].astype(np.float64) + mean
    return starts


def _squared(points: Float32, norms: Float32, chosen: list[int]) -> Float32:
    """Squared distances of all (m, C), whose squared norms are (m,), to some: (m, len(chosen)); of equals 0."""
    scale = norms[:, None] + norms[chosen]
    squared: Float32 = points @ points[chosen].T  # the other way round BLAS would copy all points
    squared *= -2
    squared += scale
    scale *= _NEAR
    near = np.nonzero(squared < scale)
    apart = points[near[0]].astype(np.float64) - points[np.take(chosen, near[1])]
    squared[near] = (apart**2).sum(axis=1)
    return squared
