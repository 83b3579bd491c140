"""How well embeddings cluster, by the paper's protocol: k-means with k = the number of classes, over several seeds.

The test split is embedded; ACC, NMI and ARI are of all its images. Whether the paper normalised its embeddings isn't
known, so both are done. Each seed's clustering is that of `clustering.kmeans`: the best of several k-means++ starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from runtime.clustering.clusters import Clustering
from runtime.clustering.kmeans import STARTS, cluster
from runtime.clustering.metrics import contingency, score
from runtime.clustering.points import normalize_rows
from runtime.contract.errors import InputError, UsageError
from runtime.contract.keys import location
from runtime.contract.progress import NowAndThen, after
from runtime.evaluation.cache import EmbeddedDataset
from runtime.evaluation.differences import OverImages, OverSeeds, over_images, over_seeds
from runtime.evaluation.resampling import SeedLabels, resampled_scores, seeds_used

Float64 = npt.NDArray[np.float64]
Normalisation = Literal["raw", "l2"]
NORMALISATIONS: tuple[Normalisation, ...] = ("raw", "l2")
"""Embeddings as the model gives them, and each divided by its L2 norm."""
METRICS = ("acc", "nmi", "ari")


@dataclass(frozen=True)
class Score:
    """One seed's clustering beside the classes."""

    seed: int
    acc: float
    nmi: float
    ari: float
    inertia: float
    iterations: int
    """Lloyd iterations of the start that was kept."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on one data set, its embeddings normalised one way: m images, k classes, s seeds."""

    embedded: EmbeddedDataset
    """Model, data set, keys, labels and vectors (m, C), as the model gave them."""
    normalisation: Normalisation
    starts: int
    """Number of starts of each seed's k-means, the best of which is kept."""
    scores: tuple[Score, ...]
    """The scores of each seed, in order."""
    median: int
    """Which of `scores` has the median ACC, of two the lower: what follows is that seed's."""
    clustering: Clustering
    """Its clusters, the largest first; distances are those of the normalised vectors."""
    classes: tuple[str, ...]
    """k classes that occur among the images."""
    truth: npt.NDArray[np.int32]
    """(m,): the class of each image, 0 to k - 1."""
    class_of_cluster: npt.NDArray[np.int32]
    """(k,): the class that Hungarian matching gives each cluster, each class once."""
    confusion: npt.NDArray[np.int64]
    """(k, k): images of class i in the cluster that was given class j; ACC is its trace by its sum."""
    by_seed: tuple[SeedLabels, ...]
    """Clusterings of the first seeds, `seeds_used` of them, for scores on resampled images."""
    seconds: float
    """Seconds that k-means took for all seeds."""

    @property
    def k(self) -> int:
        """Number of clusters, and of classes."""
        return len(self.classes)

    @cached_property
    def resampled(self) -> Mapping[str, Float64]:
        """Scores on resamples of the images, by metric: (RESAMPLES,); the same resamples for every model."""
        return resampled_scores(self.truth, self.by_seed, self.scores[0].seed)

    def values(self, metric: str) -> Float64:
        """(s,): one of `METRICS` by seed."""
        return np.array([getattr(one, metric) for one in self.scores], np.float64)

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return float(self.values(metric).mean())

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over the seeds, of a sample (s - 1); none with a single seed."""
        values = self.values(metric)
        return float(values.std(ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """A model beside the baseline, on the same images, normalised the same way."""

    model: Evaluation
    baseline: Evaluation
    over_seeds: dict[str, OverSeeds]
    """By metric: what k-means' seeds may have done."""
    over_images: dict[str, OverImages]
    """By metric: what the choice of the images may have done."""


def evaluate(
    embedded: EmbeddedDataset,
    normalisation: Normalisation,
    seeds: Sequence[int],
    *,
    n_init: int = STARTS,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Cluster a data set's embeddings once for each seed, and score the clusters.

    Args:
        embedded: the embeddings and their classes.
        normalisation: of the embeddings.
        seeds: of k-means; each by itself gives the same clusters on one machine.
        n_init: k-means++ starts of each; the one of the lowest inertia is kept.
        tell: called from time to time with the progress in words.

    Raises:
        InputError: they can't be clustered: fewer distinct embeddings than classes, or one of zeros; or all are of one
            class.
    """
    names, present = embedded.dataset.classes, np.unique(embedded.labels)
    classes = tuple(names[label] for label in present)
    truth = np.searchsorted(present, embedded.labels).astype(np.int32)
    what = f"{embedded.dataset.name}, {embedded.name}, {normalisation}"
    if len(classes) < 2:
        raise InputError(
            f"{what}: all {len(truth):,} images are of one class, {classes[0]!r}: there is nothing to score"
        )
    start = time.monotonic()
    points = points_of(embedded, normalisation)
    clusterings = _cluster_all(points, len(classes), seeds, n_init, lambda done: tell(f"{what}: {done}"), what)
    named = [classes[label] for label in truth]
    results = [score(named, one.labels, len(classes)) for one in clusterings]
    scores = tuple(
        Score(seed, got.acc, got.nmi, got.ari, one.inertia, one.iterations)
        for seed, got, one in zip(seeds, results, clusterings, strict=True)
    )
    median = int(np.argsort([one.acc for one in scores], kind="stable")[(len(scores) - 1) // 2])
    number = {name: label for label, name in enumerate(classes)}
    used = seeds_used(len(seeds), len(truth))
    class_of_cluster = np.array([number[str(name)] for name in results[median].class_of_cluster], np.int32)
    by_seed = tuple(
        SeedLabels(one.labels, np.array([number[str(name)] for name in got.class_of_cluster])[one.labels] == truth)
        for got, one in zip(results[:used], clusterings[:used], strict=True)
    )
    by_cluster = contingency(truth.astype(np.intp), clusterings[median].labels, len(classes), len(classes))
    confusion = np.zeros_like(by_cluster)
    confusion[:, class_of_cluster] = by_cluster
    return Evaluation(
        embedded=embedded,
        normalisation=normalisation,
        starts=n_init,
        scores=scores,
        median=median,
        clustering=clusterings[median],
        classes=classes,
        truth=truth,
        class_of_cluster=class_of_cluster,
        confusion=confusion,
        by_seed=by_seed,
        seconds=time.monotonic() - start,
    )


def compare(model: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare two evaluations of the same images, by the same seeds.

    Raises:
        ValueError: they are not.
    """
    if not np.array_equal(model.embedded.rows, baseline.embedded.rows):
        raise ValueError("evaluations of other images")
    seeds = {metric: over_seeds(list(model.values(metric)), list(baseline.values(metric))) for metric in METRICS}
    images = {
        metric: over_images(seeds[metric].mean, model.resampled[metric], baseline.resampled[metric], len(model.by_seed))
        for metric in METRICS
    }
    return Comparison(model, baseline, seeds, images)


def points_of(embedded: EmbeddedDataset, normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """The points to cluster, (m, C) float32; raises InputError if an embedding of zeros has no direction."""
    if normalisation == "raw":
        return embedded.vectors
    keys = embedded.keys
    return normalize_rows(embedded.vectors, lambda row: location(*keys[row]))


def _cluster_all(
    points: npt.NDArray[np.float32], k: int, seeds: Sequence[int], n_init: int, tell: Callable[[str], None], what: str
) -> list[Clustering]:
    """A clustering for each seed, one after the other: each takes every core."""
    found: list[Clustering] = []
    say = NowAndThen(tell)
    for number, seed in enumerate(seeds, 1):
        try:
            found.append(cluster(points, k, seed, n_init=n_init, tell=after(f"seed {number} of {len(seeds)}, ", say)))
        except UsageError as error:
            raise InputError(f"{what}: can't be clustered into {k} ({error})") from error
    return found
