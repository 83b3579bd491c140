"""`scripts/bench cpp`: `itae-embed` beside Python's `embed`, as whole commands. `scripts/bench cpp --help`."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from exporter.models.architecture import Architecture, architecture
from runtime.contract.console import Parser
from runtime.contract.errors import BackendError, CheckError, UsageError, one_line
from runtime.store import Store
from scripts.benchmark.embed import TOLERANCE, draw
from scripts.benchmark.peak import run_to_end

PROGRAM = Path(__file__).parents[2] / "build" / "cpp" / "itae-embed"
TINY = Architecture("tiny", width=48, heads=3, depth=1)
"""A model that takes next to no time, so that decoding decides."""
_TUNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables of this machine's own that would make numpy another one than users have."""


@dataclass(frozen=True)
class Workload:
    """The work of both commands, and the goal for C++ as a share of Python's time."""

    name: str
    model: Path
    images: Path
    count: int
    batch: int
    goal: float


@dataclass
class Times:
    """Seconds and peak memory in MiB of each run, of one command and workload."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)


Raced = list[tuple[Workload, tuple[Times, Times]]]
"""The workloads, each with Python's times and C++'s."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench cpp",
        description="Time `itae-embed` beside `python -m runtime embed` on the same images, as whole commands, "
        "interleaved, on the CPU: one image, many at batch 1 and 8, and many with a tiny model, where decoding "
        "decides. The embeddings are compared. Markdown on stdout, progress on stderr.",
    )
    options.add_argument("--size", default="vits14", help="of the model, random weights (default: %(default)s)")
    options.add_argument("--images", type=int, default=48, help="in each run of the model (default: %(default)s)")
    options.add_argument("--decoded", type=int, default=400, help="with the tiny model (default: %(default)s)")
    options.add_argument("--side", type=int, default=500, help="of the JPEGs, pixels (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    given = parser().parse_args(argv)
    if min(given.images, given.decoded, given.side, given.rounds) < 1:
        raise UsageError("every number must be 1 or more")
    if not PROGRAM.exists():
        raise BackendError(f"{PROGRAM} is not there: build it with scripts/build-cpp")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        draw(folder / "all", max(given.images, given.decoded), given.side)
        size = TINY if given.size == TINY.name else architecture(given.size)
        model, tiny = exported(size, folder), exported(TINY, folder)
        one, some, many = (_some(folder, count) for count in (1, given.images, given.decoded))
        raced = _race(
            (
                Workload("start to first embedding", model, one, 1, 8, 0.5),
                Workload(f"{size.name}, batch 1", model, some, given.images, 1, 1.0),
                Workload(f"{size.name}, batch 8", model, some, given.images, 8, 1.0),
                Workload("tiny model, batch 8", tiny, many, given.decoded, 8, 1 / 1.5),
            ),
            folder,
            given.rounds,
        )
    print(_as_markdown(given.side, given.rounds, raced))
    if given.json:
        times = {work.name: [asdict(one) for one in pair] for work, pair in raced}
        given.json.write_text(json.dumps(times, indent=2) + "\n")
    return 0


def exported(size: Architecture, folder: Path) -> Path:
    """Export in a process of its own, for torch's memory."""
    path = folder / f"{size.name}.onnx"
    print(f"bench: exporting {size.name}", file=sys.stderr, flush=True)
    what = f"ExportSpec({str(path)!r}, size={size!r}, weights='random:0', parity_samples=1)"
    code = f"from exporter import *; from exporter.models.architecture import Architecture; export({what})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(done.stderr.splitlines()[-1])
    return path


def _some(folder: Path, count: int) -> Path:
    """A folder with the first `count` images."""
    some = folder / f"some{count}"
    some.mkdir(exist_ok=True)
    for image in sorted((folder / "all").iterdir())[:count]:
        if not (some / image.name).exists():
            os.link(image, some / image.name)
    return some


def _race(workloads: Sequence[Workload], folder: Path, rounds: int) -> Raced:
    found: Raced = [(work, (Times(), Times())) for work in workloads]
    for number in range(rounds + 1):  # the first is to warm up
        for work, (python, cpp) in found:
            store, array = folder / "store", folder / "x.npy"
            shutil.rmtree(store, ignore_errors=True)
            common = [str(work.model), str(work.images), "--batch", str(work.batch)]
            runs = [
                (python, [sys.executable, "-m", "runtime", "embed", *common, "--out", str(store)]),
                (cpp, [str(PROGRAM), *common, "--out", str(array)]),
            ]
            for times, command in runs if number % 2 else reversed(runs):
                seconds, peak = timed(command)
                if number:
                    times.seconds.append(seconds)
                    times.peak_mib.append(peak)
            if np.abs(Store(store).load() - np.load(array)).max() > TOLERANCE:
                raise CheckError(f"{work.name}: the embeddings differ by more than {TOLERANCE:g}")
        print(f"bench: round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command; raises CheckError if it fails."""
    env = {name: value for name, value in os.environ.items() if name not in _TUNING}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)
        peak = run_to_end(process)
        seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            raise CheckError(f"{Path(command[0]).name} failed: {one_line(Exception(errors.read().decode()))}")
    return seconds, peak / 2**20


def _as_markdown(side: int, rounds: int, raced: Raced) -> str:
    lines = [
        f"JPEGs of {side} px, {rounds} rounds. Ratios are C++ / Python, medians of the rounds and their quartiles.",
        "",
        "| command | images | Python, s | C++, s | ratio | goal | images a second | peak, MiB | ratio, goal 0.5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for work, (python, cpp) in raced:
        both = list(zip(cpp.seconds, python.seconds, strict=True))
        ratios = [ours / theirs for ours, theirs in both]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        seconds = [statistics.median(times.seconds) for times in (python, cpp)]
        rates = [f"{work.count / whole:.1f}" for whole in seconds]
        peaks = [statistics.median(times.peak_mib) for times in (python, cpp)]
        lines.append(
            f"| {work.name} | {work.count} | {seconds[0]:.2f} | {seconds[1]:.2f} | "
            f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f}) | {work.goal:.2f} | {' / '.join(rates)} | "
            f"{peaks[0]:.0f} / {peaks[1]:.0f} | {peaks[1] / peaks[0]:.2f} |"
        )
    return "\n".join(lines)
