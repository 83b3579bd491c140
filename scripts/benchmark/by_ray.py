"""`scripts/bench ray`: `embed --ray local` beside `embed`, as whole commands. `scripts/bench ray --help`."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.models.architecture import architecture
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.machine import usable_cores
from runtime.contract.ray_cluster import require_ray
from runtime.store import Store
from scripts.benchmark.cpp import TINY, exported, timed
from scripts.benchmark.embed import TOLERANCE, draw

GOAL = 1.15
_DRAWN = 200
"""JPEGs that are drawn; the rest are links to them."""


@dataclass(frozen=True)
class Workload:
    """Images for one model: 1 to see what the start costs, and many."""

    name: str
    model: Path
    count: int


@dataclass(frozen=True)
class Round:
    """Seconds of four whole commands."""

    one_alone: float
    one_ray: float
    all_alone: float
    all_ray: float

    @property
    def start(self) -> float:
        """Seconds that Ray takes to start, load and end, more than the command alone."""
        return self.one_ray - self.one_alone

    @property
    def ratio(self) -> float:
        """Time for the images by Ray, of that without it; both without their start."""
        return (self.all_ray - self.one_ray) / (self.all_alone - self.one_alone)


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench ray",
        description="Time `embed --ray local` beside `embed` on the same cores and images, as whole commands, "
        "interleaved: a model that decides the time, and a tiny one, where decoding decides. Each also with one image, "
        "which is what starting costs; it is subtracted and shown apart. The rows are compared. Markdown on stdout. "
        "Under five minutes: --images 500 --decoded 6000.",
    )
    options.add_argument("--size", default="vits14", help="of the model, random weights (default: %(default)s)")
    options.add_argument("--images", type=int, default=2000, help="for the model; 0 for none (default: %(default)s)")
    options.add_argument("--decoded", type=int, default=20_000, help="for the tiny model (default: %(default)s)")
    options.add_argument("--side", type=int, default=500, help="of the JPEGs, pixels (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=1, help="(default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    if min(given.images, given.decoded) < 0 or given.images == given.decoded == 0 or min(given.side, given.rounds) < 1:
        raise UsageError("every number must be 1 or more; --images or --decoded may be 0")
    require_ray("bench ray")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        draw(folder / "drawn", _DRAWN, given.side)
        size = architecture(given.size)
        works = [
            Workload(name, exported(arch, folder), count)
            for name, arch, count in ((size.name, size, given.images), ("tiny model", TINY, given.decoded))
            if count
        ]
        raced = [(work, [_round(work, folder, number) for number in range(given.rounds)]) for work in works]
    print(_as_markdown(given.side, raced))
    if given.json:
        times = {work.name: [vars(one) for one in rounds] for work, rounds in raced}
        given.json.write_text(json.dumps(times, indent=2) + "\n")
    return 0


def _round(work: Workload, folder: Path, number: int) -> Round:
    """Run the four commands, the one by Ray last in every second round; raises CheckError if the rows differ."""
    seconds: dict[tuple[int, bool], float] = {}
    for count in (1, work.count):
        images = _linked(folder, count)
        for by_ray in (False, True) if number % 2 else (True, False):
            store = folder / f"store-{by_ray}"
            shutil.rmtree(store, ignore_errors=True)
            ray = ["--ray", "local"] if by_ray else []
            command = [
                sys.executable,
                "-m",
                "runtime",
                "embed",
                str(work.model),
                str(images),
                "--out",
                str(store),
                *ray,
            ]
            seconds[count, by_ray], _ = timed(command)
            what = "by Ray" if by_ray else "alone"
            print(f"bench: {work.name}, {count} {what}: {seconds[count, by_ray]:.1f} s", file=sys.stderr, flush=True)
    _compare(folder / "store-True", folder / "store-False")
    return Round(*(seconds[count, by_ray] for count in (1, work.count) for by_ray in (False, True)))


def _linked(folder: Path, count: int) -> Path:
    """A folder of so many images."""
    images = folder / f"images{count}"
    if not images.exists():
        images.mkdir()
        drawn = sorted((folder / "drawn").iterdir())
        for number in range(count):
            os.link(drawn[number % len(drawn)], images / f"{number:06}.jpg")
    return images


def _compare(one: Path, other: Path) -> None:
    rows = [dict(zip(found.paths, found.vectors, strict=True)) for found in (Store(one).read(), Store(other).read())]
    if rows[0].keys() != rows[1].keys():
        raise CheckError("the images that were embedded differ")
    furthest = max(float(np.abs(vector - rows[1][path]).max()) for path, vector in rows[0].items())
    if furthest > TOLERANCE:
        raise CheckError(f"the embeddings differ by {furthest:g}, more than {TOLERANCE:g}")


def _as_markdown(side: int, raced: Sequence[tuple[Workload, Sequence[Round]]]) -> str:
    lines = [
        f"JPEGs of {side} px, {usable_cores()} cores. Ratio: time for the images by Ray, of that without it, less the "
        "time for one image; median (range) of the rounds.",
        "",
        "| model | images | rounds | ratio | goal | `embed`, s | with Ray, s | of which Ray's start and end | "
        "images a second |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for work, rounds in raced:
        ratios = [one.ratio for one in rounds]
        alone, ray = (statistics.median(getattr(one, name) for one in rounds) for name in ("all_alone", "all_ray"))
        start = statistics.median(one.start for one in rounds)
        rates = [
            work.count / statistics.median(getattr(one, f"all_{name}") - getattr(one, f"one_{name}") for one in rounds)
            for name in ("alone", "ray")
        ]
        lines.append(
            f"| {work.name} | {work.count:,} | {len(rounds)} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {GOAL} | {alone:.1f} | {ray:.1f} | {start:.1f} | "
            f"{rates[0]:.1f} / {rates[1]:.1f} |"
        )
    return "\n".join(lines)
