"""Limits and verdicts for the comparison of a model with a reference on users' pictures."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.backends.session import Session
from runtime.checks.agreement import NEIGHBOURS, PICTURES_PER_CLUSTER, Agreement
from runtime.checks.batch_invariance import BatchInvariance
from runtime.contract.comparison import LIMITS as PARITY_LIMITS


@dataclass(frozen=True)
class Limits:
    """The limit of each figure; None if a figure is not limited."""

    max_abs: float | None
    min_cosine: float | None
    min_mean_cosine: float | None
    min_median_cosine: float | None
    min_neighbours: float | None
    min_ari: float | None
    max_batch_distance: float | None


PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Precisions, the most precise first."""
_BY_PRECISION = {
    "fp32": Limits(1e-4, 0.999999, 0.9999999, 0.9999999, 0.995, 0.98, None),
    "fp16": Limits(None, 0.9999, 0.99999, 0.99999, 0.98, 0.95, None),
    "bf16": Limits(None, 0.998, 0.9998, 0.9998, 0.95, 0.9, None),
    "int8": Limits(None, 0.998, 0.999, 0.999, 0.95, 0.9, None),
}
"""Limits without ITAE. Max abs and the smallest cosine are those of `runtime.contract.comparison.LIMITS`; the others
follow from measurements, with room for other weights: see DECISIONS.md."""
_FLIPPED_COSINE, _FLIPPED_MEAN_COSINE = 0.9, 0.999
"""With ITAE the limits on the smallest and the mean cosine are no higher than these, and max abs has none.

A norm within rounding of its threshold falls on either side, and the whole embedding moves with its flag: among 500
pictures, the smallest cosine was 0.966 and the next 0.9998 (fp16, ITAE in all layers). The golden sample knows such
flags and leaves them out; for users' pictures the distances are not known. A few pictures hardly change the median.
"""


def default_limits(model: Session, other: Session) -> Limits:
    """The limits of `model` beside `other`: those of the less precise of the two; for batches, those of `model`."""
    precision = max((precision_of(one) for one in (model, other)), key=PRECISIONS.index)
    has_flags = any(one.manifest.options.method.layers for one in (model, other))
    return dataclasses.replace(
        limits_of(precision, has_flags=has_flags),
        max_batch_distance=PARITY_LIMITS[precision_of(model)].batch_distance,
    )


def precision_of(session: Session) -> str:
    """The precision of `PRECISIONS` that a model is held to: of its file, or of what it computes in if that is less."""
    return max((session.manifest.options.precision, session.compute), key=PRECISIONS.index)


def limits_of(precision: str, *, has_flags: bool) -> Limits:
    """The limits of a precision of `PRECISIONS`, and of a model that flags artifacts; none for batches."""
    limits = _BY_PRECISION[precision]
    if not has_flags:
        return limits
    return dataclasses.replace(
        limits,
        max_abs=None,
        min_cosine=min(limits.min_cosine or 1, _FLIPPED_COSINE),
        min_mean_cosine=min(limits.min_mean_cosine or 1, _FLIPPED_MEAN_COSINE),
    )


@dataclass(frozen=True)
class Criterion:
    """A figure and its verdict."""

    key: str
    """The field of `Limits`."""
    name: str
    figure: float | None
    """None if it was not compared."""
    limit: float | None
    note: str = ""
    """Remarks on how the figure was measured."""
    skipped: str | None = None
    """The reason why there is no verdict."""
    failure: str | None = None
    """The reason why the figure is off."""

    @property
    def relation(self) -> Literal["<=", ">="]:
        """The relation of the figure to the limit in a model that passes."""
        return "<=" if self.key.startswith("max") else ">="


def judge(agreed: Agreement, batches: BatchInvariance | str | None, limits: Limits) -> tuple[Criterion, ...]:
    """Judge each figure.

    Args:
        agreed: the figures of both models.
        batches: the check of the model's own batches; an error's text if it failed; None if no picture could be used.
        limits: the limits of the figures.
    """
    n, k = len(agreed.cosines), agreed.neighbours_k
    trivial = None
    if n <= NEIGHBOURS + 1:
        others = f"all {k} others are neighbours of each" if k else "one picture has no neighbour"
        trivial = f"of {n} pictures {others}: give more than {NEIGHBOURS + 1}"
    few = None if agreed.clusters else f"fewer than {2 * PICTURES_PER_CLUSTER} pictures: give more, or --k"
    found = [
        Criterion("max_abs", "max abs", agreed.max_abs, limits.max_abs),
        Criterion("min_cosine", "min cosine", float(agreed.cosines.min()), limits.min_cosine),
        Criterion("min_mean_cosine", "mean cosine", float(agreed.cosines.mean()), limits.min_mean_cosine),
        Criterion("min_median_cosine", "median cosine", float(np.median(agreed.cosines)), limits.min_median_cosine),
        Criterion("min_neighbours", f"same {k} nearest", agreed.neighbours, limits.min_neighbours, skipped=trivial),
        Criterion(
            "min_ari",
            "ARI of clusters",
            agreed.ari,
            limits.min_ari,
            note=f"k = {agreed.clusters}" if agreed.clusters else "",
            skipped=few,
        ),
    ]
    return (*map(_judged, found), _judged_batches(batches, limits))


def _judged(criterion: Criterion) -> Criterion:
    """The criterion with its failure, if it is off; a figure that is NaN or infinite is always off."""
    figure, limit = criterion.figure, criterion.limit
    if figure is None or criterion.skipped is not None:
        return criterion
    failure = None
    if not math.isfinite(figure):
        failure = f"{criterion.name} is no number: an embedding is zero, or holds NaN or infinity"
    elif limit is not None and not (figure <= limit if criterion.relation == "<=" else figure >= limit):
        side = "over" if criterion.relation == "<=" else "under"
        failure = f"{criterion.name} {figure:.8g} is {side} the limit {limit:.8g}"
    return dataclasses.replace(criterion, failure=failure)


def _judged_batches(batches: BatchInvariance | str | None, limits: Limits) -> Criterion:
    criterion = Criterion("max_batch_distance", "batch distance", None, limits.max_batch_distance)
    if batches is None:
        return dataclasses.replace(criterion, skipped="no picture has an embedding of numbers")
    if isinstance(batches, str):
        return dataclasses.replace(criterion, failure=batches)
    if not batches.rows:
        return dataclasses.replace(criterion, skipped="the model takes one image at a time")
    sizes = ",".join(map(str, batches.sizes))
    left_out = f", {len(batches.borderline)} pictures left out" if batches.borderline else ""
    return dataclasses.replace(
        criterion,
        figure=batches.distance,
        note=f"{batches.rows} rows of batches of {sizes} and the same alone{left_out}",
        failure="; ".join(batches.failures) or None,
    )
