import math

import numpy as np
import pytest

from exporter.calibration import tally, valley

MANY = 200_000


def counts(*modes: tuple[float, float, int], seed: int = 0) -> np.ndarray:
    """Histogram of lognormal modes: centre by the median, deviation in natural logarithms, number of patches."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([centre * np.exp(rng.normal(0, spread, n)) for centre, spread, n in modes])
    return np.bincount(tally.bins(values.astype(np.float32)), minlength=tally.BINS)


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
def test_one_mode_and_modes_below_twice_apart_are_no_artifacts(modes, side):
    found = valley.find_valley(counts(*modes), side)
    assert found is None or not found.stands_apart


@pytest.mark.parametrize("centre", [3, 5, 30, 100, 1 / 3, 1 / 10])
@pytest.mark.parametrize("n", [3, 40, MANY // 20])
def test_a_second_mode_is_found_with_its_share_gap_and_side(centre, n):
    side = "high" if centre > 1 else "low"
    found = valley.find_valley(counts((1, 0.05, MANY), (centre, 0.08, n)), side)
    assert found is not None
    assert found.stands_apart
    assert n * (1 - valley.STRAY) <= found.beyond <= n
    inside = 2.0**tally.OCTAVES  # what lies beyond counts as there
    expected = min(max(centre, 1 / centre), inside)
    assert found.gap == pytest.approx(expected, rel=0.1)
    assert 1.1 < found.middle < expected
    other = valley.find_valley(counts((1, 0.05, MANY), (centre, 0.08, n)), "low" if side == "high" else "high")
    assert other is None or not other.stands_apart


def test_bimodality_is_ashmans_d():
    found = valley.find_valley(counts((1, 0.1, MANY), (8, 0.2, MANY // 10)), "high")
    assert found is not None
    expected = math.sqrt(2) * math.log(8) / math.sqrt(0.1**2 + 0.2**2)
    assert found.bimodality == pytest.approx(expected, rel=0.03)


def test_a_few_strays_do_not_hide_a_valley():
    both = counts((1, 0.05, MANY), (20, 0.1, 1000), (4, 0.01, 8))
    found = valley.find_valley(both, "high")
    assert found is not None
    assert found.width > 8
    many = valley.find_valley(both + counts((4, 0.5, 500)), "high")
    assert many is None or many.width < 2.5


def test_half_of_the_patches_are_not_called_artifacts():
    found = valley.find_valley(counts((1, 0.02, 600), (9, 0.02, 400)), "high")
    assert found is not None
    assert not found.stands_apart
