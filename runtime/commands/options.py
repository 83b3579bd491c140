"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends import PROVIDERS, resolve_provider
from runtime.backends.compute import COMPUTES, resolve_compute
from runtime.backends.tuned import TUNED, settled
from runtime.contract.console import text
from runtime.contract.errors import InputError, plain

if TYPE_CHECKING:
    from runtime.backends.tuned import Choice
    from runtime.contract.keys import Key
    from runtime.contract.manifest import Manifest
    from runtime.store import Store
    from runtime.store.moved import Moved


COMPUTE = "what the model computes in; bf16 for an fp32 file, or the rest of an int8 file, takes --provider openvino"
"""Meaning of --compute."""


def path(argument: str) -> Path:
    """Return a path; raises argparse's error if it is empty or a URL."""
    if "://" in argument:  # as a path it would be a folder `s3:` in the current one
        raise argparse.ArgumentTypeError(f"{argument} is a URL: give a path; only the IMAGES of `embed` may be URLs")
    return Path(text(argument))


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare MODEL."""
    parser.add_argument("model", metavar="MODEL", type=path, help="X.onnx or X.engine, its manifest beside it")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Declare STORE; `open_store` opens it."""
    what = "folder that `embed` wrote, or X.npy that `export` wrote"
    parser.add_argument("embeddings", metavar="STORE", type=path, help=what)


def open_store(store: Path, say: Callable[[str], None], doing: str) -> Store:
    """Open embeddings; `doing` is the word for what the command does with those of a run that has not ended.

    Raises:
        InputError: there is no embedding, or they can't be read.
    """
    from runtime.store import Store

    opened = Store(store)
    if not opened.complete:
        say(f"{store} is of a run that has not ended: {doing} the {len(opened):,} embeddings that are there")
    if not len(opened):
        raise InputError(f"{store} holds no embedding: make some with `embed`")
    return opened


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Declare --quiet; `teller` reads it."""
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def teller(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Return a function that writes a line to stderr, or does nothing with --quiet."""

    def say(line: str) -> None:
        if not arguments.quiet:
            sys.stderr.write(f"{plain(line)}\n")

    return say


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Declare --provider and --compute."""
    what = "what runs an ONNX model; auto is ONNX Runtime on the CPU, tuned what `bench --tune` chose"
    choices = (*PROVIDERS, TUNED)
    parser.add_argument("--provider", choices=choices, default="auto", help=f"{what} (default: %(default)s)")
    parser.add_argument("--compute", choices=COMPUTES, help=f"{COMPUTE} (default: the precision of its file)")


def what_runs(arguments: argparse.Namespace, model: Path, manifest: Manifest) -> tuple[str, str, Choice | None]:
    """Return what runs one of several models, what it computes in, and `bench --tune`'s choice if that was asked for.

    --provider and --compute are for the ONNX models among them: an engine runs in one way.

    Raises:
        InputError, UsageError: as `settled`, `resolve_provider` and `resolve_compute`.
    """
    if manifest.builder.name != "onnx":
        return resolve_provider(manifest, "auto"), manifest.options.precision, None
    provider, compute, choice = settled(model, manifest, arguments.provider, arguments.compute)
    provider = resolve_provider(manifest, provider)
    return provider, resolve_compute(manifest, provider, compute), choice


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


def moved(arguments: argparse.Namespace, images: Callable[[], Iterator[Key]]) -> Moved:
    """Return where the images of a store are now by --images-root; `images` returns the keys of the store.

    Raises:
        UsageError: --images-root does not fit the store.
    """
    from runtime.store.moved import Moved

    roots = dict.fromkeys(root for root, _ in images()) if arguments.images_root else {}
    return Moved.parse(arguments.images_root, list(roots))


def add_no_verify_hash(parser: argparse.ArgumentParser) -> None:
    """Declare --no-verify-hash; `verify_hash` reads it."""
    parser.add_argument(
        "--no-verify-hash",
        action="store_true",
        help="don't compare the model's SHA-256 with its manifest, which saves the time to hash it: a file that was "
        "swapped goes unnoticed, and an engine is executable code that runs as you. Sizes are still compared",
    )


def verify_hash(arguments: argparse.Namespace) -> bool:
    """Whether to check the model's hash; warns on stderr if not."""
    if arguments.no_verify_hash:
        risk = "whoever could write it can run code as you"
        sys.stderr.write(f"warning: --no-verify-hash: {arguments.model} is taken as it is; {risk}\n")
    return not arguments.no_verify_hash
