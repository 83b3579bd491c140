"""`python -m exporter`: parse, export, print the summary; `calibrate` and `inspect` are commands of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from exporter import export
from exporter.arguments import parser, remarks, to_spec
from exporter.by_name import main as take_named
from exporter.calibration.command import main as calibrate
from exporter.calibration.recommendation import read
from exporter.foreign.inspection import main as inspect
from exporter.foreign.onnx_command import main as take_foreign
from exporter.result import summary
from exporter.steps import Progress
from runtime.contract.console import run
from runtime.contract.machine import limited_threads


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code: 0, 1 for a failed check, 2 for bad use or what the machine lacks."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["calibrate"]:
        return calibrate(given[1:])
    if given[:1] == ["inspect"]:
        return inspect(given[1:])
    if any(one == "--onnx" or one.startswith("--onnx=") for one in given):
        return take_foreign(given, read)
    if any(one == "--model" or one.startswith("--model=") for one in given):
        return take_named(given)

    def body() -> int:
        arguments = parser().parse_args(given)
        progress = Progress(quiet=arguments.quiet, verbose=arguments.verbose)
        with limited_threads(arguments.threads):
            spec = to_spec(arguments)
            for remark in remarks(arguments):
                progress.note(remark)
            result = export(spec, progress)
        if not arguments.quiet:
            print("\n".join(summary(result)))  # noqa: T201
        return 0

    return run("exporter", body, verbose=lambda: "--verbose" in given)


if __name__ == "__main__":
    sys.exit(main())
