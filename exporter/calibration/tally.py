"""Counts of the norms of all patches, in bounded memory: whatever the number of images, their size stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

PER_OCTAVE = 32
"""Bins between a norm and its double: a bin is 2.2 % wide."""
OCTAVES = 6
"""The bins reach from 1/64 of the median to 64 times the median; the first and the last hold what lies beyond."""
BINS = 2 * OCTAVES * PER_OCTAVE
LEVELS = (
    *(1.25, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0),
    *(20.0, 25.0, 30.0),
)
"""Thresholds λ of `ratio:λ` at which places and images are counted, and among which one is recommended."""
REMEMBERED = 1024
"""Images whose extremes are kept, so that some with artifacts can be looked at again."""
SIDES = ("high", "low")
WATCHED = 4.0
"""Times the mean attention of its image's patches from which on the CLS token is said to look at a patch."""


@dataclass(eq=False)
class Tally:
    """Counts over images, for each of L layers and S sources. A norm counts as its ratio to its image's median."""

    counts: Int64
    """(L, S, BINS): patches by ratio, on a logarithmic scale."""
    attention: Float64
    """(L, S, BINS, L): the CLS token's attention in each layer, mean over heads, summed over the patches of a bin."""
    images: Int64
    """(L, S, 2, LEVELS): images with a patch beyond the level, on the high and on the low side."""
    places: npt.NDArray[np.int32]
    """(L, S, 2, LEVELS, P): images in which a place of the grid is beyond the level."""
    watched: npt.NDArray[np.int32]
    """(L, P): images in which the CLS token looks at a place of the grid, in each layer."""
    looks: Float64
    """(L,): the CLS token's attention on the patches that it looks at, summed over the images."""
    medians: Float64
    """(L, S): sum of the images' median norms."""
    extremes: Float32
    """(REMEMBERED, L, S, 2): the first images' largest ratio, and the inverse of their smallest."""
    seen: int = 0
    """Number of images."""

    @staticmethod
    def empty(layers: int, sources: int, patches: int) -> Tally:
        """A tally of no image."""
        sides_and_levels = (layers, sources, len(SIDES), len(LEVELS))
        return Tally(
            np.zeros((layers, sources, BINS), np.int64),
            np.zeros((layers, sources, BINS, layers)),
            np.zeros(sides_and_levels, np.int64),
            np.zeros((*sides_and_levels, patches), np.int32),
            np.zeros((layers, patches), np.int32),
            np.zeros(layers),
            np.zeros((layers, sources)),
            np.zeros((REMEMBERED, layers, sources, len(SIDES)), np.float32),
        )

    def add(self, norms: Float32, attention: Float32) -> None:
        """Count some more images.

        Args:
            norms: (B, L, S, P).
            attention: (B, L, P), of the CLS token to each patch, mean over heads.
        """
        B, L, S, _ = norms.shape
        median = np.median(norms, axis=-1, keepdims=True)
        ratio = ratios(norms, median)
        place = bins(ratio) + BINS * np.arange(L * S).reshape(L, S, 1)
        flat = place.ravel()
        self.counts += np.bincount(flat, minlength=L * S * BINS).reshape(self.counts.shape)
        for layer in range(L):
            # A later layer's norms say nothing about an earlier one's attention.
            first = place[:, : layer + 1]
            weights = np.broadcast_to(attention[:, layer, None, None], first.shape).ravel()
            summed = np.bincount(first.ravel(), weights, minlength=(layer + 1) * S * BINS)
            self.attention[: layer + 1, :, :, layer] += summed.reshape(layer + 1, S, BINS)
        watched = attention >= WATCHED * attention.mean(axis=-1, keepdims=True)
        self.watched += watched.sum(axis=0, dtype=np.int32)
        self.looks += (attention * watched).sum(axis=(0, 2), dtype=np.float64)
        for number, level in enumerate(LEVELS):
            for side, beyond in enumerate((ratio > level, ratio < 1 / level)):
                self.places[:, :, side, number] += beyond.sum(axis=0, dtype=np.int32)
                self.images[:, :, side, number] += beyond.any(axis=-1).sum(axis=0)
        room = self.extremes[self.seen : self.seen + B]
        room[..., 0] = ratio.max(axis=-1)[: len(room)]
        room[..., 1] = 1 / np.maximum(ratio.min(axis=-1), 1e-30)[: len(room)]
        self.medians += median[..., 0].sum(axis=0, dtype=np.float64)
        self.seen += B


def ratios(norms: Float32, median: Float32) -> Float32:
    """Norms (..., P) divided by the median (..., 1); 1 if the median is 0 and the norm too."""
    tiny = np.float32(1e-30)
    found: Float32 = (norms + tiny) / (median + tiny)
    return found


def bins(ratio: Float32) -> Int64:
    """The bin of each ratio."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log2(ratio) + OCTAVES) * PER_OCTAVE)
    found: Int64 = np.clip(place, 0, BINS - 1).astype(np.int64)
    return found


def edges() -> Float64:
    """(BINS + 1,): the ratios between which the bins lie."""
    found: Float64 = 2.0 ** (np.arange(BINS + 1) / PER_OCTAVE - OCTAVES)
    return found
