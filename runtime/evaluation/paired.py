"""Two models' scores over the same seeds: how far apart they are, and whether chance would do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """A model's scores less the baseline's, seed by seed.

    What chance is here: k-means' seeds, on one and the same set of images. A small p says that other seeds would show
    the difference again, nothing of other images. No correction is made for the number of tests.
    """

    mean: float
    """Of the differences."""
    low: float | None
    """Of the confidence interval of `mean`, by Student's t; none with a single seed."""
    high: float | None
    t_p: float | None
    """Paired t-test, two-sided; none with a single seed, or where every difference is the same."""
    wilcoxon_p: float | None
    """Wilcoxon's signed-rank test, two-sided, where no two differences tie never below 2 / 2ⁿ of n; none as `t_p`."""


_DIGITS = 12
"""Decimals of a difference that count: 0.215 - 0.211 and 0.211 - 0.207 are one rank, whatever their last bits."""


def paired(scores: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare n scores with n of the baseline, by the same seeds.

    Raises:
        ValueError: there are none, or not as many.
    """
    if not len(scores) == len(baseline) > 0:
        raise ValueError(f"{len(scores)} scores beside {len(baseline)}")
    from scipy import stats

    differences = np.asarray(scores, np.float64) - np.asarray(baseline, np.float64)
    mean = float(differences.mean())
    if len(differences) == 1:
        return Paired(mean, None, None, None, None)
    spread = float(differences.std(ddof=1))
    if spread <= 10.0**-_DIGITS:  # rounding alone: neither test has anything to go by
        return Paired(mean, mean, mean, None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread / len(differences) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few seeds with ties: it says that its p is approximate
        wilcoxon = stats.wilcoxon(differences.round(_DIGITS)).pvalue
    t_p = stats.ttest_rel(scores, baseline).pvalue
    return Paired(mean, mean - half, mean + half, float(t_p), float(wilcoxon))
