"""Agreement of clusters with known classes: ACC, NMI and ARI as in the clustering literature."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Metrics:
    """Agreement of n labels with n classes; 1 is perfect for each."""

    acc: float
    """Share of points in the class of their cluster, each class given to one cluster at most, as well as can be."""
    nmi: float
    """Normalised mutual information, by the arithmetic mean of the entropies, 0 to 1."""
    ari: float
    """Adjusted Rand index: 0 on average for random labels, below 0 for worse."""
    classes: tuple[str, ...]
    """The classes, sorted."""
    class_of_cluster: tuple[str | None, ...]
    """The class that ACC gives each cluster; none for those that are left over where k exceeds the classes."""


def folder_classes(roots: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The class of each image: the name of the folder that it lies in."""
    return [PurePosixPath(root, path).parent.name for root, path in zip(roots, paths, strict=True)]


def contingency(
    classes: npt.NDArray[np.intp], labels: npt.NDArray[np.integer], n_classes: int, k: int
) -> npt.NDArray[np.int64]:
    """The number of points by class and cluster: (n_classes, k), from (n,) and (n,)."""
    cells = np.bincount(classes * k + labels.astype(np.intp), minlength=n_classes * k)
    return cells.reshape(n_classes, k)


def score(classes: Sequence[str], labels: npt.NDArray[np.integer], k: int) -> Metrics:
    """Compare the clusters of n points (n,), 0 to k - 1, with their classes.

    A label of -1, noise, is no cluster: ACC counts it as wrong; to NMI and ARI all noise is one more cluster.

    Raises:
        ValueError: there are no points, or not as many classes as labels.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if not len(classes) == len(labels) > 0:
        raise ValueError(f"{len(classes)} classes for {len(labels)} labels")
    names, truth = np.unique(np.asarray(classes, dtype=object), return_inverse=True)
    table = contingency(truth[labels >= 0], labels[labels >= 0], len(names), k)
    matched, clusters = linear_sum_assignment(table, maximize=True)
    class_of_cluster: list[str | None] = [None] * k
    for row, column in zip(matched.tolist(), clusters.tolist(), strict=True):
        class_of_cluster[column] = str(names[row])
    with warnings.catch_warnings():
        # It asks whether numbers were meant where most points have a class of their own.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        nmi = normalized_mutual_info_score(truth, labels)
        ari = adjusted_rand_score(truth, labels)
    return Metrics(
        acc=float(table[matched, clusters].sum() / len(labels)),
        nmi=float(nmi),
        ari=float(ari),
        classes=tuple(str(name) for name in names),
        class_of_cluster=tuple(class_of_cluster),
    )
