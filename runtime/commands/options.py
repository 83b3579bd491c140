"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime.backends import PROVIDERS


def path(text: str) -> Path:
    """An argument as a path; argparse's error where it is empty."""
    if not text:  # of an unset variable, say: Path would take it for the current folder
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare MODEL."""
    parser.add_argument("model", metavar="MODEL", type=path, help="X.onnx or X.engine, its manifest beside it")


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Declare --provider."""
    what = "what runs an ONNX model; auto is ONNX Runtime on the CPU"
    parser.add_argument("--provider", choices=PROVIDERS, default="auto", help=f"{what} (default: %(default)s)")


def add_no_verify_hash(parser: argparse.ArgumentParser) -> None:
    """Declare --no-verify-hash; `verify_hash` reads it."""
    parser.add_argument(
        "--no-verify-hash",
        action="store_true",
        help="don't compare the model's SHA-256 with its manifest, which saves reading it twice: a file that was "
        "swapped goes unnoticed, and an engine is executable code that runs as you. Sizes are still compared",
    )


def verify_hash(arguments: argparse.Namespace) -> bool:
    """Whether to check the model's hash; says on stderr what it means not to."""
    if arguments.no_verify_hash:
        risk = "whoever could write it can run code as you"
        sys.stderr.write(f"warning: --no-verify-hash: {arguments.model} is taken as it is; {risk}\n")
    return not arguments.no_verify_hash
