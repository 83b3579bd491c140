"""Replay a model's golden sample on its backend, alone and in batches; report as text, JSON and JUnit XML."""

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
from runtime.batch_invariance import BatchInvariance, check_batches
from runtime.errors import CheckError, ItaeError, one_line
from runtime.golden import read_golden
from runtime.manifest import ParityLimits
from runtime.parity import Parity, compare

ONE_AT_A_TIME = "the model takes one image at a time"
"""Why batches are not compared."""
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
    batches: BatchInvariance
    seconds: float
    """For running the samples, loading left out."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it did not pass, a clause each."""
        return self.parity.failures + self.batches.failures

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return not self.failures


def verify(model: Path, provider: str = "auto", *, verify_hash: bool = True) -> Verification:
    """Check a model's files, run its golden sample, and compare; also the rows of batches with the images alone.

    Without `verify_hash` the model is run unchecked, see `open_session`; the golden sample's hash is checked still.

    Raises:
        ManifestError: the model, its manifest or its golden sample is missing, altered or too new.
        BackendError: no backend of this machine can run it.
        CheckError: it gave NaN or infinity.
    """
    session = open_session(model, provider, verify_hash=verify_hash)
    try:
        golden = read_golden(model, session.manifest)
        limits = session.manifest.parity.limits
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
        has_itae=session.manifest.options.itae is not None,
        limits=limits,
        parity=compare(got, golden, limits),
        batches=batches,
        seconds=seconds,
    )


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
    rows += _batch_rows(result.batches, limits)
    lines = [f"{result.model} on {result.backend}: {result.samples} golden samples, {result.seconds:.2f} s"]
    lines += [f"  {name:<16} {found:<14} {limit}".rstrip() for name, found, limit in rows]
    lines += [f"  FAILED: {failure}" for failure in result.failures] or ["  passed"]
    return "\n".join(lines)


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
        "batches": {
            "sizes": list(result.batches.sizes),
            "rows": result.batches.rows,
            "distance": _finite(result.batches.distance),
            "norm_relative": _finite(result.batches.norm_relative),
            "flags_differing": result.batches.flags_differing,
            "borderline": list(result.batches.borderline),
        },
        "limits": result.limits.model_dump(mode="json"),
        "failures": list(result.failures),
        "seconds": round(result.seconds, 3),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def as_junit(model: Path, outcome: Verification | ItaeError) -> bytes:
    """A JUnit report of two tests, golden sample and batches, or of one that could not be run, in failure or error."""
    suite = ElementTree.Element("testsuite", name="itae verify")
    if isinstance(outcome, ItaeError):
        case = _case(suite, "golden sample", model)
        tag = "failure" if isinstance(outcome, CheckError) else "error"
        problem = ElementTree.SubElement(case, tag, type=type(outcome).__name__, message=_xml(one_line(outcome)))
        problem.text = _xml(str(outcome))
    else:
        suite.set("time", f"{outcome.seconds:.3f}")
        tests = {"golden sample": outcome.parity.failures, "batch invariance": outcome.batches.failures}
        for name, failures in tests.items():
            case = _case(suite, name, model)
            if failures:
                message = _xml("; ".join(failures))
                ElementTree.SubElement(case, "failure", type="ParityError", message=message)
            elif name == "batch invariance" and not outcome.batches.rows:
                ElementTree.SubElement(case, "skipped", message=ONE_AT_A_TIME)
            ElementTree.SubElement(case, "system-out").text = _xml(as_text(outcome))
    suite.set("tests", str(len(suite)))
    for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{tag}"))))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(suite: ElementTree.Element, test: str, model: Path) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=test, name=_xml(str(model)))


def _xml(text: str) -> str:
    """The text without what XML 1.0 can't hold, escaped or not: control characters, lone surrogates."""
    return _NOT_XML.sub("\ufffd", text)
