"""`--assign`: the clusters of an older run for new embeddings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.clustering.clusters import Clustering
from runtime.clustering.options import METRICS
from runtime.clustering.points import Float32, Float64, Int32
from runtime.clustering.results import CENTROIDS, SUMMARY
from runtime.contract.errors import InputError, UsageError, one_line
from runtime.store import Store
from runtime.store.npy_header import read_npy_header

_MAX_SUMMARY_BYTES = 1 << 26


@dataclass(frozen=True)
class OldClusters:
    """The centroids of an older run, and its summary."""

    path: Path
    centroids: Float32
    """(k, C)."""
    summary: Mapping[str, Any] | None
    """The summary of the run; None if none lies beside the centroids."""

    @property
    def metric(self) -> str | None:
        """The metric of the older run; None if it is not known."""
        return None if self.summary is None else str(self.summary.get("metric", "cosine"))

    @property
    def model_sha256(self) -> str | None:
        """The hash of the model that made the older run's embeddings; None if it is not known."""
        found = (self.summary or {}).get("source", {}).get("model_sha256")
        return None if found is None else str(found)


def load(path: Path) -> OldClusters:
    """Read centroids: `centroids.npy` or the folder of an older run.

    Raises:
        InputError: the centroids can't be read, or the summary beside them belongs to others.
    """
    file = path / CENTROIDS if path.is_dir() else path
    data = _bytes(file)
    summary = None
    beside = file.with_name(SUMMARY)
    if file.name == CENTROIDS and beside.is_file():
        summary = _summary(beside)
        if hashlib.sha256(data).hexdigest() != summary["files"][CENTROIDS]["sha256"]:
            raise InputError(f"{file} is not the one that {beside} describes; make both again with `cluster`")
    elif path.is_dir():
        raise InputError(f"{path} holds no {SUMMARY}, its run was cut short; make it again with `cluster`")
    return OldClusters(path, _centroids(data, file), summary)


def check_fit(old: OldClusters, store: Store, metric: str | None) -> tuple[str, str | None]:
    """Check that old clusters fit new embeddings; returns the metric, and a warning or None.

    Args:
        old: the clusters.
        store: the new embeddings.
        metric: the value of --metric, or None.

    Raises:
        UsageError: width, metric or model differ.
    """
    width = old.centroids.shape[1]
    if width != store.width:
        raise UsageError(f"--assign {old.path}: centroids of width {width}, embeddings of width {store.width}")
    if old.metric is not None and metric not in (None, old.metric):
        raise UsageError(f"--assign {old.path} was clustered by {old.metric}: --metric {metric} doesn't fit")
    there, here = old.model_sha256, store.origin.get("model_sha256")
    if there is not None and here is not None and there != here:
        raise UsageError(
            f"--assign {old.path} is of embeddings by the model {there[:12]}..., these are by {str(here)[:12]}...: "
            "embed them with the same model"
        )
    unknown = None if there is not None and here is not None else "it is not known whether one model made both"
    return old.metric or metric or "cosine", unknown


def assign(labelled: Callable[[Float64], tuple[Int32, Float64]], old: OldClusters) -> Clustering:
    """Give each new embedding the nearest old centroid; numbers stay as they were, and clusters may stay empty.

    Args:
        labelled: `StoreReader.labelled` of the new embeddings, or what computes the same elsewhere.
        old: the clusters.

    Raises:
        InputError: the store can't be read.
    """
    labels, distances = labelled(old.centroids.astype(np.float64))
    return Clustering(
        labels=labels,
        distances=distances.astype(np.float32),
        centroids=old.centroids,
        sizes=np.bincount(labels, minlength=len(old.centroids)),
        inertia=float((distances**2).sum()),
        iterations=0,
    )


def _centroids(data: bytes, file: Path) -> Float32:
    """The array (k, C) of a .npy file; its size is compared with its header before anything is made of it."""
    source = io.BytesIO(data)
    header = read_npy_header(source, file)
    held = len(data) - header.offset
    if held != header.data_bytes:
        raise InputError(
            f"{file} holds {held} bytes of numbers, its header speaks of {header.data_bytes}; make it again"
        )
    shape = header.rows, header.width
    centroids = np.frombuffer(data, "<f4", offset=header.offset).reshape(shape, order="F" if header.is_fortran else "C")
    if not np.isfinite(centroids).all():
        raise InputError(f"{file} holds NaN or infinity")
    return np.ascontiguousarray(centroids)


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(_bytes(path)[:_MAX_SUMMARY_BYTES])
        is_ours = (
            isinstance(summary["files"][CENTROIDS]["sha256"], str)
            and isinstance(summary["source"], dict)
            and summary.get("metric", "cosine") in METRICS
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); make it again with `cluster`") from error
    if not is_ours:
        raise InputError(f"{path} is damaged, or of a newer version; make it again with `cluster`")
    return dict(summary)


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise InputError(f"{path} is no file; give an older run's OUT or its {CENTROIDS}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
