"""Orders, times and ratios."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.benchmark.contestants import Contestant, Device
from scripts.benchmark.prepare import Check
from scripts.benchmark.worker import Refused, Worker

Quartiles = tuple[float, float, float]
"""First quartile, median, third quartile."""

PAUSE = 0.02
"""Seconds before each run: the threads of the contestant before spin for a while, waiting for work."""
MAX_ABS = 1e-4
"""Largest distance of a float32 embedding to eager PyTorch's, as in the exporter's own parity check."""
MIN_COSINES = {"fp16": 0.999, "bf16": 0.99}
"""Smallest cosine of an embedding in half precision and eager PyTorch's."""


@dataclass(frozen=True)
class Accuracy:
    """A contestant's embeddings beside eager PyTorch's."""

    max_abs: float
    min_cosine: float


@dataclass(frozen=True)
class Timing:
    """One contestant's part of a race."""

    name: str
    seconds: tuple[float, ...]
    """The time of each round."""
    ms: Quartiles
    ratio: Quartiles
    """The contestant's time divided by the reference's in the same round."""
    images_per_second: float
    accuracy: Accuracy


@dataclass(frozen=True)
class Race:
    """All contestants at one size and batch on one device."""

    size: str
    batch: int
    device: Device
    reference: str
    timings: tuple[Timing, ...]


def orders(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The orders of one cycle: all there are of up to three; of more, a Williams design.

    Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments", 1949.
    In one cycle each contestant has each place equally often, and follows each other one equally often.
    """
    n = len(names)
    if n <= 3:
        return list(itertools.permutations(names))
    zigzag = [0] + [(i + 1) // 2 if i % 2 else n - i // 2 for i in range(1, n)]  # 0, 1, n-1, 2, n-2, ...
    rows = [tuple(names[(start + step) % n] for step in zigzag) for start in range(n)]
    return rows if n % 2 == 0 else rows + [row[::-1] for row in rows]


def round_up(rounds: int, contestants: int) -> int:
    """The least number of rounds that are whole cycles of `orders`, `rounds` or more."""
    cycle = len(orders([""] * contestants))
    return -(-rounds // cycle) * cycle


def accuracy(contestant: Contestant, got: npt.NDArray[np.float32], check: Check) -> Accuracy:
    """Compare embeddings (S, C) with eager PyTorch's.

    Raises:
        Refused: they are another model's.
    """
    a, b = got.astype(np.float64), check.embedding.astype(np.float64)
    if a.shape != b.shape:
        raise Refused(f"wrong: embeddings of shape {a.shape}, expected {b.shape}")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found = Accuracy(float(np.abs(a - b).max()), float(((a * b).sum(axis=1) / norms).min()))
    lowest = MIN_COSINES.get(contestant.precision)
    right = found.max_abs <= MAX_ABS if lowest is None else found.min_cosine >= lowest
    if not right:  # NaN too
        limit = f"max abs at most {MAX_ABS}" if lowest is None else f"cosine at least {lowest}"
        raise Refused(f"wrong: max abs {found.max_abs:.2g}, cosine {found.min_cosine:.6f}; must be {limit}")
    return found


def race(workers: Sequence[Worker], rounds: int, tell: Callable[[int], None]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; `tell` is called after each round with the number of rounds done."""
    by_name = {worker.contestant.name: worker for worker in workers}
    cycle = orders(list(by_name))
    seconds: dict[str, list[float]] = {name: [] for name in by_name}
    for number in range(rounds):
        for name in cycle[number % len(cycle)]:
            time.sleep(PAUSE)
            seconds[name].append(by_name[name].seconds())
        tell(number + 1)
    return seconds


def timings(
    seconds: dict[str, list[float]], reference: str, batch: int, accuracies: dict[str, Accuracy]
) -> tuple[Timing, ...]:
    """Quartiles of times, and of the ratios to the reference, each taken within one round."""
    base = np.array(seconds[reference])
    results = []
    for name, values in seconds.items():
        times = np.array(values)
        ms = _quartiles(times * 1000)
        results.append(
            Timing(name, tuple(values), ms, _quartiles(times / base), batch * 1000 / ms[1], accuracies[name])
        )
    return tuple(results)


def _quartiles(values: npt.NDArray[np.float64]) -> Quartiles:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)
