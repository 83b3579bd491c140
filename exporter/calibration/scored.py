"""NMI, ACC and ARI of the embeddings of each setting, where the images' classes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.clustering.kmeans import cluster
from runtime.clustering.metrics import folder_classes, score
from runtime.contract.errors import InputError, UsageError
from runtime.contract.keys import Key
from runtime.evaluation.differences import over_images
from runtime.evaluation.resampling import SeedLabels, resampled_scores, seeds_used

METRICS = ("nmi", "acc", "ari")


@dataclass(frozen=True)
class Scores:
    """Scores of one setting, by metric."""

    mean: dict[str, float]
    """Over the seeds of k-means."""
    difference: dict[str, tuple[float, float, float]]
    """Less the plain model's: the difference, and the ends of its interval over resampled images."""


def score_all(vectors: Sequence[npt.NDArray[np.float32]], keys: Sequence[Key], seeds: int) -> list[Scores]:
    """Cluster the embeddings of each setting, the plain model's last, and compare with the images' folders.

    Args:
        vectors: (n, C) for each setting.
        keys: of the n images.
        seeds: number of seeds of k-means.

    Raises:
        InputError: all images are of one class, or a setting's embeddings can't be clustered.
    """
    named = folder_classes([root for root, _ in keys], [path for _, path in keys])
    classes, truth = np.unique(np.asarray(named, dtype=object), return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"--labels folders: all {len(named)} images lie in one folder, {named[0]!r}: nothing to score")
    number = {str(name): place for place, name in enumerate(classes)}
    used = seeds_used(seeds, len(named))
    means, resampled = [], []
    for one in vectors:
        found: list[SeedLabels] = []
        values: dict[str, list[float]] = {metric: [] for metric in METRICS}
        for seed in range(seeds):
            try:
                labels = cluster(one, len(classes), seed).labels
            except UsageError as error:
                raise InputError(f"--labels folders: can't cluster into {len(classes)} ({error})") from error
            got = score(named, labels, len(classes))
            for metric in METRICS:
                values[metric].append(getattr(got, metric))
            matched = np.array([-1 if name is None else number[name] for name in got.class_of_cluster])
            found.append(SeedLabels(labels, matched[labels] == truth))
        means.append({metric: float(np.mean(values[metric])) for metric in METRICS})
        resampled.append(resampled_scores(truth.astype(np.int32), found[:used], 0))
    results = []
    for mean, scores in zip(means, resampled, strict=True):
        difference = {}
        for metric in METRICS:
            by = mean[metric] - means[-1][metric]
            images = over_images(by, scores[metric], resampled[-1][metric], used)
            difference[metric] = (by, images.low, images.high)
        results.append(Scores(mean, difference))
    return results
