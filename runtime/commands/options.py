"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.backends import PROVIDERS


def text(argument: str) -> str:
    """A path or URL as it was given; argparse's error where it is empty."""
    if not argument:  # of an unset variable, say: Path would take it for the current folder
        raise argparse.ArgumentTypeError("an empty path")
    return argument


def path(argument: str) -> Path:
    """A path; argparse's error where it is empty."""
    return Path(text(argument))


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare MODEL."""
    parser.add_argument("model", metavar="MODEL", type=path, help="X.onnx or X.engine, its manifest beside it")


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Declare --provider."""
    what = "what runs an ONNX model; auto is ONNX Runtime on the CPU"
    parser.add_argument("--provider", choices=PROVIDERS, default="auto", help=f"{what} (default: %(default)s)")


def add_images_root(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --images-root; `what` says what it is for."""
    parser.add_argument(
        "--images-root",
        metavar="[OLD=]NEW",
        action="append",
        default=[],
        help=f"{what}: NEW is where the images lie that the store knows under its root OLD, which may be left out "
        "where it has one root; may be given several times",
    )


def add_no_verify_hash(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-verify-hash", dest="verify_hash", action="store_false")
