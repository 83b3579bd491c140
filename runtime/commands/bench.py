"""`python -m runtime bench`: model, batch sizes -> seeded noise -> latencies, images a second, memory.

With --compare every way to run the model here is measured in turns; with --tune the fastest is written beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.commands import options
from runtime.contract.console import add_threads
from runtime.contract.errors import UsageError

if TYPE_CHECKING:
    from runtime.contract.manifest import Manifest

WHAT = "measure a model's latency, images a second, load time and memory"
EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.engine --batch 1,8,64 --seconds 30 --json
  %(prog)s itae.onnx --compare --plot ways.png
  %(prog)s itae.onnx --tune --batch 8,16 --streams 1,2,4 --min-cosine 0.9998

A latency is the time of a whole batch, from arrays in memory to checked arrays in memory, one batch after another; no
picture is read. p99 needs 100 runs and p95 20; with fewer runs the figure is marked. Peak RSS is that of the whole
process so far, so give batch sizes in rising order. GPU memory is that of the whole first GPU.

--compare runs every provider and compute type that this machine has for MODEL, in turns, each in processes of its own
that hold the model meanwhile; --seconds is for each of them. --tune does the same, and writes X.onnx.tuned.json: the
way of most images a second that keeps the limits of its compute type and --min-cosine to the golden sample. `embed`,
`evaluate` and others take it with --provider tuned, batch size and streams included, and refuse it where the model, the
CPU, the number of cores or a library is another.

exit code: 0 if the model was measured, 1 if no way keeps the limits of --tune, 2 for bad use or if no backend here can
run it"""
MIN_COSINE = 0.999
"""Smallest cosine to the golden sample that --tune allows by default: bf16 keeps it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    parser.add_argument("--batch", metavar="N,...", type=_sizes, default=(1, 8), help="batch sizes (default: 1,8)")
    what = "approximate time of the timed runs of a batch size"
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help=f"{what} (default: %(default)g)")
    what = "largest number of timed runs of a batch size"
    parser.add_argument("--runs", metavar="N", type=int, default=1000, help=f"{what} (default: %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the inputs (default: %(default)s)")
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options.add_provider(parser)
    options.add_no_verify_hash(parser)
    compare = parser.add_argument_group("every way to run it here")
    compare.add_argument("--compare", action="store_true", help="measure every provider and compute type, in turns")
    what = "as --compare, and write the fastest beside MODEL, for --provider tuned"
    compare.add_argument("--tune", action="store_true", help=what)
    what = "for --tune: smallest cosine to the golden sample"
    compare.add_argument(
        "--min-cosine", metavar="X", type=_cosine, help=f"{what} (default: {MIN_COSINE}; int8: the manifest's limit)"
    )
    what = "numbers of sessions at the same time, which share the cores"
    compare.add_argument("--streams", metavar="N,...", type=_sizes, help=f"{what} (default: 1)")
    compare.add_argument("--plot", metavar="FILE", type=options.path, help="draw images a second as a PNG")


def run(arguments: argparse.Namespace) -> int:
    """Measure `arguments.model` and return the exit code.

    Raises:
        UsageError: a number makes no sense, or the model takes no such batch.
        ManifestError, BackendError: the model can't be read or can't run here.
        CheckError: with --tune, no way keeps its limits.
    """
    from runtime.backends import open_session
    from runtime.checks.bench import as_json, as_text, bench, check_sizes
    from runtime.contract.manifest import read_manifest

    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: must be 0 or more")
    _check_together(arguments)
    check_sizes(read_manifest(arguments.model), arguments.batch)  # before anything is loaded
    checked = options.verify_hash(arguments)
    if arguments.compare or arguments.tune:
        return _compare(arguments, verify_hash=checked, tell=_tell)
    result = bench(
        lambda: open_session(arguments.model, arguments.provider, compute=arguments.compute, verify_hash=checked),
        arguments.batch,
        seconds=arguments.seconds,
        runs=arguments.runs,
        seed=arguments.seed,
        tell=_tell,
    )
    sys.stdout.write(f"{json.dumps(as_json(result), indent=2) if arguments.json else as_text(result)}\n")
    return 0


def _check_together(arguments: argparse.Namespace) -> None:
    """Check that the options fit each other; raises UsageError."""
    if arguments.compare or arguments.tune:
        for name, is_given in (("provider", arguments.provider != "auto"), ("compute", arguments.compute is not None)):
            if is_given:
                raise UsageError(f"--{name} is not for --compare and --tune, which measure all there are: leave it out")
    else:
        for name in ("streams", "plot"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is for --compare and --tune: give one of them")
    if arguments.min_cosine is not None and not arguments.tune:
        raise UsageError("--min-cosine is for --tune: give it, or leave it out")


def _usual_min_cosine(manifest: Manifest) -> float:
    """The limit of --tune unless another is given.

    An int8 file has its own: golden images are no pictures that its scales fit, so it is farther off there.
    """
    own = manifest.parity.limits.min_cosine if manifest.options.precision == "int8" else None
    return MIN_COSINE if own is None else min(MIN_COSINE, own)


def _compare(arguments: argparse.Namespace, *, verify_hash: bool, tell: Callable[[str], None]) -> int:
    """Measure every way, print the figures, and write the fastest with --tune; returns the exit code."""
    from dataclasses import asdict

    from runtime.backends.tuned import write_tuned
    from runtime.checks.compare import choose, compare_ways
    from runtime.checks.compare_report import as_json, as_text, plot, require_matplotlib
    from runtime.contract.manifest import read_manifest

    if arguments.plot is not None:
        require_matplotlib()
    manifest = read_manifest(arguments.model)
    if arguments.tune and manifest.builder.name != "onnx":
        raise UsageError(f"--tune: {arguments.model} is an engine, which runs in one way")
    found = compare_ways(
        arguments.model,
        manifest,
        arguments.batch,
        arguments.streams or (1,),
        seconds=arguments.seconds,
        runs=arguments.runs,
        seed=arguments.seed,
        verify_hash=verify_hash,
        tell=tell,
    )
    data = as_json(found)
    chosen = None
    try:
        if arguments.tune:
            limit = _usual_min_cosine(manifest) if arguments.min_cosine is None else arguments.min_cosine
            choice, best, runs = choose(found, limit)
            chosen = best, runs
            path = write_tuned(arguments.model, manifest, choice, limit, data)
            data["tuned"] = asdict(choice)
            tell(f"wrote {path}: {choice.provider}, {choice.compute}, batch {choice.batch}, streams {choice.streams}")
    finally:  # the figures, also if no way keeps the limits
        text = json.dumps(data, indent=2) if arguments.json else as_text(found, chosen)
        sys.stdout.write(f"{text}\n")
        if arguments.plot is not None:
            plot(found, arguments.plot)
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a cosine above 0, at most 1, as 0.9998")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    """`1,8,64` as numbers; argparse's error for anything else."""
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas, 1,8,64") from None
