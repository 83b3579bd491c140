"""`python -m runtime plan`: measured rates -> hours, storage and cost of embedding many images."""

from __future__ import annotations

import argparse
import json
import sys

from runtime.commands import options
from runtime.contract.errors import UsageError

WHAT = "compute what embedding many images takes: hours, storage, cost"
EXAMPLES = """examples:
  %(prog)s --images 1e9 --rate 2500 --devices 64 --price-per-hour 2.50
  python -m runtime bench itae.engine --batch 64 --json > bench.json
  %(prog)s --images 1e9 --bench bench.json --devices 64 --decode-rate 250 --image-bytes 100e3

It is arithmetic: all devices are busy all the time, and nothing else limits them. Measure a thousand images with
`embed` before you believe it. The store's size counts float32 embeddings and paths of some 50 characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--images", metavar="N", type=_whole, required=True, help="number of images, as 1e9")
    parser.add_argument("--rate", metavar="R", type=float, help="images a second that one device embeds")
    parser.add_argument(
        "--bench", metavar="FILE", type=options.path, help="take rate and width from the output of `bench --json`"
    )
    parser.add_argument("--devices", metavar="N", type=_whole, default=1, help="number of devices (default: 1)")
    parser.add_argument("--price-per-hour", metavar="P", type=float, help="price of a device for an hour")
    parser.add_argument("--width", metavar="C", type=_whole, help="elements of an embedding (default: 768, ViT-B's)")
    parser.add_argument(
        "--decode-rate", metavar="R", type=float, help="images a second that one core decodes: how many cores it takes"
    )
    parser.add_argument(
        "--image-bytes", metavar="B", type=_whole, help="mean size of an image's file: how fast they must be read"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit code.

    Raises:
        UsageError: not exactly one of --rate and --bench is given, or a number is not above 0.
        InputError: the file of --bench can't be read, or is none.
    """
    from runtime.checks.plan import DEFAULT_WIDTH, as_json, as_text, plan, read_bench

    if (arguments.rate is None) == (arguments.bench is None):
        raise UsageError("give one of --rate and --bench")
    width, rate = arguments.width, arguments.rate
    if arguments.bench is not None:
        measured = read_bench(arguments.bench)
        rate, width = measured.images_per_second, width or measured.width
    made = plan(
        arguments.images,
        rate,
        arguments.devices,
        width or DEFAULT_WIDTH,
        price_per_hour=arguments.price_per_hour,
        decode_rate=arguments.decode_rate,
        image_bytes=arguments.image_bytes,
    )
    sys.stdout.write(f"{json.dumps(as_json(made), indent=2) if arguments.json else as_text(made)}\n")
    return 0


def _whole(text: str) -> int:
    """A whole number above 0, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0, as 1000000 or 1e6")
    return int(value)
