"""The report of `verify --against`: a table, JSON, JUnit XML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from runtime.checks.against import Against
from runtime.checks.criteria import Criterion
from runtime.checks.junit import Case, as_junit_xml
from runtime.checks.verify import finite
from runtime.contract.errors import ItaeError

_SUITE = "itae verify --against"
_FORMS = {"max_abs": ".3g", "max_batch_distance": ".3g", "min_neighbours": ".4f", "min_ari": ".4f"}
_LISTED = 5
"""Number of unreadable pictures that the table names; JSON has all of them."""


def as_text(result: Against) -> str:
    """The comparison as a table."""
    n = len(result.pictures)
    lines = [f"{result.model} on {result.backend}, beside", f"{result.other} on {result.other_backend}:"]
    lines.append(f"{n} pictures, {result.seconds:.1f} s")
    lines += [f"  {_line(one)}" for one in result.criteria]
    lines += [f"  smallest cosine  {cosine:<14.7f} {picture}" for picture, cosine in result.worst()]
    lines += [f"  not read         {Path(bad.root, bad.path)}: {bad.error}" for bad in result.unreadable[:_LISTED]]
    if rest := result.unreadable[_LISTED:]:
        lines.append(f"  not read         {len(rest)} more")
    lines += [f"  {note.text}: {count:,}" for note, count in result.notes.items()]
    lines += [f"  FAILED: {failure}" for failure in result.failures] or ["  passed"]
    if any(one.key == "max_batch_distance" and one.failure for one in result.criteria):
        lines += [f"    sample {number}: {picture}" for number, picture in enumerate(result.batches_of)]
    return "\n".join(lines)


def _line(one: Criterion) -> str:
    """A criterion in the table."""
    figure = "not compared" if one.figure is None else format(one.figure, _FORMS.get(one.key, ".7f"))
    limit = "not limited" if one.limit is None else f"limit {one.relation} {one.limit:.8g}"
    remark = f"not judged: {one.skipped}" if one.skipped else limit
    note = f" ({one.note})" if one.note else ""
    return f"{one.name:<16} {figure:<14} {remark}{note}"


def as_json(result: Against) -> dict[str, Any]:
    """The comparison for JSON; a figure that is NaN or was not compared is null."""
    return {
        "model": result.model,
        "backend": result.backend,
        "against": result.other,
        "against_backend": result.other_backend,
        "passed": not result.failures,
        "pictures": len(result.pictures),
        "criteria": {
            one.key: {
                "figure": None if one.figure is None else finite(one.figure),
                "limit": one.limit,
                "passed": None if one.skipped else one.failure is None,
                "why_not_judged": one.skipped,
            }
            for one in result.criteria
        },
        "neighbours_k": result.agreement.neighbours_k,
        "clusters": result.agreement.clusters,
        "worst": [{"picture": picture, "cosine": finite(cosine)} for picture, cosine in result.worst()],
        "batches_of": list(result.batches_of),
        "skipped": dict(result.skipped),
        "notes": dict(result.notes),
        "unreadable": [dataclasses.asdict(one) for one in result.unreadable],
        "differences": list(result.differences),
        "failures": list(result.failures),
        "seconds": round(result.seconds, 3),
    }


def as_junit(model: Path, outcome: Against | ItaeError) -> bytes:
    """A JUnit report with a test for each criterion; or with one test, if an error ended the comparison."""
    if isinstance(outcome, ItaeError):
        return as_junit_xml(_SUITE, [Case("comparison", str(model), error=outcome)])
    cases = [
        Case(one.name, str(model), failure=one.failure, skipped=one.skipped, output=_line(one))
        for one in outcome.criteria
    ]
    return as_junit_xml(_SUITE, cases, outcome.seconds)
