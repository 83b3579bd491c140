"""How far two models' scores are apart, and whether chance would do: the chance of seeds, and that of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_DIGITS = 12
"""Decimals of a difference that count: 0.215 - 0.211 and 0.211 - 0.207 are one rank, whatever their last bits."""


@dataclass(frozen=True)
class OverSeeds:
    """A model's scores less the baseline's, seed by seed, on one and the same set of images.

    A small p says that other seeds of k-means would show the difference again, and nothing about other images. No
    correction is made for the number of tests.
    """

    mean: float
    """Mean of the differences."""
    low: float | None
    """Lower end of the confidence interval of `mean`, by Student's t; None with a single seed."""
    high: float | None
    t_p: float | None
    """Paired t-test, two-sided; None with a single seed, or where every difference is the same."""
    wilcoxon_p: float | None
    """Wilcoxon's signed-rank test, two-sided, where no two differences tie never below 2 / 2ⁿ of n; None as `t_p`."""


@dataclass(frozen=True)
class OverImages:
    """The same difference of means, on images that are drawn anew from those at hand; the clusterings stay.

    A small p says that other images of the same kind would show the difference again. No correction is made for the
    number of tests.
    """

    low: float
    """Lower end of the confidence interval of the difference."""
    high: float
    p: float | None
    """Share of resamples as far from the mean of all as the difference is from 0; None if no resample differs."""
    resamples: int
    seeds: int
    """Number of seeds whose clusterings were scored on each resample."""


def over_seeds(scores: Sequence[float], baseline: Sequence[float]) -> OverSeeds:
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
        return OverSeeds(mean, None, None, None, None)
    spread = float(differences.std(ddof=1))
    if spread <= 10.0**-_DIGITS:  # rounding alone: neither test has anything to go by
        return OverSeeds(mean, mean, mean, None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread / len(differences) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few seeds with ties: it says that its p is approximate
        wilcoxon = stats.wilcoxon(differences.round(_DIGITS)).pvalue
    t_p = stats.ttest_rel(scores, baseline).pvalue
    return OverSeeds(mean, mean - half, mean + half, float(t_p), float(wilcoxon))


def over_images(
    difference: float, scores: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64], seeds: int
) -> OverImages:
    """Compare scores (b,) on b resamples of the images with the baseline's on the same resamples.

    What counts is how the differences lie about their own mean: a resample holds images twice, which raises NMI and
    ARI by an amount of their own.

    Args:
        difference: of the scores on the images themselves.
        scores: of the model.
        baseline: of the baseline.
        seeds: number of seeds whose clusterings were scored.
    """
    resampled = scores - baseline
    about = (resampled - resampled.mean()).round(_DIGITS)
    if not about.any():
        return OverImages(difference, difference, None, len(about), seeds)
    low, high = np.quantile(about, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    as_far = int((np.abs(about) >= abs(round(difference, _DIGITS))).sum())
    return OverImages(
        difference + float(low), difference + float(high), (1 + as_far) / (1 + len(about)), len(about), seeds
    )
