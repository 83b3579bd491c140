"""The command: look around, install, plan, run, report. `scripts/gpu-check --help`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.contract.console import Parser, run
from runtime.contract.driver import Driver, read_driver, require_gpu
from runtime.contract.errors import OutputFileError, UsageError
from scripts.gpu_checks import report as reports
from scripts.gpu_checks.check import Failed, Outcome, choose, run_all
from scripts.gpu_checks.child import ROOT, Child
from scripts.gpu_checks.install import install, pip_into
from scripts.gpu_checks.machine import Target, dry_target, gpu_target, survey
from scripts.gpu_checks.plan import Places, make_plan
from scripts.gpu_checks.report import Report, in_words

SURVEY_SECONDS = 300.0
OLDER = ("*.json", "*.xml", "*.md", "*.txt", "*.log")
"""Files that a run replaces in its folder, beside the folder `evidence`."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/gpu-check",
        description="Check everything that only a machine with an NVIDIA GPU can show: engines and ONNX on CUDA beside "
        "eager PyTorch, batches, fused attention, tensors, k-means, C++, speed, and the tests marked `gpu`. Writes "
        "gpu-check.md, gpu-check.json and gpu-check.xml (JUnit). Exits with 1 if a check failed, or was skipped "
        "although this machine could have run it.",
    )
    options.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "gpu-check", help="(default: gpu-check/)")
    options.add_argument("--dry-run", action="store_true", help="the same code on the CPU, with a small model")
    options.add_argument("--no-install", action="store_true", help="take the packages as they are")
    options.add_argument("--only", metavar="WORDS", help="checks whose names hold one of these: golden,k-means")
    options.add_argument("--list", action="store_true", help="print the names of the checks, in their order, and end")
    options.add_argument("--minutes", metavar="M", type=float, help="leave out what has not begun by then")
    what = "compute the paper's table too, with the official weights, of data sets as `scripts/study --data` takes them"
    options.add_argument("--study", metavar="DATA", nargs="*", help=f"{what}; a dry run takes none")
    options.add_argument("--models", metavar="DIR", type=Path, help="keep the models there, and take those that are")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    return run("gpu-check", lambda: _check(sys.argv[1:] if argv is None else list(argv)))


def _check(argv: Sequence[str]) -> int:
    given = parser().parse_args(argv)
    if given.minutes is not None and not given.minutes > 0:
        raise UsageError(f"--minutes {given.minutes:g}: must be more than 0")
    if given.study is not None and given.dry_run == bool(given.study):
        raise UsageError("--study needs data sets, such as cifar10:PATH; with --dry-run it takes none")
    if not given.dry_run:
        require_gpu("gpu-check")
    begin = time.monotonic()
    deadline = None if given.minutes is None else begin + 60 * given.minutes
    words = given.only.split(",") if given.only else []
    with contextlib.ExitStack() as stack:
        out = given.out.resolve()
        log = out / "gpu-check.log"
        if given.list:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="itae-gpu-check-"))) / "log"
        else:
            _empty(out)
        kept = given.models.resolve() if given.models is not None else None
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="itae-gpu-check-")))
        folder.mkdir(parents=True, exist_ok=True)
        child = Child(log)
        stack.callback(child.close)
        places = Places(out, folder, log)
        driver = None if given.dry_run else read_driver()
        found = _survey(child)
        outcomes: list[Outcome] = []
        if driver is not None and not given.no_install and not given.list:
            outcomes += _tell_all(install(found, driver, pip_into(log)))
            child.close()  # what it has imported may have been replaced
            found = _survey(child)
        target = _target(driver, found)
        if driver is not None and not given.list:
            outcomes.append(_tell(_weights(child, target)))
            if outcomes[-1].status == "passed":
                target = dataclasses.replace(target, weights="auto")
        plan = functools.partial(make_plan, target, places, child, found)
        checks = choose(plan(may_install=not given.no_install, study=given.study), words)
        if given.list:
            print("\n".join(check.name for check in checks))
            return 0
        _say(f"{len(checks)} checks; {target.gpu}; the log is {log}")
        outcomes += run_all(checks, longest=target.longest, deadline=deadline, tell=_tell)
    seconds = time.monotonic() - begin
    report = Report(target.dry, target.gpu, target.weights, found, tuple(outcomes), seconds, tuple(words))
    reports.write(report, out)
    print(
        f"{'passed' if report.passed else 'FAILED'}: {report.count('passed')} passed, {report.count('failed')} failed, "
        f"{report.count('skipped')} skipped; {out / 'gpu-check.md'}"
    )
    return 0 if report.passed else 1


def _target(driver: Driver | None, found: dict[str, object]) -> Target:
    return dry_target() if driver is None else gpu_target(found, driver)


def _empty(out: Path) -> None:
    """Make the folder of the report, without those of an earlier run.

    Raises:
        OutputFileError: it can't be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for pattern in OLDER:
            for path in out.glob(pattern):
                path.unlink()
        shutil.rmtree(out / "evidence", ignore_errors=True)
    except OSError as error:
        raise OutputFileError(f"can't write into {out}: {error.strerror}") from error


def _survey(child: Child) -> dict[str, object]:
    return dict(child.call(SURVEY_SECONDS, survey))


def _weights(child: Child, target: Target) -> Outcome:
    """Whether the official weights can be had; random ones take their place."""
    start = time.monotonic()
    try:
        child.call(target.longest, try_weights, target.sizes[0])
    except (Failed, TimeoutError) as error:
        reason = f"random weights are used: {error.args[0]}"
        return Outcome("weights", "skipped", reason, time.monotonic() - start)
    return Outcome("weights", "passed", seconds=time.monotonic() - start)


def try_weights(arch: object) -> None:
    """Load the official weights of a size; raises WeightsError."""
    from exporter.models import weights

    weights.load(arch, "auto")  # type: ignore[arg-type]


def _tell_all(outcomes: list[Outcome]) -> list[Outcome]:
    return [_tell(one) for one in outcomes]


def _tell(one: Outcome) -> Outcome:
    """Show an outcome; returns it."""
    figures = f" ({in_words(one.figures)})" if one.figures else ""
    _say(f"{one.status:7} {one.name}, {one.seconds:.1f} s{figures}{one.reason and f': {one.reason}'}")
    return one


def _say(text: str) -> None:
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
