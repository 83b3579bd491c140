"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends import PROVIDERS

if TYPE_CHECKING:
    from runtime.contract.schema import Manifest


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


def provider_of(arguments: argparse.Namespace, manifest: Manifest) -> str:
    """What of --provider goes for one of several models: an engine has no choice."""
    return str(arguments.provider) if manifest.builder.name == "onnx" else "auto"


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
