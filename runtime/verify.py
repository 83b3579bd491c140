"""Replay a model's golden sample on the backend that serves it, and report: as text, JSON and JUnit XML."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from runtime.backends import open_session
from runtime.backends.session import run_in_batches
from runtime.errors import CheckError, ItaeError, one_line
from runtime.golden import read_golden
from runtime.manifest import ParityLimits
from runtime.parity import Parity, compare

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Verification:
    """How a model fared against its golden sample."""

    model: str
    backend: str
    samples: int
    outputs: tuple[str, ...]
    """What was compared."""
    has_itae: bool
    """Whether there are flags that could be compared, where the model gives them."""
    limits: ParityLimits
    parity: Parity
    seconds: float
    """For running the samples, loading left out."""

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return self.parity.passed


def verify(model: Path, provider: str = "auto") -> Verification:
    """Check a model's files, run its golden sample, and compare.

    Raises:
        ManifestError: the model, its manifest or its golden sample is missing, altered or too new.
        BackendError: no backend of this machine can run it.
        CheckError: it gave NaN or infinity.
    """
    session = open_session(model, provider)
    try:
        golden = read_golden(model, session.manifest)
        start = time.perf_counter()
        got = run_in_batches(session, golden.input)
        seconds = time.perf_counter() - start
    finally:
        session.close()
    limits = session.manifest.parity.limits
    parity = compare(got, golden, limits)
    has_itae = session.manifest.options.itae is not None
    return Verification(str(model), session.name, len(golden.input), tuple(got), has_itae, limits, parity, seconds)


def as_text(result: Verification) -> str:
    """The table that `verify` prints."""
    parity, limits = result.parity, result.limits
    rows = [
        ("max abs", f"{parity.max_abs:.3g}", _limit("<=", limits.max_abs)),
        ("min cosine", f"{parity.min_cosine:.7f}", _limit(">=", limits.min_cosine)),
    ]
    if "artifact_norm" in result.outputs:
        rows.append(("norms, relative", f"{parity.norm_relative:.3g}", _limit("<=", limits.flag_margin)))
    if "artifact_mask" in result.outputs:
        left_out = f"{len(parity.borderline)} borderline samples, {len(parity.left_out)} left out"
        rows.append(("flags differing", str(parity.flags_differing), left_out))
    elif result.has_itae:
        rows.append(("flags", "not compared", "artifact_mask is not an output of this model"))
    lines = [f"{result.model} on {result.backend}: {result.samples} golden samples, {result.seconds:.2f} s"]
    lines += [f"  {name:<16} {found:<14} {limit}".rstrip() for name, found, limit in rows]
    lines += [f"  FAILED: {failure}" for failure in parity.failures] or ["  passed"]
    return "\n".join(lines)


def _limit(relation: str, limit: float | None) -> str:
    return "not limited" if limit is None else f"limit {relation} {limit:g}"


def as_json(result: Verification) -> dict[str, Any]:
    """The same as data; a figure that is no number (NaN) is null."""
    parity = result.parity
    return {
        "model": result.model,
        "backend": result.backend,
        "passed": result.passed,
        "samples": result.samples,
        "outputs": list(result.outputs),
        "max_abs": _finite(parity.max_abs),
        "min_cosine": _finite(parity.min_cosine),
        "norm_relative": _finite(parity.norm_relative),
        "flags_checked": parity.flags_checked,
        "flags_differing": parity.flags_differing,
        "borderline": list(parity.borderline),
        "left_out": list(parity.left_out),
        "limits": result.limits.model_dump(mode="json"),
        "failures": list(parity.failures),
        "seconds": round(result.seconds, 3),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def as_junit(model: Path, outcome: Verification | ItaeError) -> bytes:
    """A JUnit report of one test: passed, failed (figures off), or in error (it could not be run)."""
    seconds = f"{outcome.seconds:.3f}" if isinstance(outcome, Verification) else "0"
    failed = isinstance(outcome, CheckError) or (isinstance(outcome, Verification) and not outcome.passed)
    in_error = isinstance(outcome, ItaeError) and not failed
    suite = ElementTree.Element(
        "testsuite",
        name="itae verify",
        tests="1",
        failures=str(int(failed)),
        errors=str(int(in_error)),
        skipped="0",
        time=seconds,
    )
    case = ElementTree.SubElement(suite, "testcase", classname="golden sample", name=_xml(str(model)), time=seconds)
    if isinstance(outcome, ItaeError):
        tag = "failure" if failed else "error"
        problem = ElementTree.SubElement(case, tag, type=type(outcome).__name__, message=_xml(one_line(outcome)))
        problem.text = _xml(str(outcome))
    else:
        text = _xml(as_text(outcome))
        if failed:
            message = _xml("; ".join(outcome.parity.failures))
            ElementTree.SubElement(case, "failure", type="ParityError", message=message).text = text
        else:
            ElementTree.SubElement(case, "system-out").text = text
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _xml(text: str) -> str:
    """The text without what XML 1.0 can't hold, escaped or not: control characters, lone surrogates."""
    return _NOT_XML.sub("\ufffd", text)
