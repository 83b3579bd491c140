"""`python -m runtime bench`: model, batch sizes -> seeded noise -> latencies, images a second, memory."""

from __future__ import annotations

import argparse
import sys

from runtime.commands import options
from runtime.contract.console import add_threads
from runtime.contract.errors import UsageError

WHAT = "measure a model's latency, images a second, load time and memory"
EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.engine --batch 1,8,64 --seconds 30 --json

A latency is the time of a whole batch, from arrays in memory to checked arrays in memory, one batch after another; no
picture is read. p99 needs 100 runs and p95 20; with fewer runs the figure is marked. Peak RSS is that of the whole
process so far, so give batch sizes in rising order. GPU memory is that of the whole first GPU.

exit code: 0 if the model was measured, 2 for bad use or if no backend here can run it"""


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


def run(arguments: argparse.Namespace) -> int:
    """Measure `arguments.model` and return the exit code.

    Raises:
        UsageError: a number makes no sense, or the model takes no such batch.
        ManifestError, BackendError: the model can't be read or can't run here.
    """
    import json

    from runtime.backends import open_session
    from runtime.checks.bench import as_json, as_text, bench, check_sizes
    from runtime.contract.manifest import read_manifest

    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: must be 0 or more")
    check_sizes(read_manifest(arguments.model), arguments.batch)  # before anything is loaded
    checked = options.verify_hash(arguments)
    result = bench(
        lambda: open_session(arguments.model, arguments.provider, compute=arguments.compute, verify_hash=checked),
        arguments.batch,
        seconds=arguments.seconds,
        runs=arguments.runs,
        seed=arguments.seed,
        tell=lambda line: print(line, file=sys.stderr),  # noqa: T201
    )
    sys.stdout.write(f"{json.dumps(as_json(result), indent=2) if arguments.json else as_text(result)}\n")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    """`1,8,64` as numbers; argparse's error for anything else."""
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas, 1,8,64") from None
