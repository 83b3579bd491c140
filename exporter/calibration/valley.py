"""Modes of norms and the valleys between them: whether a few patches stand apart from the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.calibration.tally import BINS, OCTAVES, PER_OCTAVE

Int64 = npt.NDArray[np.int64]

WINDOW = 12
"""Bins of the narrowest valley, which is 1.3 times as wide as its near edge."""
OVERLAP = 0.2
"""Patches that may lie in the narrowest valley, as a share of those beyond it; the tail of one mode has far more."""
STRAY = 0.01
"""Patches, as a share of those beyond, that are too few to make a mode or to end a valley."""
LEAST_MODE = 0.1
"""Patches between two valleys, as a share of those beyond both, that make a mode of their own."""


@dataclass(frozen=True)
class Valley:
    """A stretch of ratios to the median that few patches have, with patches on both sides of it."""

    side: str
    """`high` or `low`: where the fewer patches lie, which stand apart."""
    near: float
    """Ratio at the edge towards the median."""
    far: float
    """Ratio at the edge towards the patches that stand apart."""
    share: float
    """Share of all patches that lie beyond the valley's middle."""
    overlap: float
    """Patches in the emptiest window of the valley, as a share of those beyond it."""
    gap: float
    """Median norm of the next mode beyond to that of the patches within, or the reverse on the low side: above 1."""
    bimodality: float
    """Ashman's D of the logarithms of the norms, split at the valley's middle: √2 · |m₁ - m₂| / √(s₁² + s₂²)."""

    @property
    def width(self) -> float:
        """Ratio of the outer edge to the inner edge, above 1 on either side."""
        return max(self.far / self.near, self.near / self.far)

    @property
    def middle(self) -> float:
        """The λ of `ratio:λ` in the middle of the valley, on a logarithmic scale."""
        middle = math.sqrt(self.near * self.far)
        return middle if self.side == "high" else 1 / middle


def find_valleys(counts: Int64, side: str) -> list[Valley]:
    """The valleys on one side of the median, the nearest first; of several modes there are several.

    Args:
        counts: (BINS,), of patches by their ratio to the median.
        side: `high` or `low`.
    """
    along = counts if side == "high" else counts[::-1]  # outwards from the middle on
    total, found = int(counts.sum()), []
    stretches: list[tuple[int, int, float]] = []
    splits: list[int] = []
    for one in _stretches(along[BINS // 2 :]):
        split = BINS // 2 + (one[0] + one[1]) // 2
        beyond = along[split:].sum()
        least = max(LEAST_MODE, one[2] / OVERLAP) * beyond  # few in the valley for the mode before it, too
        if not splits or along[splits[-1] : split].sum() >= least:
            stretches.append(one)
            splits.append(split)
    for (near, far, overlap), split, following in zip(stretches, splits, [*splits, BINS][1:], strict=True):
        within, beyond = along[:split], along[split:]
        if not (within.any() and along[split:following].any()) or beyond.sum() * 2 > total:
            continue
        (m1, s1), (m2, s2) = _moments(within, 0), _moments(beyond, split)
        sign = 1 if side == "high" else -1
        found.append(
            Valley(
                side=side,
                near=2.0 ** (sign * near / PER_OCTAVE),
                far=2.0 ** (sign * far / PER_OCTAVE),
                share=float(beyond.sum() / total),
                overlap=overlap,
                gap=2.0 ** (_median(along[split:following], split) - _median(within, 0)),
                bimodality=math.sqrt(2) * abs(m1 - m2) / math.sqrt(s1**2 + s2**2),
            )
        )
    return found


def _stretches(outward: Int64) -> Iterator[tuple[int, int, float]]:
    """First bin, last bin (exclusive) and overlap of each valley, from bin 1 on.

    A window of `WINDOW` bins may lie in a valley if few patches are in it for the number of those beyond it. Of such
    windows in a row, those with the fewest patches, but for a few strays, are a valley.
    """
    until = np.concatenate([[0], np.cumsum(outward)])  # patches in the first j bins
    starts = np.arange(1, len(outward) - WINDOW)
    inside = until[starts + WINDOW] - until[starts]
    beyond = until[-1] - until[starts + WINDOW]
    stray = STRAY * beyond
    # Two standard deviations fewer than were counted: of a handful of patches, none may lie in between.
    few = (beyond > 0) & (inside <= np.maximum(OVERLAP * (beyond - 2 * np.sqrt(beyond)), stray))
    first = 0
    while first < len(starts):
        if not few[first]:
            first += 1
            continue
        least, stop = inside[first], first
        while stop < len(starts) and few[stop] and inside[stop] <= least + max(stray[stop], 3 * math.sqrt(least)):
            least = min(least, inside[stop])
            stop += 1
        lowest = first + np.flatnonzero(inside[first:stop] <= least + stray[first:stop])
        yield int(starts[lowest[0]]), int(starts[lowest[-1]]) + WINDOW, float(least / beyond[lowest[0]])
        first = stop
        while first < len(starts) and (not few[first] or inside[first] >= inside[first - 1]):  # up the next mode
            first += 1


def _median(counts: Int64, start: int) -> float:
    """Median of binned values, in octaves; `start` is the number of the first bin."""
    return (start + int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 0.5) / PER_OCTAVE - OCTAVES


def _moments(counts: Int64, start: int) -> tuple[float, float]:
    """Mean and standard deviation (a bin's own at least) of binned values, in octaves."""
    values = (start + np.arange(len(counts)) + 0.5) / PER_OCTAVE - OCTAVES
    mean = float((values * counts).sum() / counts.sum())
    variance = float((counts * (values - mean) ** 2).sum() / counts.sum()) + 1 / (12 * PER_OCTAVE**2)
    return mean, math.sqrt(variance)
