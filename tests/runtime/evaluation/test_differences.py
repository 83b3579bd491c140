"""The comparison over seeds, on numbers worked out by hand and by scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from runtime.evaluation.differences import over_seeds


def test_five_differences_are_compared_as_in_a_textbook() -> None:
    found = over_seeds([11.0, 12.0, 13.0, 14.0, 15.0], [10.0] * 5)  # 1 to 5: mean 3, deviation sqrt(2.5)
    assert found.mean == 3
    error = math.sqrt(2.5 / 5)
    assert found.low == pytest.approx(3 - 2.776445 * error, abs=1e-5)  # Student's t, 4 degrees of freedom, 97.5 %
    assert found.high == pytest.approx(3 + 2.776445 * error, abs=1e-5)
    assert found.t_p == pytest.approx(0.013236, abs=1e-5)  # t = 3 / error = 4.2426
    assert found.wilcoxon_p == pytest.approx(2 / 2**5)  # all signs alike: 2 of 32 ways


def test_it_is_scipys_paired_tests() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(10), rng.random(10)
    found = over_seeds(one.tolist(), other.tolist())
    assert found.t_p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(one, other).pvalue)
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("images", [2_000, 10_000])
def test_differences_that_only_rounding_tells_apart_are_ties_to_wilcoxon(images) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        baseline, better = rng.integers(400, 440, 10), rng.integers(-4, 5, 10)  # right answers of so many images
        found = over_seeds(((baseline + better) / images).tolist(), (baseline / images).tolist())
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(better).pvalue)


def test_the_pairs_count_and_not_the_two_samples() -> None:
    baseline = np.linspace(0, 1, 10)
    better = baseline + 0.01 + 0.001 * np.tile([-1, 1], 5)  # always better by a little, within a large spread
    assert over_seeds(better.tolist(), baseline.tolist()).t_p < 1e-6
    assert stats.ttest_ind(better, baseline).pvalue > 0.9


def test_exchanging_the_models_changes_the_sign_alone() -> None:
    one, other = [0.5, 0.7, 0.6, 0.9], [0.4, 0.8, 0.5, 0.6]
    forth, back = over_seeds(one, other), over_seeds(other, one)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert (back.t_p, back.wilcoxon_p) == pytest.approx((forth.t_p, forth.wilcoxon_p))


@pytest.mark.parametrize(
    ("scores", "baseline", "mean"),
    [([0.5, 0.6], [0.5, 0.6], 0.0), ([0.6, 0.7, 0.8], [0.5, 0.6, 0.7], 0.1)],
    ids=["equal", "always the same difference"],
)
def test_without_any_spread_there_is_no_p(scores, baseline, mean) -> None:
    found = over_seeds(scores, baseline)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean, mean))
    assert (found.t_p, found.wilcoxon_p) == (None, None)


def test_a_single_seed_gives_a_difference_alone() -> None:
    found = over_seeds([0.6], [0.5])
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high, found.t_p, found.wilcoxon_p) == (None,) * 4


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 2.0])], ids=["none", "unequal"])
def test_nothing_to_compare_is_our_own_bug(one, other) -> None:
    with pytest.raises(ValueError, match="scores beside"):
        over_seeds(one, other)
