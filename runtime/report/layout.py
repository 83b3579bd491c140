"""A map of embeddings: a seeded sample in the plane, by PCA, and by UMAP where it is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from runtime.contract.keys import Key
from runtime.report.content import Layout, Map

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MOST_POINTS = 2_000
"""Images on a map: as many as a telephone draws at once, and as many thumbnails as the file has room for."""
_LEAST_FOR_UMAP = 10


def draw_map(
    take: Callable[[npt.NDArray[np.intp]], Float32],
    labels: npt.NDArray[np.integer],
    key_of: Callable[[int], Key],
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Map:
    """Lay out n points, or `MOST_POINTS` of them drawn at random.

    Args:
        take: gives the points (m, C) of m rows in rising order, as they were clustered: an array's `__getitem__`, or
            what reads a store.
        labels: (n,): their clusters.
        key_of: gives the key of a row, under its root as it is now.
        classes: n classes, where they are known.
        seed: of the sample, and of UMAP.
    """
    rows = sample_rows(len(labels), MOST_POINTS, seed)
    sample = take(rows)
    layouts = [_pca(sample)]
    if len(rows) >= _LEAST_FOR_UMAP and importlib.util.find_spec("umap") is not None:
        layouts.append(_umap(sample, seed))
    return Map(
        keys=[key_of(row) for row in rows.tolist()],
        clusters=labels[rows].tolist(),
        layouts=layouts,
        labels=None if classes is None else [classes[row] for row in rows.tolist()],
        total=len(labels),
        seed=seed,
    )


def sample_rows(n: int, most: int, seed: int) -> npt.NDArray[np.intp]:
    """All of n rows, or `most` of them drawn at random, in rising order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def _pca(sample: Float32) -> Layout:
    """The first two principal components of m points (m, C), signs fixed so that the same points give the same map."""
    from scipy.linalg import eigh

    centred = sample - sample.mean(axis=0, dtype=np.float64)
    width = centred.shape[1]
    first = max(0, width - 2)
    spread, axes = eigh(centred.T @ centred, subset_by_index=(first, width - 1))
    axes, spread = axes[:, ::-1], np.maximum(spread[::-1], 0)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    positions = np.zeros((len(sample), 2))
    positions[:, : axes.shape[1]] = centred @ axes
    whole = float(np.einsum("ij,ij->", centred, centred))
    share = float(spread.sum()) / whole if whole > 0 else 1.0
    return Layout("PCA", positions, f"the two axes hold {min(share, 1):.0%} of the variance")


def _umap(sample: Float32, seed: int) -> Layout:
    """UMAP of m points (m, C), in one thread: so the same seed gives the same map."""
    neighbors = min(15, len(sample) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorflow that is not there, of numba, of threads, of eigenvalues
        from umap import UMAP

        made = UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(sample)
    return Layout(
        "UMAP",
        np.asarray(made, np.float64),
        f"{neighbors} neighbours; distances between far groups mean little",
    )
