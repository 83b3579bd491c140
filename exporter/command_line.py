"""The parts that the exporter's commands share: a parser made of declared options, and the run of an export."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from exporter.declaration import add_options
from exporter.method_arguments import Method, add_method, method_of
from exporter.methods.itae.options import GROUP as ITAE
from exporter.steps import Progress
from runtime.contract.console import Parser, add_loudness, add_threads, program_name, run
from runtime.contract.machine import limited_threads


def export_parser(
    description: str,
    epilog: str,
    headings: Sequence[str],
    options: Mapping[type, Sequence[str]],
    plain: str,
    details: str = "details",
) -> argparse.ArgumentParser:
    """The parser of a command that exports.

    Args:
        description: what the command does.
        epilog: the end of `--help`.
        headings: the groups of `--help`, in their order; threads and loudness go into the last.
        options: the dataclasses that declare its options, each with the names of fields that are left out.
        plain: what `--no-itae` gives.
        details: what `--verbose` prints beside tracebacks.
    """
    p = Parser(
        prog=program_name("exporter"),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {heading: p.add_argument_group(heading) for heading in headings}
    for declaring, without in options.items():
        add_options(declaring, groups, without=without)
    add_method(groups[ITAE], plain)
    add_threads(groups[headings[-1]])
    add_loudness(groups[headings[-1]], f"{details}, and tracebacks of errors")
    return p


def run_export(
    parser: Callable[[], argparse.ArgumentParser],
    argv: Sequence[str],
    export: Callable[[argparse.Namespace, Method, Progress], list[str]],
) -> int:
    """Run a command that exports; gives its exit code.

    Args:
        parser: makes the command's parser.
        argv: the arguments.
        export: exports as parsed arguments and the method say; returns the summary, in lines for people.
    """

    def body() -> int:
        a = parser().parse_args(list(argv))
        progress = Progress(quiet=a.quiet, verbose=a.verbose)
        with limited_threads(a.threads):
            lines = export(a, method_of(a), progress)
        if not a.quiet:
            print("\n".join(lines))  # noqa: T201
        return 0

    return run("exporter", body, verbose=lambda: "--verbose" in argv)
