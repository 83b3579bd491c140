"""`scripts/bench calibrate`: the settings that a calibration tries, beside one plain pass of the model.

Round by round, and in turns, the model runs plain as transformers runs it, a calibration looks at the same images, and
tries its settings on what it saw.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from exporter.calibration.blocks import Blocks, Seen
from exporter.calibration.rule import Detection, to_config
from exporter.calibration.tally import LEVELS
from exporter.calibration.trials import Trials, layers_from, settings_beside
from exporter.calibration.valley import Valley
from exporter.methods.itae.options import SOURCES, Source
from exporter.models.architecture import architecture
from exporter.options import ExportSpec
from exporter.pipeline import load
from runtime.contract.console import Parser
from runtime.contract.errors import OutputFileError, UsageError
from scripts.benchmark.measure import orders

GOAL = 1.5
"""Times of a plain pass that 16 settings may take."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench calibrate",
        description="Time the 16 settings that `python -m exporter calibrate` tries on its images, beside a plain pass "
        "of the same model over the same images, in turns. Random weights and images. Markdown on stdout.",
    )
    options.add_argument("--size", default="vits14", help="of the model (default: %(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    options.add_argument("--batch", type=int, default=8, help="images at a time (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=12, help="(default: %(default)s)")
    options.add_argument(
        "--first",
        type=int,
        help="block from which on artifacts are clear; one setting runs all blocks from it on "
        "(default: the middle one)",
    )
    options.add_argument(
        "--layers",
        choices=["last", "all"],
        default="last",
        help="blocks of the recommended setting: the last, or all from --first on (default: %(default)s)",
    )
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    depth = architecture(given.size).depth
    first = depth // 2 if given.first is None else given.first
    if min(given.batch, given.rounds) < 1 or not 1 <= first < depth:
        raise UsageError(f"--batch and --rounds must be 1 or more, and --first a block from 1 to {depth - 1}")
    if given.json is not None and not given.json.parent.is_dir():
        raise OutputFileError(f"can't write {given.json}: there is no folder {given.json.parent}; make it first")
    spec = ExportSpec("x.onnx", size=given.size, weights="random:0", image_size=given.image_size)
    seconds, settings = measured(spec, given.batch, given.rounds, first, given.layers)
    print(_table(given, first, seconds, settings))
    if given.json is not None:
        given.json.write_text(json.dumps(seconds) + "\n", encoding="utf-8")
    return 0


def measured(spec: ExportSpec, batch: int, rounds: int, first: int, layers: str) -> tuple[dict[str, list[float]], int]:
    """Seconds of every round, by what was done, and the number of settings."""
    height, width = spec.height_and_width
    pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    plain: Any = load(spec).model  # transformers' own attention
    blocks = Blocks(load(spec).model)
    found = [_detection(first, source, blocks.depth) for source in SOURCES]
    chosen = found[SOURCES.index("residual")]
    where = "last" if layers == "last" else layers_from(first, blocks.depth)
    settings = settings_beside(to_config(chosen, where, blocks.depth - 1, "min"), found, chosen, blocks.depth)
    trials = Trials(blocks, settings, keep_vectors=False)
    seen: list[Seen] = [blocks.look(pixels, trials.inputs)]

    def run_plain() -> None:
        with torch.inference_mode():
            plain(pixels)

    def look() -> None:
        seen[0] = blocks.look(pixels, trials.inputs)

    work: dict[str, Callable[[], object]] = {
        "plain pass": run_plain,
        "a calibration's look": look,
        "settings": lambda: trials.add(seen[0]),
    }
    for one in work.values():
        one()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in work}
    turns = orders(list(work))
    for number in range(rounds):
        for name in turns[number % len(turns)]:
            start = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, len(settings)


def _detection(layer: int, source: Source, depth: int) -> Detection:
    """A way to find artifacts that a calibration may have found, with norms of four times the others'."""
    valley = Valley("high", 1.5, 3.0, share=0.02, overlap=0.0, gap=4.0, bimodality=9.0)
    return Detection(layer, source, LEVELS.index(2.0), valley, (0.3,) * (depth - layer), 0.02, 1.0)


def _table(given: Any, first: int, seconds: dict[str, list[float]], settings: int) -> str:  # noqa: ANN401  # argparse's
    plain = seconds["plain pass"]
    lines = [
        f"{given.size} at {given.image_size} pixels, batch {given.batch}, {given.rounds} rounds; artifacts from block "
        f"{first} on, --layers {given.layers} recommended. The goal is {GOAL} times a plain pass.",
        "",
        "| what | ms an image | of a plain pass: median (quartiles) |",
        "|---|---|---|",
    ]
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        what = f"{settings} settings" if name == "settings" else name
        cell = "1" if name == "plain pass" else f"{middle:.2f} ({low:.2f}-{high:.2f})"
        lines.append(f"| {what} | {statistics.median(times) / given.batch * 1e3:.1f} | {cell} |")
    return "\n".join(lines)
