"""The command, with a subcommand for each of `COMMANDS`: `python -m runtime`, or `itae` where it is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.contract.console import Parser, program_name, run
from runtime.contract.errors import UsageError
from runtime.contract.machine import limited_threads

COMMANDS = (
    "embed",
    "cluster",
    "search",
    "dedup",
    "export",
    "evaluate",
    "triton",
    "verify",
    "bench",
    "plan",
    "info",
    "doctor",
)
"""The files of `runtime/commands`. They are imported inside `run`, so that Ctrl-C during an import is one line too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (None: `sys.argv`) and return its exit code.

    0: done; 1: nothing could be embedded, or a check failed; 2: bad use, bad input, or this machine lacks something.
    """
    arguments = argparse.Namespace(verbose="--verbose" in (sys.argv[1:] if argv is None else argv))

    def body() -> int:
        parser().parse_args(argv, arguments)
        with limited_threads(getattr(arguments, "threads", None)):
            return int(arguments.run(arguments))

    return run("runtime", body, verbose=lambda: arguments.verbose)


def parser() -> Parser:
    """Return the parser of all subcommands; `run` in what it parses is the function to call."""
    import importlib
    from importlib import metadata

    top = Parser(
        prog=program_name("runtime"),
        description="Embed images with a model of `exporter`, cluster the embeddings, verify the model.",
        epilog="examples:\n"
        "  %(prog)s embed itae.onnx photos/ --out embeddings/\n"
        "  %(prog)s cluster embeddings/ --k 10 --out clusters/\n"
        "  %(prog)s search embeddings/ cat.jpg\n"
        "  %(prog)s dedup embeddings/ --out duplicates/\n"
        "  %(prog)s export embeddings/ embeddings.npy\n"
        "  %(prog)s evaluate plain.onnx itae.onnx --data cifar10:cifar-10-binary.tar.gz\n"
        "  %(prog)s triton itae.onnx --out repository/\n"
        "  %(prog)s verify itae.onnx\n"
        "  %(prog)s bench itae.onnx --batch 1,8\n"
        "  %(prog)s plan --images 1e9 --rate 2500 --devices 64\n"
        "  %(prog)s info itae.onnx\n"
        "  %(prog)s doctor itae.engine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"itae {metadata.version('itae')}")
    top.add_argument("--verbose", action="store_true", help=_VERBOSE)
    top.set_defaults(run=_choose)
    subparsers = top.add_subparsers(metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"runtime.commands.{name}")
        sub = subparsers.add_parser(
            name,
            help=command.WHAT,
            description=f"{command.WHAT[0].upper()}{command.WHAT[1:]}.",
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help=_VERBOSE)
        sub.set_defaults(run=command.run)
    return top


_VERBOSE = "show the traceback of an error"


def _choose(arguments: argparse.Namespace) -> int:
    *others, last = COMMANDS
    raise UsageError(f"say what to do: {', '.join(others)} or {last}; see `python -m runtime --help`")


if __name__ == "__main__":
    sys.exit(main())
