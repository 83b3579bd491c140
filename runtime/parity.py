"""The one comparison of a model's outputs with its golden sample, for exporter, `verify` and tests alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.golden import Golden
from runtime.manifest import ParityLimits

LIMITS = {
    "fp32": ParityLimits(max_abs=1e-4, min_cosine=None, flag_margin=1e-5),
    "fp16": ParityLimits(max_abs=None, min_cosine=0.9999, flag_margin=1e-3),
}
"""What each precision is held to. Evidence for the margins: exporter/DECISIONS.md."""


@dataclass(frozen=True)
class Parity:
    """How far a model is from its golden sample. Figures are over the samples that are not borderline."""

    max_abs: float
    """Largest absolute difference over `embedding` and `patch_tokens`."""
    min_cosine: float
    """Smallest cosine between a vector and its expected one, over rows of `embedding` and `patch_tokens`."""
    norm_relative: float
    """Largest relative difference of `artifact_norm`; 0 where it is no output."""
    flags_checked: bool
    flags_differing: int
    """Flags that differ, borderline samples included."""
    borderline: tuple[int, ...]
    """Samples whose flags differ though each norm is inside the precision's margin of its threshold."""
    failures: tuple[str, ...]
    """Why it did not pass, a clause each; empty: it passed."""

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return not self.failures


def compare(
    got: Mapping[str, npt.NDArray[Any]],
    golden: Golden,
    limits: ParityLimits,
) -> Parity:
    """Compare outputs, by name as `Golden.outputs` gives them, with the golden sample.

    Args:
        got: at least one output; `artifact_mask` (N, K, P) bool makes the flags checked.
        golden: the expected results of N samples.
        limits: what to hold `got` to.
    """
    failures = _comparable(got, golden)
    if failures:
        return Parity(np.nan, np.nan, np.nan, "artifact_mask" in got, 0, (), tuple(failures))
    samples = len(golden.embedding)
    for name, value in got.items():
        if value.dtype != np.bool_ and not np.isfinite(value).all():
            failures.append(f"{name} holds NaN or infinity")
    differing, borderline = _flags(got.get("artifact_mask"), golden, limits, failures)
    kept = np.setdiff1d(np.arange(samples), borderline)
    if len(borderline) > samples // 2:
        failures.append(
            f"{len(borderline)} of {samples} samples have a norm within {limits.flag_margin:g} of the "
            "threshold and other flags than expected, too many to leave out: choose another --threshold or "
            "--precision fp32"
        )
        kept = np.arange(samples)
    with np.errstate(invalid="ignore"):  # infinity less infinity: a failure already
        max_abs, min_cosine, norm_relative = _figures(got, golden, kept)
    if limits.max_abs is not None and not max_abs <= limits.max_abs:
        failures.append(f"max abs {max_abs:.3g} is over the limit {limits.max_abs:g}")
    if limits.min_cosine is not None and not min_cosine >= limits.min_cosine:
        failures.append(f"cosine {min_cosine:.7f} is under the limit {limits.min_cosine:g}")
    if limits.flag_margin is not None and not norm_relative <= limits.flag_margin:
        failures.append(f"artifact_norm is off by {norm_relative:.3g} of itself, limit {limits.flag_margin:g}")
    return Parity(
        max_abs,
        min_cosine,
        norm_relative,
        "artifact_mask" in got,
        differing,
        tuple(borderline),
        tuple(failures),
    )


def _comparable(got: Mapping[str, npt.NDArray[Any]], golden: Golden) -> list[str]:
    """Why the outputs can't be compared at all: numpy would broadcast some wrong shapes, and find them equal."""
    expected = golden.outputs()
    failures = [
        f"{name} has shape {value.shape}, expected {expected[name].shape}"
        if name in expected
        else f"{name} is not in the golden sample"
        for name, value in got.items()
        if name not in expected or value.shape != expected[name].shape
    ]
    return failures or ([] if got else ["there is no output to compare"])


def _flags(
    mask: npt.NDArray[np.bool_] | None, golden: Golden, limits: ParityLimits, failures: list[str]
) -> tuple[int, list[int]]:
    """Count differing flags and sort the samples that have some into borderline ones and failures."""
    if mask is None:
        return 0, []
    off = mask != golden.flags  # (N, K, P)
    borderline = []
    for sample in np.flatnonzero(off.any(axis=(1, 2))).tolist():
        # In the first chosen layer that differs: a flag there changes the norms of every later layer.
        layer = int(np.flatnonzero(off[sample].any(axis=1))[0])
        farthest = float(golden.flag_distance[sample, layer][off[sample, layer]].max())
        if limits.flag_margin is not None and farthest <= limits.flag_margin:
            borderline.append(sample)
        else:
            failures.append(
                f"sample {sample}: {off[sample, layer].sum()} flags of chosen layer {layer} differ, one whose norm "
                f"is {farthest:.3g} of itself away from the threshold"
            )
    return int(off.sum()), borderline


def _figures(
    got: Mapping[str, npt.NDArray[Any]], golden: Golden, kept: npt.NDArray[np.intp]
) -> tuple[float, float, float]:
    """Max abs and min cosine over the vectors, and the relative difference of the norms, in float64."""
    max_abs, min_cosine, norm_relative = 0.0, 1.0, 0.0
    expected = golden.outputs()
    for name in ("embedding", "patch_tokens"):
        if name in got:
            a, b = got[name][kept].astype(np.float64), expected[name][kept].astype(np.float64)
            max_abs = _worst(max_abs, np.abs(a - b).max())
            lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-300)
            min_cosine = -_worst(-min_cosine, -((a * b).sum(-1) / lengths).min())
    if "artifact_norm" in got:
        a, b = (
            got["artifact_norm"][kept].astype(np.float64),
            expected["artifact_norm"][kept].astype(np.float64),
        )
        norm_relative = float((np.abs(a - b) / np.maximum(np.abs(b), 1e-12)).max())
    return max_abs, min_cosine, norm_relative


def _worst(one: float, other: float) -> float:
    """The larger, where NaN is larger than all: a comparison must not lose one."""
    return float(np.maximum(one, other))
