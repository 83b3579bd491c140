"""The one comparison of a model's outputs with its golden sample, for exporter, `verify` and tests alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.contract.golden import Golden
from runtime.contract.manifest import Manifest, ParityLimits

LIMITS = {
    "fp32": ParityLimits(max_abs=1e-4, min_cosine=None, flag_margin=1e-5, batch_distance=1e-5, max_relative=1e-4),
    "fp16": ParityLimits(max_abs=None, min_cosine=0.9999, flag_margin=1e-3, batch_distance=5e-3, max_relative=2e-2),
    "bf16": ParityLimits(max_abs=None, min_cosine=0.998, flag_margin=1e-2, batch_distance=4e-2, max_relative=8e-2),
    "int8": ParityLimits(max_abs=None, min_cosine=0.998, flag_margin=5e-2, batch_distance=4e-2, max_relative=8e-2),
}
"""The limits of each precision. Evidence for the margins and distances: exporter/DECISIONS.md."""


def limits_in(manifest: Manifest, precision: str) -> ParityLimits:
    """The limits of a model that computes in a precision: the manifest's own, if that is its file's."""
    own = manifest.parity.limits
    if precision == manifest.options.precision:
        return own
    return LIMITS[precision].model_copy(update={"normalized": own.normalized})


@dataclass(frozen=True)
class Parity:
    """How far a model is from its golden sample. Figures are over the samples that are not left out."""

    max_abs: float
    """Largest absolute difference over `embedding` (√C-fold where `limits.normalized`) and `patch_tokens`."""
    min_cosine: float
    """Smallest cosine between a vector and its expected one, over rows of `embedding` and `patch_tokens`."""
    norm_relative: float
    """Largest relative difference of `artifact_norm`; 0 if it is no output."""
    max_relative: float
    """Largest difference of outputs that are the model's own, as a share of the output's largest number; 0 without."""
    flags_checked: bool
    flags_differing: int
    """Flags that differ, borderline samples included."""
    borderline: tuple[int, ...]
    """Samples whose flags differ only at norms inside the precision's margin of the threshold.

    If flags are no output: samples over a limit that have such a norm, since its flag may have fallen the other way.
    """
    left_out: tuple[int, ...]
    """The borderline samples that no limit applies to: those that differ most, at most half of all samples."""
    failures: tuple[str, ...]
    """The reasons why it did not pass, a clause each; empty if it passed."""

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
        limits: the limits that `got` must keep.
    """
    failures = _comparable(got, golden)
    if failures:
        return Parity(np.nan, np.nan, np.nan, np.nan, "artifact_mask" in got, 0, (), (), tuple(failures))
    for name, value in got.items():
        if value.dtype != np.bool_ and not np.isfinite(value).all():
            failures.append(f"{name} holds NaN or infinity")
    mask = got.get("artifact_mask", golden.flags)
    if "artifact_mask" in got:
        borderline = _borderline(mask, golden, limits, failures)
    else:
        borderline = _unclear(got, golden, limits)
    left_out = _farthest(got, golden, borderline, limits)[: len(mask) // 2]
    kept = np.setdiff1d(np.arange(len(mask)), left_out)
    with np.errstate(invalid="ignore"):  # infinity less infinity: a failure already
        max_abs, min_cosine, max_relative = _figures(got, golden, kept, limits)
        norm_relative = _norm_figure(got, golden, kept)
    if limits.max_abs is not None and not max_abs <= limits.max_abs:
        failures.append(f"max abs {max_abs:.3g} is over the limit {limits.max_abs:g}")
    if limits.min_cosine is not None and not min_cosine >= limits.min_cosine:
        failures.append(f"cosine {min_cosine:.7f} is under the limit {limits.min_cosine:g}")
    if limits.max_relative is not None and not max_relative <= limits.max_relative:
        worst = max(golden.own, key=lambda name: np.nan_to_num(_own_figure(got, golden, kept, name), nan=np.inf))
        failures.append(f"{worst} is off by {max_relative:.3g} of its largest number, limit {limits.max_relative:g}")
    if limits.flag_margin is not None and not norm_relative <= limits.flag_margin:
        failures.append(f"artifact_norm is off by {norm_relative:.3g} of itself, limit {limits.flag_margin:g}")
    return Parity(
        max_abs,
        min_cosine,
        norm_relative,
        max_relative,
        "artifact_mask" in got,
        int((mask != golden.flags).sum()),
        tuple(borderline),
        tuple(sorted(left_out)),
        tuple(failures),
    )


def _comparable(got: Mapping[str, npt.NDArray[Any]], golden: Golden) -> list[str]:
    """The reasons why the outputs can't be compared: numpy would broadcast some wrong shapes and find them equal."""
    expected = golden.outputs()
    failures = [
        f"{name} has shape {value.shape}, expected {expected[name].shape}"
        if name in expected
        else f"{name} is not in the golden sample"
        for name, value in got.items()
        if name not in expected or value.shape != expected[name].shape
    ]
    return failures or ([] if got else ["there is no output to compare"])


def _borderline(mask: npt.NDArray[np.bool_], golden: Golden, limits: ParityLimits, failures: list[str]) -> list[int]:
    """The samples whose flags (N, K, P) differ only inside the margin; any other difference becomes a failure."""
    off = mask != golden.flags
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
    return borderline


def _unclear(got: Mapping[str, npt.NDArray[Any]], golden: Golden, limits: ParityLimits) -> list[int]:
    """Without flags to compare: the samples over a limit that have a norm inside the margin of its threshold."""
    if limits.flag_margin is None or not golden.flags.shape[1]:
        return []

    def misses(sample: int) -> bool:
        with np.errstate(invalid="ignore"):
            max_abs, cosine, relative = _figures(got, golden, np.array([sample]), limits)
        over = limits.max_abs is not None and max_abs > limits.max_abs
        over |= limits.max_relative is not None and relative > limits.max_relative
        return over or (limits.min_cosine is not None and cosine < limits.min_cosine)

    near = np.flatnonzero(golden.flag_distance.min(axis=(1, 2)) <= limits.flag_margin)
    return [sample for sample in near.tolist() if misses(sample)]


def _farthest(
    got: Mapping[str, npt.NDArray[Any]], golden: Golden, samples: list[int], limits: ParityLimits
) -> list[int]:
    """`samples`, those whose vectors differ most first."""

    def distance(sample: int) -> tuple[float, float]:
        with np.errstate(invalid="ignore"):
            _, cosine, relative = figures = _figures(got, golden, np.array([sample]), limits)
        return (-cosine, relative) if np.isfinite(figures).all() else (np.inf, np.inf)

    return sorted(samples, key=distance, reverse=True)


def usual_length(width: int) -> float:
    """The approximate length of an embedding that is not normalised: the final norm gives elements of about 1."""
    return float(np.sqrt(width))


def _figures(
    got: Mapping[str, npt.NDArray[Any]], golden: Golden, kept: npt.NDArray[np.intp], limits: ParityLimits
) -> tuple[float, float, float]:
    """Max abs and min cosine over the vectors of the samples `kept`, and `Parity.max_relative`, in float64."""
    max_abs, min_cosine = 0.0, 1.0
    expected = golden.outputs()
    for name in ("embedding", "patch_tokens"):
        if name in got:
            a, b = got[name][kept].astype(np.float64), expected[name][kept].astype(np.float64)
            weight = usual_length(a.shape[-1]) if limits.normalized and name == "embedding" else 1.0
            max_abs = _worst(max_abs, weight * np.abs(a - b).max())
            lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-300)
            min_cosine = -_worst(-min_cosine, -((a * b).sum(-1) / lengths).min())
    max_relative = 0.0
    for name in golden.own:
        max_relative = _worst(max_relative, _own_figure(got, golden, kept, name))
    return max_abs, min_cosine, max_relative


def _own_figure(got: Mapping[str, npt.NDArray[Any]], golden: Golden, kept: npt.NDArray[np.intp], name: str) -> float:
    """Largest difference of one of the model's own outputs, as a share of the largest number that is expected of it."""
    if name not in got:
        return 0.0
    expected = golden.own[name].astype(np.float64)
    largest = float(np.abs(expected).max(initial=0)) or 1.0
    return float(np.abs(got[name][kept].astype(np.float64) - expected[kept]).max(initial=0)) / largest


def _norm_figure(got: Mapping[str, npt.NDArray[Any]], golden: Golden, kept: npt.NDArray[np.intp]) -> float:
    """Largest relative difference of the norms, up to the first layer of a sample whose flags differ."""
    if "artifact_norm" not in got:
        return 0.0
    differs = (got.get("artifact_mask", golden.flags) != golden.flags).any(axis=2)  # (N, K)
    before = (np.cumsum(differs, axis=1) - differs) == 0
    a, b = got["artifact_norm"].astype(np.float64), golden.outputs()["artifact_norm"].astype(np.float64)
    relative = np.abs(a - b) / np.maximum(np.abs(b), 1e-12)  # (N, K, P)
    return float(relative[kept][before[kept]].max())


def _worst(one: float, other: float) -> float:
    """The larger number; NaN counts as larger than every number, so that no comparison loses it."""
    return float(np.maximum(one, other))
