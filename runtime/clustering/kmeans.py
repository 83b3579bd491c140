"""k-means: k-means++ starts, Lloyd's iterations, the best start kept; the same bytes however many threads there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from runtime.clustering.clusters import Clustering, arranged
from runtime.clustering.lloyd import Fit, lloyd
from runtime.clustering.options import DEVICE_WORDS, DEVICES
from runtime.clustering.points import Float32, Float64, NumpyPoints, Points, distances_to
from runtime.clustering.seeding import plus_plus, sample_rows
from runtime.contract.errors import UsageError
from runtime.contract.progress import after

STARTS = 10
"""k-means++ starts; the one of the lowest inertia is kept."""
MAX_ITERATIONS = 300
"""Lloyd iterations of a start at most: scikit-learn's own limit."""

AHEAD = 8
"""One point in so many is in the sample that the first iterations of a start look at."""
AHEAD_PER_CLUSTER = 25
"""Points for each cluster in that sample, at least."""
AHEAD_LEAST = 8192
"""Points in that sample, at least."""
AHEAD_ITERATIONS = 0.75
"""Share of a start's iterations that look at the sample, at most."""


def check_k(points: Float32, k: int) -> None:
    """Check that n points (n, C) can form k clusters.

    Raises:
        UsageError: k is below 1, or above the number of points or of distinct points.
    """
    if k < 1:
        raise UsageError(f"--k {k}: must be 1 or more")
    if k > len(points):
        raise UsageError(f"--k {k}: there are only {len(points)} embeddings; choose no more")
    distinct: set[bytes] = set()
    for row in points:  # few rows as a rule: it stops at k
        distinct.add(hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest())  # + 0: -0 becomes 0
        if len(distinct) == k:
            return
    raise UsageError(f"--k {k}: {len(points)} embeddings, but only {len(distinct)} distinct ones; choose no more")


def cluster(
    points: Float32,
    k: int,
    seed: int = 0,
    *,
    n_init: int = STARTS,
    max_iter: int = MAX_ITERATIONS,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
) -> Clustering:
    """Cluster n points (n, C) by k-means.

    The same points, k, seed and device give the same bytes on one machine, on the CPU with any number of threads.

    Args:
        points: the embeddings; they are neither copied nor changed.
        k: number of clusters.
        seed: seed of the starts.
        n_init: number of starts; that of the lowest inertia is kept, the first among equals.
        max_iter: largest number of Lloyd iterations of each start; with many points the first ones look at a sample.
        device: `cpu` for numpy, or another word of `runtime.clustering.options.DEVICES`.
        tell: called after each iteration with the progress in words.

    Raises:
        UsageError: as `check_k`, there is no such kind of device, or points lie so close together that fewer than k
            clusters come out.
        BackendError: there is no such device, or it lacks memory.
    """
    check_k(points, k)
    where = _on(points, device)
    spread = where.spread()
    best: tuple[float, Fit, Float64] | None = None
    for number, generator in enumerate(np.random.default_rng(seed).spawn(n_init), 1):
        say = after(f"start {number} of {n_init}: ", tell)
        say("choosing centroids")
        rows = sample_rows(len(points), k, generator)
        fit = _fit(where, plus_plus(where.choose(rows), k, generator), max_iter, spread, generator, say)
        distances = distances_to(points, fit.centroids, fit.labels)
        inertia = float((distances**2).sum())
        if best is None or inertia < best[0]:
            best = inertia, fit, distances
    assert best is not None
    _, fit, distances = best
    found = arranged(fit.labels, distances, fit.centroids, fit.iterations)
    if (filled := len(found.sizes)) < k:
        raise UsageError(
            f"--k {k}: only {filled} clusters came out, the embeddings are too nearly equal; choose no more"
        )
    return found


def _fit(
    where: Points,
    start: Float64,
    max_iter: int,
    spread: float,
    generator: np.random.Generator,
    tell: Callable[[str], None],
) -> Fit:
    """Lloyd's iterations from one start: the first ones faster where that can be, the last ones on all points."""
    near, iterations = _approach(where, start, int(AHEAD_ITERATIONS * max_iter), spread, generator, tell)
    del start  # thousands of centroids are megabytes
    fit = lloyd(where, near, max_iter - iterations, spread, tell)
    return replace(fit, iterations=iterations + fit.iterations)


def _approach(
    where: Points,
    start: Float64,
    max_iter: int,
    spread: float,
    generator: np.random.Generator,
    tell: Callable[[str], None],
) -> tuple[Float64, int]:
    """Centroids (k, C) after at most `max_iter` iterations on a sample of many points, and the number of iterations.

    Far from its end an iteration moves centroids by more than a sample errs, at an eighth of the time. A centroid that
    is nearest to none of the sample stays: it may be the only one of points so rare that the sample has none of them.
    """
    size = max(len(where) // AHEAD, AHEAD_PER_CLUSTER * len(start), AHEAD_LEAST)
    if not max_iter or size > len(where) // 4:
        return start, 0
    rows = np.sort(generator.choice(len(where), size, replace=False))
    fit = lloyd(where.choose(rows), start, max_iter, spread, after("on a sample, ", tell), fill=False)
    return fit.centroids, fit.iterations


def _on(points: Float32, device: str) -> Points:
    """The points on a device: as `NumpyPoints` on the CPU, otherwise as `TorchPoints`."""
    if device == "cpu":
        return NumpyPoints(points)
    if not DEVICES.fullmatch(device):
        raise UsageError(f"--device {device}: must be {DEVICE_WORDS}")
    from runtime.clustering.torch_points import TorchPoints  # torch, which production on a CPU lacks

    return TorchPoints(points, device)
