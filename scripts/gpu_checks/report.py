"""The report: gpu-check.json for programs, gpu-check.xml (JUnit) for CI servers, gpu-check.md for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.checks.junit import Case, as_junit_xml
from runtime.contract.atomic import write_atomically
from runtime.contract.errors import ParityError
from scripts.gpu_checks.check import LEFT_OUT, Figures, Outcome

NAME = "gpu-check"


@dataclass(frozen=True)
class Report:
    """All that a run found."""

    dry: bool
    gpu: str
    weights: str
    machine: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    seconds: float
    only: tuple[str, ...] = ()
    """The words of `--only`; empty if all checks were wanted."""

    @property
    def title(self) -> str:
        """The name of the run: a dry one must never be taken for one on a GPU."""
        return f"{NAME}, dry run" if self.dry else NAME

    @property
    def nothing_ran(self) -> bool:
        """Whether no check passed or failed: then nothing was shown."""
        return all(one.status == "skipped" for one in self.outcomes)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, nothing was skipped that could have run, and something ran."""
        return not self.nothing_ran and not any(one.is_wrong for one in self.outcomes)

    def count(self, status: str) -> int:
        """Number of checks with a status."""
        return sum(one.status == status for one in self.outcomes)


def write(report: Report, folder: Path) -> None:
    """Write the three files."""
    write_atomically(folder / f"{NAME}.json", (json.dumps(as_json(report), indent=2) + "\n").encode())
    write_atomically(folder / f"{NAME}.xml", as_junit(report))
    write_atomically(folder / f"{NAME}.md", as_markdown(report).encode())


def as_json(report: Report) -> dict[str, Any]:
    """The report for JSON."""
    return {
        "passed": report.passed,
        "dry_run": report.dry,
        "gpu": report.gpu,
        "weights": report.weights,
        "only": list(report.only) or None,
        "seconds": round(report.seconds, 1),
        "checks": [
            {
                "name": one.name,
                "status": one.status,
                "reason": one.reason or None,
                "could_have_run": one.status != "skipped" or not one.excused,
                "seconds": round(one.seconds, 2),
                "figures": {name: _finite(value) for name, value in one.figures.items()},
            }
            for one in report.outcomes
        ],
        "machine": report.machine,
    }


def _finite(value: object) -> object:
    """A figure for JSON, which has no NaN."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def as_junit(report: Report) -> bytes:
    """The report in JUnit XML, a test for each check; one skipped that could have run is a failure there.

    So is a run in which none ran.
    """
    cases = []
    for one in report.outcomes:
        kind, _, subject = one.name.partition(" ")
        wrong = ParityError(f"{one.status}: {one.reason}") if one.is_wrong else None
        skipped = one.reason if one.status == "skipped" and not one.is_wrong else None
        figures = in_words(one.figures) or None
        cases.append(Case(kind, subject or kind, None, skipped, wrong, figures, one.seconds))
    if report.nothing_ran:  # a server that reads only this must not take it for a success
        cases.append(Case("machine", "any check", error=ParityError("no check ran, so nothing was shown")))
    return as_junit_xml(report.title, cases, report.seconds)


def as_markdown(report: Report) -> str:
    """The report for people: the verdict and what is wrong first."""
    driver = report.machine.get("driver") or {}
    packages = {name: version for name, version in report.machine["packages"].items() if version}
    lines = [
        f"# {report.title}: {'passed' if report.passed else 'FAILED'}",
        "",
        f"{report.count('passed')} checks passed, {report.count('failed')} failed, {report.count('skipped')} were "
        f"skipped, in {report.seconds / 60:.1f} minutes.",
        "",
        *(["**A dry run: the CPU stood in for the GPU. It says nothing about one.**", ""] if report.dry else []),
        *(["**No check ran, so nothing was shown.**", ""] if report.nothing_ran else []),
        f"- GPU: {report.gpu}" + (f", driver {driver['version']} for CUDA {driver['cuda']}" if driver else ""),
        f"- CPU: {report.machine['cpu']}, {report.machine['cores']} cores; {report.machine['system']}",
        f"- Python {report.machine['python']}, PyTorch {report.machine['torch']['version']}, "
        + ", ".join(f"{name} {version}" for name, version in packages.items() if name not in ("torch", "itae")),
        f"- weights: {report.weights}{', not the official ones' if report.weights.startswith('random') else ''}",
        *([f"- only the checks that --only {','.join(report.only)} names, and what they need"] if report.only else []),
        "",
    ]
    wrong = [one for one in report.outcomes if one.is_wrong]
    if wrong:
        lines += ["## What is wrong", ""]
        lines += [
            f"- **{one.name}** ({one.status}): " + "; ".join(filter(None, (one.reason, in_words(one.figures))))
            for one in wrong
        ]
        lines.append("")
    lines += _models(report.outcomes)
    rest = [one for one in report.outcomes if one.status != "skipped" and not _is_of_a_model(one)]
    if rest:
        lines += ["## Other checks", "", "| check | result | seconds | figures |", "|---|---|---|---|"]
        lines += [f"| {one.name} | {_mark(one)} | {one.seconds:.1f} | {_cell(in_words(one.figures))} |" for one in rest]
        lines.append("")
    lines += _skipped(report.outcomes)
    return "\n".join(lines).rstrip() + "\n"


KINDS = ("export", "golden", "batches", "pictures", "fusion", "tensors", "eager")
"""Checks of a model, by the first word of their names, which are `KIND ROAD MODEL`."""


def _is_of_a_model(one: Outcome) -> bool:
    return one.name.split()[0] in KINDS and len(one.name.split()) == 3


def _models(outcomes: Sequence[Outcome]) -> list[str]:
    """A table with a row for each model on each road, and what was measured of it."""
    rows: dict[tuple[str, str], dict[str, Outcome]] = {}
    for one in outcomes:
        if _is_of_a_model(one) and one.status != "skipped":
            kind, road, model = one.name.split()
            rows.setdefault((model, road), {})[kind] = one
    if not rows:
        return []
    lines = [
        "## Models",
        "",
        "Each is compared with eager PyTorch in float32 on the CPU. It ran on: `tensorrt` and `tensorrt-rtx`, engines; "
        "`cuda` and `cpu`, ONNX Runtime; `torch-cuda` and `torch-cpu`, eager PyTorch itself, by autocast.",
        "",
        "- golden: largest difference and smallest cosine of the golden images",
        "- batches: largest distance of a row to the same image alone, as a share of its length",
        "- pictures: smallest cosine, share of the same 10 nearest, ARI of two clusterings",
        "- fused: attentions that are one kernel, of how many",
        "- tensors: largest difference between a tensor on the device and the same array",
        "",
        "| model | on | golden | batches | pictures | fused | tensors |",
        "|---|---|---|---|---|---|---|",
    ]
    models = list(dict.fromkeys(model for model, _ in rows))
    for (model, road), found in sorted(rows.items(), key=lambda row: models.index(row[0][0])):
        pictures = found.get("pictures") or found.get("eager")
        cells = [
            model,
            road,
            _figures_of(found.get("golden") or found.get("export"), "max abs", "min cosine"),
            _figures_of(found.get("batches"), "distance"),
            _figures_of(pictures, "min cosine", "same 10 nearest", "ARI of clusters"),
            _figures_of(found.get("fusion"), "fused", "of"),
            _figures_of(found.get("tensors"), "max abs to the same array"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _figures_of(one: Outcome | None, *names: str) -> str:
    if one is None:
        return ""
    found = ", ".join(_shown(one.figures[name]) for name in names if one.figures.get(name) is not None)
    return found if one.status == "passed" else f"**FAILED** {found}".strip()


def _skipped(outcomes: Sequence[Outcome]) -> list[str]:
    """The skipped checks, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for one in outcomes:
        if one.status == "skipped":
            reasons.setdefault(one.reason, []).append(one.name)
    lines = []
    for title, is_left in (("Left out, for lack of time", True), ("Skipped", False)):
        chosen = {reason: names for reason, names in reasons.items() if reason.startswith(LEFT_OUT) == is_left}
        if chosen:
            lines += [f"## {title}", ""]
            lines += [f"- {reason}: {', '.join(names)}" for reason, names in chosen.items()]
            lines.append("")
    return lines


def _mark(one: Outcome) -> str:
    return "passed" if one.status == "passed" else "**FAILED**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def in_words(figures: Figures) -> str:
    """Figures on one line."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7f}".rstrip("0").ljust(3, "0") if 0.5 < abs(value) <= 1 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    return str(value)
