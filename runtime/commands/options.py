"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
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
