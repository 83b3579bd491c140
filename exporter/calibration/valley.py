"""Two modes of norms and the valley between them: whether a few patches stand apart from the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.calibration.tally import BINS, OCTAVES, PER_OCTAVE

Int64 = npt.NDArray[np.int64]

STRAY = 0.01
"""Patches that may lie in the valley, as a share of those beyond it."""
MIN_VALLEY = 1.3
"""Ratio of the valley's far edge to its near edge, at least; between patches of one mode there are narrower ones."""
MIN_GAP = 2.0
"""Ratio of the valley's far edge to the median, at least: clean patches vary with content, dark ones reach 1.4."""
MOST = 1 / 3
"""Share of the patches beyond the valley, at most: a median of more would not be that of normal patches."""


@dataclass(frozen=True)
class Valley:
    """A stretch of ratios to the median that hardly any patch has, with patches on both sides of it."""

    side: str
    """`high` or `low`: where the fewer patches lie, which stand apart."""
    near: float
    """Ratio at the edge towards the median."""
    far: float
    """Ratio at the edge towards the patches that stand apart."""
    beyond: int
    """Number of patches that stand apart."""
    share: float
    """The same as a share of all patches."""
    gap: float
    """Median norm of the patches that stand apart to that of the others, or the reverse on the low side: above 1."""
    bimodality: float
    """Ashman's D of the logarithms of the norms, split at the valley's middle: √2 · |m₁ - m₂| / √(s₁² + s₂²)."""

    @property
    def width(self) -> float:
        """Ratio of the outer edge to the inner edge, above 1 on either side."""
        return max(self.far / self.near, self.near / self.far)

    @property
    def stands_apart(self) -> bool:
        """Whether the patches beyond can be artifacts: wide enough a valley and gap, and not too many patches."""
        far = max(self.far, 1 / self.far)
        return self.width >= MIN_VALLEY and far >= MIN_GAP and self.share <= MOST

    @property
    def middle(self) -> float:
        """The λ of `ratio:λ` in the middle of the valley, on a logarithmic scale."""
        middle = math.sqrt(self.near * self.far)
        return middle if self.side == "high" else 1 / middle


def find_valley(counts: Int64, side: str) -> Valley | None:
    """The widest valley on one side of the median.

    Args:
        counts: (BINS,), of patches by their ratio to the median.
        side: `high` or `low`.

    Returns:
        None if there is no stretch of bins with patches on both sides of it that holds at most `STRAY` of those beyond.
    """
    outward = counts[BINS // 2 :] if side == "high" else counts[: BINS // 2][::-1]
    total = int(counts.sum())
    inner = total - int(outward.sum())
    until = np.concatenate([[0], np.cumsum(outward)])  # patches in the first j bins, of the side
    best: tuple[int, int] | None = None
    for j in range(1, len(outward)):
        beyond = until[-1] - until[j]
        if not outward[j] or beyond * 2 > total:
            continue
        # The first bin from which on, up to j, there are few enough patches.
        i = int(np.searchsorted(until, until[j] - STRAY * beyond, side="left"))
        i = max(i, 1)
        if i < j and inner + until[i] > 0 and (best is None or j - i > best[1] - best[0]):
            best = i, j
    if best is None:
        return None
    i, j = best
    beyond = int(until[-1] - until[j])
    sign = 1 if side == "high" else -1
    whole = (np.arange(BINS) + 0.5) / PER_OCTAVE - OCTAVES
    middle = sign * (i + j) / 2 / PER_OCTAVE
    is_normal = whole < middle if side == "high" else whole > middle
    (m1, s1, mid1), (m2, s2, mid2) = (_mode(whole[part], counts[part]) for part in (is_normal, ~is_normal))
    spread = math.sqrt(s1**2 + s2**2)
    return Valley(
        side=side,
        near=2.0 ** (sign * i / PER_OCTAVE),
        far=2.0 ** (sign * j / PER_OCTAVE),
        beyond=beyond,
        share=beyond / total,
        gap=2.0 ** abs(mid2 - mid1),
        bimodality=math.sqrt(2) * abs(m1 - m2) / spread,
    )


def _mode(values: npt.NDArray[np.float64], counts: Int64) -> tuple[float, float, float]:
    """Mean, standard deviation (a bin's own at least) and median of binned values."""
    total = counts.sum()
    mean = float((values * counts).sum() / total)
    variance = float((counts * (values - mean) ** 2).sum() / total) + 1 / (12 * PER_OCTAVE**2)
    median = float(values[np.searchsorted(np.cumsum(counts), total / 2)])
    return mean, math.sqrt(variance), median
