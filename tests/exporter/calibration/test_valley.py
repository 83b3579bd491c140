import math

import numpy as np
import pytest

from exporter.calibration import tally, valley
from exporter.calibration.rule import MIN_GAP, MOST

MANY = 200_000


def counts(*modes: tuple[float, float, int], seed: int = 0) -> np.ndarray:
    """Histogram of lognormal modes: centre by the median, deviation in natural logarithms, number of patches."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([centre * np.exp(rng.normal(0, spread, n)) for centre, spread, n in modes])
    return np.bincount(tally.bins(values.astype(np.float32)), minlength=tally.BINS)


def nearest(*modes: tuple[float, float, int], side: str = "high", seed: int = 0) -> valley.Valley | None:
    return next(iter(valley.find_valleys(counts(*modes, seed=seed), side)), None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", ["high", "low"])
@pytest.mark.parametrize(
    "modes",
    [
        [(1, 0.02, MANY)],
        [(1, 0.1, MANY)],
        [(1, 0.3, MANY)],
        [(1, 0.1, 500)],
        [(1, 0.05, MANY), (1.4, 0.05, MANY // 50)],  # dark patches
        [(1, 0.05, MANY), (1.9, 0.02, MANY // 100)],
        [(1, 0.3, MANY), (2, 0.3, MANY // 3)],  # two modes, no valley
    ],
    ids=["narrow", "usual", "wide", "few", "dark", "below twice", "overlapping"],
)
def test_one_mode_and_modes_below_twice_apart_are_no_artifacts(modes, side, seed):
    found = nearest(*modes, side=side, seed=seed)
    assert found is None or found.gap < MIN_GAP


@pytest.mark.parametrize("centre", [3, 5, 30, 100, 1 / 3, 1 / 10])
@pytest.mark.parametrize("n", [3, 40, MANY // 20])
def test_a_second_mode_is_found_with_its_share_gap_and_side(centre, n):
    side = "high" if centre > 1 else "low"
    modes = (1, 0.05, MANY), (centre, 0.08, n)
    found = nearest(*modes, side=side)
    assert found is not None
    assert found.share == pytest.approx(n / (MANY + n))
    assert found.overlap <= valley.STRAY
    inside = 2.0**tally.OCTAVES  # what lies beyond counts as there
    expected = min(max(centre, 1 / centre), inside)
    assert found.gap == pytest.approx(expected, rel=0.1)
    assert 1.1 < found.middle < expected
    assert nearest(*modes, side="low" if side == "high" else "high") is None


@pytest.mark.parametrize(
    ("normal", "centre", "spread", "n", "least"),
    [
        (0.05, 2.5, 0.1, 4, 0.99),
        (0.05, 2.5, 0.2, 4, 0.99),
        (0.05, 3.0, 0.3, 4, 0.98),
        (0.15, 3.0, 0.2, 4, 0.98),
        (0.05, 2.2, 0.2, 50, 0.98),
        (0.15, 2.5, 0.1, 50, 0.99),
    ],
)
def test_a_weak_mode_of_wide_spread_is_parted_from_the_others(normal, centre, spread, n, least):
    """`n` of 256 patches have norms of `centre` medians; `least` is the share on the right side of the valley."""
    images, rng = 200, np.random.default_rng(0)
    others = np.exp(rng.normal(0, normal, images * (256 - n)))
    weak = centre * np.exp(rng.normal(0, spread, images * n))
    values = np.concatenate([others, weak]).astype(np.float32)
    (found,) = valley.find_valleys(np.bincount(tally.bins(values), minlength=tally.BINS), "high")
    assert found.gap == pytest.approx(centre, rel=0.05)
    flagged = values > found.middle
    assert flagged[len(others) :].mean() >= least
    assert flagged[len(others) :].sum() / flagged.sum() >= least


def test_two_kinds_beside_each_other_have_a_valley_each():
    near, far = valley.find_valleys(counts((1, 0.05, MANY), (4, 0.1, 800), (30, 0.1, 3200)), "high")
    assert 1.3 < near.middle < 3
    assert (near.gap, near.share) == (pytest.approx(4, rel=0.05), pytest.approx(4000 / (MANY + 4000)))
    assert 6 < far.middle < 20
    assert (far.gap, far.share) == (pytest.approx(30, rel=0.05), pytest.approx(3200 / (MANY + 4000)))


def test_bimodality_is_ashmans_d():
    found = nearest((1, 0.1, MANY), (8, 0.2, MANY // 10))
    assert found is not None
    expected = math.sqrt(2) * math.log(8) / math.sqrt(0.1**2 + 0.2**2)
    assert found.bimodality == pytest.approx(expected, rel=0.03)


def test_a_few_strays_neither_hide_a_valley_nor_make_one_of_their_own():
    (found,) = valley.find_valleys(counts((1, 0.05, MANY), (20, 0.1, 1000), (4, 0.01, 8)), "high")
    assert found.width > 8


def test_a_sparse_mode_of_wide_spread_is_one_mode():
    for seed in range(20):
        (found,) = valley.find_valleys(counts((1, 0.3, 3000), (30, 0.35, 200), seed=seed), "high")
        assert found.gap == pytest.approx(30, rel=0.15)


def test_half_of_the_patches_are_not_called_artifacts():
    found = nearest((1, 0.02, 600), (9, 0.02, 400))
    assert found is None or found.share > MOST
