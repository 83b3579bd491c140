"""`python -m runtime doctor`: this machine, its backends, and whether a model runs here."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from runtime.commands import options

if TYPE_CHECKING:
    from runtime.checks.doctor import Attempt, Diagnosis, Machine

WHAT = "report what this machine can run, and whether a model runs here"
EXAMPLES = """examples:
  %(prog)s
  %(prog)s itae.engine
  %(prog)s itae.onnx --json

A MODEL is loaded on every backend that takes it, and its golden sample is run; `verify` looks closer.

exit code: 0 if the model runs by default (without MODEL: if nothing is broken), 1 if not"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", type=options.path, help="X.onnx or X.engine, its manifest beside it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Examine this machine and `arguments.model`, and return the exit code."""
    from runtime.checks.doctor import as_json, examine

    diagnosis = examine(arguments.model)
    text = json.dumps(as_json(diagnosis), indent=2) if arguments.json else as_text(diagnosis)
    sys.stdout.write(f"{text}\n")
    return 0 if diagnosis.passed else 1


def as_text(diagnosis: Diagnosis) -> str:
    """The diagnosis as a table."""
    rows = _machine_rows(diagnosis.machine)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}".rstrip() for name, value in rows]
    lines += [f"BROKEN: {fault}" for fault in diagnosis.machine.faults]
    if diagnosis.model is not None:
        lines += ["", *_model_lines(diagnosis)]
    return "\n".join(lines)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    rows = [
        ("system", machine.system),
        ("Python", machine.python),
        ("CPU", f"{machine.cpu}, {machine.cores} cores for this process"),
    ]
    rows += [(f"  {name}", gives) for name, gives in machine.instructions.items()]
    if machine.driver is None:
        rows.append(("GPU", f"none: {machine.no_driver}"))
    else:
        rows += [
            (f"GPU {gpu.number}", f"{gpu.name}, compute {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.1f} GiB")
            for gpu in machine.driver.gpus
        ]
        rows.append(("driver", f"{machine.driver.version or 'of unknown version'}, up to CUDA {machine.driver.cuda}"))
    rows += [(name, version or "not installed") for name, version in machine.packages.items()]
    if machine.onnxruntime_providers:
        rows.append(("ONNX Runtime has", ", ".join(machine.onnxruntime_providers)))
    return rows


def _model_lines(diagnosis: Diagnosis) -> list[str]:
    if diagnosis.broken is not None:
        return [f"{diagnosis.model}: BROKEN: {diagnosis.broken}"]
    lines = [f"{diagnosis.model}: files as its manifest says, made by {diagnosis.built_by}"]
    lines += [line for one in diagnosis.attempts for line in _attempt_lines(one)]
    first = diagnosis.attempts[0]
    answer = "runs here" if first.passed else "does NOT run here as it should"
    return [*lines, f"  by default ({first.provider}) it {answer}"]


def _attempt_lines(attempt: Attempt) -> list[str]:
    if not attempt.runs:
        return [f"  {attempt.provider:<9} no: {attempt.problem}"]
    said = f"  {attempt.provider:<9} yes, on {attempt.backend}: loaded in {attempt.load_seconds:.1f} s"
    if attempt.parity is None:
        return [said, f"            {attempt.problem}"]
    found = f"as it should (max abs {attempt.max_abs:.2g})" if attempt.parity else "OFF"
    lines = [f"{said}, golden sample in {attempt.run_seconds:.2f} s {found}"]
    return lines if attempt.parity else [*lines, f"            {attempt.problem}"]
