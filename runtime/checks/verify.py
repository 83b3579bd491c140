"""Runs a model's golden sample on its backend, alone and in batches; reports as text, JSON and JUnit XML."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import open_session
from runtime.backends.session import Session, run_in_batches
from runtime.checks.batch_invariance import BatchInvariance, check_batches
from runtime.checks.criteria import precision_of
from runtime.checks.junit import Case, as_junit_xml
from runtime.contract.comparison import Parity, compare, limits_in
from runtime.contract.errors import ItaeError, plain
from runtime.contract.golden import read_golden
from runtime.contract.manifest import OUTPUTS, ParityCheck, ParityLimits

ONE_AT_A_TIME = "the model takes one image at a time"
"""The reason why batches are not compared."""


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with its golden sample."""

    model: str
    backend: str
    samples: int
    outputs: tuple[str, ...]
    """The outputs that were compared."""
    has_itae: bool
    """Whether the model has flags; they are compared if it outputs them."""
    flagged: int
    """Number of patches that are artifacts in the golden sample, over all layers that are attenuated."""
    flagged_at_export: ParityCheck | None
    """The export's comparison at another threshold, if the model's own flags too little; None if there was none."""
    limits: ParityLimits
    parity: Parity
    batches: BatchInvariance
    seconds: float
    """Time to run the samples, without loading the model."""

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why the model did not pass, a clause each."""
        return self.parity.failures + self.batches.failures

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return not self.failures


def verify(
    model: Path,
    provider: str = "auto",
    changed_limits: Mapping[str, float] | None = None,
    *,
    compute: str | None = None,
    verify_hash: bool = True,
) -> Verification:
    """Check a model's files, run its golden sample, and compare the results; also compare batches with single images.

    Args:
        model: `X.onnx` or `X.engine`, with manifest and golden sample beside it.
        provider: one of `runtime.backends.PROVIDERS`.
        changed_limits: fields of `ParityLimits` that replace the manifest's.
        compute: as `open_session`; a model that computes in less than its file's precision has the limits of that.
        verify_hash: whether the model's hash is checked, see `open_session`; the golden sample is always checked.

    Raises:
        ManifestError: the model, its manifest or its golden sample is missing, altered or too new.
        BackendError: no backend of this machine can run the model.
        CheckError: the model returned NaN or infinity.
    """
    session = open_session(model, provider, compute=compute, verify_hash=verify_hash)
    try:
        golden = read_golden(model, session.manifest)
        limits = limits_at(session).model_copy(update=dict(changed_limits or {}))
        start = time.perf_counter()
        got = run_in_batches(session, golden.input)
        batches = check_batches(session, golden, limits)
        seconds = time.perf_counter() - start
    finally:
        session.close()
    return Verification(
        model=str(model),
        backend=session.name,
        samples=len(golden.input),
        outputs=tuple(got),
        has_itae=bool(session.manifest.options.method.layers),
        flagged=int(golden.flags.sum()),
        flagged_at_export=next((one for one in session.manifest.parity.checks if one.purpose == "threshold"), None),
        limits=limits,
        parity=compare(got, golden, limits),
        batches=batches,
        seconds=seconds,
    )


def limits_at(session: Session) -> ParityLimits:
    """The manifest's limits, or those of the type that the model computes in if that is less than its file's."""
    return limits_in(session.manifest, precision_of(session))


def as_text(result: Verification) -> str:
    """The table that `verify` prints."""
    parity, limits = result.parity, result.limits
    rows = [
        ("max abs", f"{parity.max_abs:.3g}", _limit("<=", limits.max_abs)),
        ("min cosine", f"{parity.min_cosine:.7f}", _limit(">=", limits.min_cosine)),
    ]
    if not set(result.outputs) & {"embedding", "patch_tokens"}:
        rows = []
    if own := [name for name in result.outputs if name not in OUTPUTS]:
        rows.append(("max relative", f"{parity.max_relative:.3g}", _limit("<=", limits.max_relative)))
        rows.append(("outputs", str(len(own)), ", ".join(map(plain, own))))
    if "artifact_norm" in result.outputs:
        rows.append(("norms, relative", f"{parity.norm_relative:.3g}", _limit("<=", limits.flag_margin)))
    if "artifact_mask" in result.outputs:
        left_out = f"{len(parity.borderline)} borderline samples, {len(parity.left_out)} left out"
        rows.append(("flags differing", str(parity.flags_differing), left_out))
    elif result.has_itae:
        rows.append(("flags", "not compared", "artifact_mask is not an output of this model"))
    if result.has_itae:
        rows.append(("flagged", f"{result.flagged} patches", _attenuation(result)))
    rows += _batch_rows(result.batches, limits)
    lines = [f"{result.model} on {result.backend}: {result.samples} golden samples, {result.seconds:.2f} s"]
    lines += [f"  {name:<16} {found:<14} {limit}".rstrip() for name, found, limit in rows]
    lines += [f"  FAILED: {failure}" for failure in result.failures] or ["  passed"]
    return "\n".join(lines)


def _attenuation(result: Verification) -> str:
    """A remark for a golden sample without flagged patches, which shows no attenuation; else empty."""
    if result.flagged:
        return ""
    check = result.flagged_at_export
    if check is None:
        return "so this shows the model as it is without ITAE"
    return f"so this shows no attenuation; the export compared it at {check.threshold}, {check.flagged} patches flagged"


def _batch_rows(batches: BatchInvariance, limits: ParityLimits) -> list[tuple[str, str, str]]:
    """The rows of the table that compare batches with single images."""
    if not batches.rows:
        return [("batches", "not compared", ONE_AT_A_TIME)]
    sizes = ",".join(map(str, batches.sizes))
    rows = [
        ("batches", sizes, f"{batches.rows} rows compared with the same images alone"),
        ("batch distance", f"{batches.distance:.3g}", _limit("<=", limits.batch_distance)),
    ]
    if batches.flags_differing or batches.borderline:
        left_out = f"{len(batches.borderline)} borderline samples left out"
        rows.append(("flags by batch", str(batches.flags_differing), left_out))
    return rows


def _limit(relation: str, limit: float | None) -> str:
    return "not limited" if limit is None else f"limit {relation} {limit:g}"


def as_json(result: Verification) -> dict[str, Any]:
    """The verification for JSON; a figure that is NaN is null."""
    parity = result.parity
    return {
        "model": result.model,
        "backend": result.backend,
        "passed": result.passed,
        "samples": result.samples,
        "outputs": list(result.outputs),
        "max_abs": finite(parity.max_abs),
        "min_cosine": finite(parity.min_cosine),
        "norm_relative": finite(parity.norm_relative),
        "max_relative": finite(parity.max_relative),
        "flags_checked": parity.flags_checked,
        "flags_differing": parity.flags_differing,
        "flagged": result.flagged if result.has_itae else None,
        "borderline": list(parity.borderline),
        "left_out": list(parity.left_out),
        "batches": {
            "sizes": list(result.batches.sizes),
            "rows": result.batches.rows,
            "distance": finite(result.batches.distance),
            "norm_relative": finite(result.batches.norm_relative),
            "flags_differing": result.batches.flags_differing,
            "borderline": list(result.batches.borderline),
        },
        "limits": result.limits.model_dump(mode="json"),
        "failures": list(result.failures),
        "seconds": round(result.seconds, 3),
    }


def finite(value: float) -> float | None:
    """The figure for JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def as_junit(model: Path, outcome: Verification | ItaeError) -> bytes:
    """A JUnit report of two tests, golden sample and batches; or of one test, if an error ended it."""
    if isinstance(outcome, ItaeError):
        return as_junit_xml("itae verify", [Case("golden sample", str(model), error=outcome)])
    tests = {"golden sample": outcome.parity.failures, "batch invariance": outcome.batches.failures}
    skipped = {"batch invariance": None if outcome.batches.rows else ONE_AT_A_TIME}
    cases = [
        Case(name, str(model), "; ".join(failures) or None, skipped.get(name), output=as_text(outcome))
        for name, failures in tests.items()
    ]
    return as_junit_xml("itae verify", cases, outcome.seconds)
