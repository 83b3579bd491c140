"""`python -m exporter`: parse, export, print the summary; `calibrate` and `inspect` are commands of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from exporter import by_name, export, onnx_command
from exporter.arguments import parser, to_spec
from exporter.calibration.command import main as calibrate
from exporter.command_line import run_export
from exporter.foreign.inspection import main as inspect
from exporter.method_arguments import Method, remarks
from exporter.result import summary
from exporter.steps import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code: 0, 1 for a failed check, 2 for bad use or what the machine lacks."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["calibrate"]:
        return calibrate(given[1:])
    if given[:1] == ["inspect"]:
        return inspect(given[1:])
    if any(one == "--onnx" or one.startswith("--onnx=") for one in given):
        return onnx_command.main(given)
    if any(one == "--model" or one.startswith("--model=") for one in given):
        return by_name.main(given)
    return run_export(parser, given, _export)


def _export(a: argparse.Namespace, method: Method, progress: Progress) -> list[str]:
    spec = to_spec(a, method)
    for remark in remarks(a, method):
        progress.note(remark)
    return summary(export(spec, progress))


if __name__ == "__main__":
    sys.exit(main())
