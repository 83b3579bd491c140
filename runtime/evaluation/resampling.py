"""Scores of fixed clusterings on resampled images: how much a score depends on which images were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

RESAMPLES = 1000
"""Resamples of the images: the smallest p that they can give is 1 / 1,001."""
MOST_SEEDS = 10
"""Seeds whose clusterings are scored on each resample, at most."""
_WORK = 200_000_000
"""Images times resamples times seeds for one model, at most, unless one seed alone takes more: fewer seeds are used."""


@dataclass(frozen=True, eq=False)
class SeedLabels:
    """The clustering of one seed, beside the classes of m images."""

    labels: npt.NDArray[np.int32]
    """(m,): the cluster of each image, 0 to k - 1."""
    is_right: npt.NDArray[np.bool_]
    """(m,): whether the image is of the class that ACC's matching gives its cluster."""


def seeds_used(seeds: int, images: int, resamples: int = RESAMPLES) -> int:
    """Returns how many of the seeds are scored on each resample, which bounds the cost."""
    return max(1, min(seeds, MOST_SEEDS, _WORK // (images * resamples)))


def resampled_scores(
    truth: npt.NDArray[np.int32], clusterings: Sequence[SeedLabels], seed: int, resamples: int = RESAMPLES
) -> Mapping[str, Float64]:
    """Score clusterings on images that are drawn with replacement; the clusters and ACC's matching stay as they are.

    The same seed and number of images give the same resamples: two models that are scored so are paired.

    Args:
        truth: (m,) the class of each image, 0 and up.
        clusterings: one or more, of the m images.
        seed: of the draws.
        resamples: number of resamples.

    Returns:
        by metric (`acc`, `nmi`, `ari`) the mean over the clusterings: (resamples,).
    """
    n = len(truth)
    counted = np.arange(n + 1, dtype=np.float64)
    counted[1:] *= np.log(counted[1:])  # x log x of every count there can be
    tables = [_Table.of(truth, one.labels) for one in clusterings]
    right = np.mean([one.is_right for one in clusterings], axis=0)  # (m,)
    generator = np.random.default_rng(seed)
    found = {metric: np.empty(resamples) for metric in ("acc", "nmi", "ari")}
    for number in range(resamples):
        drawn = generator.integers(n, size=n)
        classes = np.bincount(truth[drawn])
        scores = [table.scores(drawn, classes, counted) for table in tables]
        found["acc"][number] = right[drawn].mean()
        found["nmi"][number], found["ari"][number] = np.mean(scores, axis=0)
    return found


@dataclass(frozen=True, eq=False)
class _Table:
    """The cells of the table of classes and clusters that hold an image."""

    cell: npt.NDArray[np.intp]
    """(m,): the cell of each image."""
    cluster: npt.NDArray[np.intp]
    """(cells,): the cluster of each cell."""

    @classmethod
    def of(cls, truth: npt.NDArray[np.int32], labels: npt.NDArray[np.int32]) -> _Table:
        k = int(labels.max()) + 1
        cells, cell = np.unique(truth.astype(np.intp) * k + labels, return_inverse=True)
        return cls(cell, cells % k)

    def scores(
        self, drawn: npt.NDArray[np.intp], classes: npt.NDArray[np.intp], counted: Float64
    ) -> tuple[float, float]:
        """NMI and ARI of some images, as scikit-learn has them.

        Args:
            drawn: the images' rows.
            classes: the number of these in each class.
            counted: x log x of each integer x.
        """
        n = len(drawn)
        cells = np.bincount(self.cell[drawn], minlength=len(self.cluster))
        clusters = np.bincount(self.cluster, weights=cells).astype(np.intp)
        of_classes, of_clusters, of_cells = (
            np.log(n) - counted[counts].sum() / n for counts in (classes, clusters, cells)
        )
        mean = (of_classes + of_clusters) / 2
        nmi = (of_classes + of_clusters - of_cells) / mean if mean > 0 else 1.0  # one class, one cluster: alike
        same, in_classes, in_clusters = (float((counts * (counts - 1)).sum()) for counts in (cells, classes, clusters))
        expected = in_classes * in_clusters / (n * (n - 1)) if n > 1 else 0.0
        most = (in_classes + in_clusters) / 2
        ari = (same - expected) / (most - expected) if most != expected else 1.0
        return float(nmi), ari
