"""The command: embed, cluster, verify, info, doctor. `python -m runtime`, or `itae` where it is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from runtime.command import Parser, run
from runtime.commands import cluster, doctor, embed, info, verify
from runtime.errors import UsageError

COMMANDS = {"embed": embed, "cluster": cluster, "verify": verify, "info": info, "doctor": doctor}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (`sys.argv` where None) and give its exit code.

    0: done; 1: nothing could be embedded, or a check failed; 2: bad use, bad input, a lack of this machine.
    """
    arguments = argparse.Namespace(verbose="--verbose" in (sys.argv[1:] if argv is None else argv))

    def body() -> int:
        parser().parse_args(argv, arguments)
        return int(arguments.run(arguments))

    return run("runtime", body, verbose=lambda: arguments.verbose)


def parser() -> Parser:
    """The parser of every subcommand; `run` of what it parses is the function to call."""
    program = Path(sys.argv[0]).name
    top = Parser(
        prog="python -m runtime" if program in ("__main__.py", "") else program,
        description="Embed images with a model of `exporter`, cluster the embeddings, verify the model.",
        epilog="examples:\n"
        "  %(prog)s embed itae.onnx photos/ --out embeddings/\n"
        "  %(prog)s cluster embeddings/ --k 10 --out clusters/\n"
        "  %(prog)s verify itae.onnx\n"
        "  %(prog)s info itae.onnx\n"
        "  %(prog)s doctor itae.engine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"itae {metadata.version('itae')}")
    top.add_argument("--verbose", action="store_true", help=_VERBOSE)
    top.set_defaults(run=_choose)
    subparsers = top.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
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
