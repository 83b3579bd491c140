"""`python -m runtime verify`: golden sample, or a reference on pictures -> comparison -> table, JSON, JUnit XML."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.backends import PROVIDERS
from runtime.backends.compute import COMPUTES
from runtime.commands import options
from runtime.contract.console import add_threads, text
from runtime.contract.errors import ItaeError, ParityError, UsageError, plain
from runtime.images.options import add_image_column, add_selection

if TYPE_CHECKING:
    from runtime.backends.session import Session
    from runtime.checks.against import Against
    from runtime.checks.criteria import Limits
    from runtime.contract.keys import Key
    from runtime.sources.item import Entry

Result = TypeVar("Result")

WHAT = "replay the golden sample of a model, or compare it with another on pictures"
EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.onnx --junit report.xml --json
  %(prog)s itae.engine --against itae.onnx --images photos/

With --against, both models embed the pictures, each with its own preprocessing, and the embeddings are compared: the
largest difference of an element; the cosines; how many of a picture's 10 nearest (by cosine) are the same; the adjusted
Rand index of two clusterings, k-means on OTHER's embeddings and k-means on MODEL's that starts from those clusters; and
rows of batches beside the same pictures alone.
Default limits are those of the less precise model. With ITAE a few flags may fall the other way, so the limits on the
smallest and the mean cosine are low then, and that on the median is high.

exit code: 0 if the model keeps every limit, 1 if it is off, 2 for bad use or if no backend here can run it"""

_ALONE = {"max_abs": "max_abs", "min_cosine": "min_cosine", "max_batch_distance": "batch_distance"}
"""Options that change limits of the golden sample, and the fields of `ParityLimits` that they change."""
_LIMITS = {
    "max_abs": "largest difference of an element",
    "min_cosine": "smallest cosine of an embedding and its reference",
    "min_mean_cosine": "mean of the cosines (*)",
    "min_median_cosine": "median of the cosines (*)",
    "min_neighbours": "share of equal 10 nearest neighbours (*)",
    "min_ari": "adjusted Rand index of the clusterings (*)",
    "max_batch_distance": "distance of a row to the same image alone, as a share of its length",
}
_WITH_AGAINST = (
    "images",
    "include",
    "exclude",
    "follow_links",
    "image_column",
    "against_provider",
    "against_compute",
    "k",
    "seed",
    "limit",
    *(name for name in _LIMITS if name not in _ALONE),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    parser.add_argument("--junit", metavar="FILE", type=options.path, help="also write a JUnit XML report")
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options.add_provider(parser)
    options.add_no_verify_hash(parser)
    against = parser.add_argument_group("against another model, on pictures")
    against.add_argument("--against", metavar="OTHER", type=options.path, help="the model to compare with")
    against.add_argument(
        "--images",
        metavar="IMAGES",
        nargs="+",
        type=text,
        help="the pictures: files, folders, lists ..., as for `embed`",
    )
    add_selection(against, "the pictures' folders and tars")
    add_image_column(against)
    against.add_argument("--against-provider", choices=PROVIDERS, help="what runs OTHER (default: auto)")
    what = "what OTHER computes in (default: the precision of its file)"
    against.add_argument("--against-compute", choices=COMPUTES, help=what)
    against.add_argument("--limit", metavar="N", type=int, help="only N of the pictures, spread evenly over all")
    what = "number of clusters"
    against.add_argument("--k", metavar="K", type=int, help=f"{what} (default: a tenth of the pictures, at most 10)")
    against.add_argument("--seed", metavar="N", type=int, help="seed of the clusterings (default: 0)")
    limits = parser.add_argument_group("limits that replace the default ones; (*): only with --against")
    for name, what in _LIMITS.items():
        limits.add_argument(f"--{name.replace('_', '-')}", metavar="X", type=float, help=what)


def run(arguments: argparse.Namespace) -> int:
    """Verify `arguments.model` and return the exit code.

    Raises:
        UsageError: options don't belong together, or --junit names a file of a model.
        ParityError: the model is off.
        InputError: no picture can be read.
        ManifestError, BackendError: a model can't be read or can't run here.
    """
    _check(arguments)
    model: Path = arguments.model
    changed = {name: value for name in _LIMITS if (value := getattr(arguments, name)) is not None}
    if arguments.against is not None:
        from runtime.checks import against_report as report

        result = _reported(arguments, report.as_junit, lambda: _compare(arguments, changed))
        _print(arguments, report.as_json(result) if arguments.json else report.as_text(result))
        if result.failures:
            raise ParityError(f"{model} is off beside {arguments.against}: {'; '.join(result.failures)}")
        return 0
    from runtime.checks import verify as golden

    checked = options.verify_hash(arguments)
    alone = {_ALONE[name]: value for name, value in changed.items()}
    verified = _reported(
        arguments,
        golden.as_junit,
        lambda: golden.verify(model, arguments.provider, alone, compute=arguments.compute, verify_hash=checked),
    )
    _print(arguments, golden.as_json(verified) if arguments.json else golden.as_text(verified))
    if not verified.passed:
        raise ParityError(f"{model} failed: {'; '.join(verified.failures)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Check options that argparse can't."""
    from runtime.contract.manifest import manifest_path, parity_path

    if arguments.against is None:
        for name in _WITH_AGAINST:
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is only for --against OTHER")
    elif arguments.images is None:
        raise UsageError("--against needs --images: the pictures to compare on")
    for name, least in (("limit", 1), ("k", 2), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: must be {least} or more")
    for name in _LIMITS:
        if (value := getattr(arguments, name)) is not None and math.isnan(value):
            raise UsageError(f"--{name.replace('_', '-')}: must be a number, not NaN")
    for model in filter(None, (arguments.model, arguments.against)):
        own = (model, manifest_path(model), parity_path(model), model.with_name(f"{model.name}.data"))
        if arguments.junit is not None and arguments.junit.resolve() in [path.resolve() for path in own]:
            raise UsageError(f"--junit {arguments.junit} is a file of the model itself: name another")


def _reported(
    arguments: argparse.Namespace, as_junit: Callable[[Path, Result | ItaeError], bytes], check: Callable[[], Result]
) -> Result:
    """Call `check` and return its result; write it, or the error, as a JUnit report if --junit is given."""
    from runtime.contract.atomic import write_atomically

    outcome: Result | ItaeError
    try:
        outcome = check()
    except ItaeError as error:
        if arguments.junit is not None:
            write_atomically(arguments.junit, as_junit(arguments.model, error))
        raise
    if arguments.junit is not None:
        write_atomically(arguments.junit, as_junit(arguments.model, outcome))
    return outcome


def _print(arguments: argparse.Namespace, report: str | dict[str, Any]) -> None:
    text = report if isinstance(report, str) else json.dumps(report, indent=2)
    sys.stdout.write(f"{text}\n")


def _compare(arguments: argparse.Namespace, changed: dict[str, float]) -> Against:
    """Compare the model with --against on --images, with progress on stderr."""
    from runtime.backends import open_session
    from runtime.checks.against import check_comparable, differences, verify_against
    from runtime.contract.progress import progress

    entries, total, skipped = _pictures(arguments)
    checked = options.verify_hash(arguments)
    provider = arguments.against_provider or "auto"
    with (
        closing(
            open_session(arguments.model, arguments.provider, compute=arguments.compute, verify_hash=checked)
        ) as model,
        closing(
            open_session(arguments.against, provider, compute=arguments.against_compute, verify_hash=checked)
        ) as other,
    ):
        check_comparable(model.manifest, other.manifest)
        if unlike := differences(model.manifest, other.manifest):
            sys.stderr.write(f"warning: the models were exported with other options: {'; '.join(unlike)}\n")
        with progress(total) as shown:
            return verify_against(
                model,
                other,
                entries,
                total,
                limits=_limits(model, other, changed),
                clusters=arguments.k,
                seed=arguments.seed or 0,
                progress=shown,
                skipped=skipped,
            )


def _pictures(arguments: argparse.Namespace) -> tuple[Iterator[Entry], int, dict[str, int]]:
    """The pictures of --images, at most --limit of them, their number, and what was passed over."""
    from runtime.embedding.stream import silence_pillow
    from runtime.sources import Columns, Selection, open_sources
    from runtime.sources.selection import as_line

    silence_pillow()
    columns = Columns(arguments.image_column)
    sources = open_sources(arguments.images, selection=Selection.from_arguments(arguments), columns=columns)
    keys: list[Key] = []

    def take_name(root: str, path: str) -> bool:
        keys.append((root, path))
        return False

    problems = list(sources.items(take_name))  # no picture is read for that: --limit spreads over all
    if sources.skipped:
        sys.stderr.write(f"{plain(as_line(sources.skipped))}\n")
    limit = len(keys) if arguments.limit is None else min(arguments.limit, len(keys))
    chosen = {keys[number * len(keys) // limit] for number in range(limit)}
    return sources.items(lambda root, path: (root, path) in chosen), limit + len(problems), sources.skipped


def _limits(model: Session, other: Session, changed: dict[str, float]) -> Limits:
    import dataclasses

    from runtime.checks.criteria import default_limits

    return dataclasses.replace(default_limits(model, other), **changed)
