"""Where k-means starts: greedy k-means++, on a sample where there are many points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.clustering.points import Float64, Points

SAMPLE = 4096
"""Points that are looked at, at least; of fewer, all."""
SAMPLE_PER_CLUSTER = 4
"""Points that are looked at for each centroid, at least."""

_PAIRS = 1 << 24
"""Squared distances that exist at a time, at most, if one step needs no more: 64 MiB."""
_DRAWN = 512
"""Candidates whose distances are computed at a time, at most: a product of matrices gains nothing from more."""


def sample_rows(n: int, k: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The rows of n points to look for k centroids in, drawn without replacement, in order."""
    count = min(n, max(SAMPLE, SAMPLE_PER_CLUSTER * k))
    return np.arange(n) if count == n else np.sort(generator.choice(n, count, replace=False))


def plus_plus(points: Points, k: int, generator: np.random.Generator) -> Float64:
    """Choose k of m points, m >= k, far from each other: (k, C) float64.

    Each is drawn with probability in proportion to the squared distance to the nearest one before; of `2 + ln k`
    such candidates the one that lowers the sum of those the most is taken, as in scikit-learn. Where every point equals
    one that was drawn, the rest are any others.

    The candidates of several steps are drawn at once, so that their distances are one product of matrices. After the
    first of these steps, distances are smaller than those by which the candidates were drawn: each candidate stays with
    the probability new / old of its squared distance. What stays is a draw by the new ones (rejection sampling), so the
    starts have the same distribution as if each step had drawn its own.

    Raises:
        InputError: as `check_squares`.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007; rejection: Cohen-Addad et
    al., "Fast and accurate k-means++ via rejection sampling", 2020.
    """
    m, candidates = len(points), 2 + int(np.log(k))
    most = max(1, min(_PAIRS // m, _DRAWN) // candidates)
    squared_from = points.squared_from()
    chosen = [int(generator.integers(m))]
    closest = squared_from(np.array(chosen))[0]  # (m,): to the nearest of those chosen
    steps = 1
    while len(chosen) < k:
        cumulative = np.cumsum(closest, dtype=np.float64)
        if cumulative[-1] <= 0:
            others = np.setdiff1d(np.arange(m), chosen)
            chosen += generator.choice(others, k - len(chosen), replace=False).tolist()
            break
        steps = min(steps, k - len(chosen))
        shares = generator.random((2, steps * candidates))
        drawn = np.searchsorted(cumulative, shares[0] * cumulative[-1], side="right")
        drawn = np.minimum(drawn, m - 1)  # the last product may be rounded up
        stays_below = shares[1] * closest[drawn]
        squared = squared_from(drawn)  # (steps * candidates, m)
        first, done = 0, 0
        while done < steps:
            stay = first + np.flatnonzero(stays_below[first:] < closest[drawn[first:]])[:candidates]
            if len(stay) < candidates:
                break
            lowered = np.minimum(closest, squared[stay])  # (candidates, m)
            best = int(lowered.sum(axis=1, dtype=np.float64).argmin())
            chosen.append(int(drawn[stay[best]]))
            closest = lowered[best]
            first, done = int(stay[-1]) + 1, done + 1
        # Where distances fall fast, few candidates stay: then fewer are drawn at once.
        steps = min(2 * steps, most) if done == steps else max(1, done)
    return points.rows(np.array(chosen))
