"""`scripts/bench seeding`: how k-means chooses its first centroids, beside other libraries.

Each library seeds in a process of its own; then our Lloyd iterations run from what it chose, so that only the seeding
differs. faiss has no k-means++: it takes random points, which costs nothing and is what its k-means starts from.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.clustering.lloyd import Fit, lloyd
from runtime.clustering.points import NumpyPoints
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from scripts.benchmark.cluster import draw
from scripts.benchmark.measure import orders

OURS = "itae"
BARE = {"scikit-learn kmeans_plusplus": "sklearn", "faiss-cpu (random points)": "faiss"}
"""Other contestants, and the module that each needs."""


@dataclass(frozen=True)
class Seeding:
    """One contestant in one round."""

    name: str
    seconds: float | None
    """Time of the call; None if it did not end within the limit."""
    pass_seconds: float | None
    """Time of the iterations from its centroids, divided by their number; labels of the end included."""
    inertia: float | None
    """Sum of the squared distances after the iterations."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench seeding",
        description="Time how the first centroids are chosen, and compare the inertia after the same Lloyd iterations "
        "from each library's choice. Each seeds in a process of its own. Seeded data. Markdown on stdout.",
    )
    options.add_argument("--n", type=int, default=100_000, help="embeddings (default: %(default)s)")
    options.add_argument("--width", type=int, default=768, help="(default: %(default)s)")
    options.add_argument("--k", type=int, default=1000, help="(default: %(default)s)")
    options.add_argument(
        "--iterations",
        type=int,
        default=10,
        help="from each choice; 0: one pass that labels the points (default: %(default)s)",
    )
    options.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    options.add_argument("--limit", type=float, default=600, help="seconds a seeding may take (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of data and choice (default: %(default)s)")
    options.add_argument(
        "--contestants", help=f"only these besides ours: comma-separated, of {', '.join(BARE)}; none: ours alone"
    )
    options.add_argument("--json", metavar="FILE", type=Path, help="write every run there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    if min(given.n, given.width, given.k, given.rounds, given.limit) < 1 or given.k > given.n or given.iterations < 0:
        raise UsageError("every number must be 1 or more (--iterations 0 or more), and --k at most --n")
    names = [OURS, *_chosen(given.contestants)]
    runs: list[Seeding] = []
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        file = Path(scratch, "points.npy")
        points = draw(given.n, given.width, given.seed)
        np.save(file, points)
        held = NumpyPoints(points)
        spread = held.spread()
        cycle = orders(names)
        for number in range(given.rounds):
            for name in cycle[number % len(cycle)]:
                seconds = _seed(name, file, given.k, given.seed + number, given.limit)
                one = _followed(name, seconds, held, spread, file.with_name("found.npy"), given.iterations)
                runs.append(one)
                print(f"bench: round {number + 1}: {one}", file=sys.stderr, flush=True)
    what = f"{given.n:,} x {given.width}, k = {given.k:,}, {given.iterations} iterations"
    print(_as_markdown(runs, names, what, given.limit))
    if given.json:
        given.json.write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n")
    return 0


def _chosen(text: str | None) -> list[str]:
    """The contestants besides ours that can run here."""
    wanted = list(BARE) if text is None else [name for name in text.split(",") if name != "none"]
    if unknown := next((name for name in wanted if name not in BARE), None):
        raise UsageError(f"--contestants {unknown}: must be of {', '.join(BARE)}, or none")
    found = [name for name in wanted if importlib.util.find_spec(BARE[name])]
    for name in set(wanted) - set(found):
        print(f"bench: {name} is left out: the package {BARE[name]} is not installed", file=sys.stderr)
    return found


def _seed(name: str, points: Path, k: int, seed: int, limit: float) -> float | None:
    """Let a contestant choose, in a process of its own; returns the seconds of its call, None if it took too long."""
    command = [sys.executable, "-c", _CALLS[name], points, k, seed, points.with_name("found.npy")]
    loading = 60.0
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False, timeout=limit + loading
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise CheckError(f"{name} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return float(done.stdout.splitlines()[-1])


def _followed(
    name: str, seconds: float | None, points: NumpyPoints, spread: float, found: Path, iterations: int
) -> Seeding:
    """Iterate from what was chosen."""
    if seconds is None:
        return Seeding(name, None, None, None)
    chosen = np.load(found).astype(np.float64)
    start = time.perf_counter()
    fit = lloyd(points, chosen, iterations, spread) if iterations else Fit(points.nearest(chosen), chosen, 0)
    took = (time.perf_counter() - start) / (fit.iterations + 1)  # and the labels of the last centroids
    inertia = float((points.distances_to(fit.centroids, fit.labels) ** 2).sum())
    return Seeding(name, seconds, took, inertia)


_CALL = """
import sys, time
import numpy as np
points, k, seed = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
%s
start = time.perf_counter()
%s
print(time.perf_counter() - start)
np.save(sys.argv[4], centroids)
"""
_CALLS = {
    OURS: _CALL
    % (
        "from runtime.clustering.points import NumpyPoints\n"
        "from runtime.clustering.seeding import plus_plus, sample_rows\n"
        "generator = np.random.default_rng(seed)",
        "rows = sample_rows(len(points), k, generator)\n"
        "centroids = plus_plus(NumpyPoints(points).choose(rows), k, generator)",
    ),
    "scikit-learn kmeans_plusplus": _CALL
    % (
        "from sklearn.cluster import kmeans_plusplus",
        "centroids, _ = kmeans_plusplus(points, k, random_state=seed)",
    ),
    "faiss-cpu (random points)": _CALL
    % (
        "import faiss",
        "found = faiss.Kmeans(points.shape[1], k, niter=0, seed=seed + 1, max_points_per_centroid=len(points))\n"
        "found.train(points)\n"
        "centroids = found.centroids",
    ),
}


def _as_markdown(runs: Sequence[Seeding], names: Sequence[str], what: str, limit: float) -> str:
    """The table: medians over the rounds; inertia as a share of the best, in each round."""
    by_name = {name: [run for run in runs if run.name == name] for name in names}
    best = [
        min((one.inertia for one in round_ if one.inertia is not None), default=None)
        for round_ in zip(*by_name.values(), strict=True)
    ]
    cores, rounds = len(os.sched_getaffinity(0)), len(by_name[OURS])
    lines = [
        f"{what}; {cores} cores, {rounds} round{'s' * (rounds > 1)}, medians",
        "",
        "| | seeding, seconds | one pass, seconds | inertia after / best |",
        "|---|---|---|---|",
    ]
    for name in names:
        mine = by_name[name]
        shares = [one.inertia / least for one, least in zip(mine, best, strict=True) if one.inertia and least]
        seconds = [one.seconds for one in mine if one.seconds is not None]
        passes = [one.pass_seconds for one in mine if one.pass_seconds is not None]
        cells = [
            f"{statistics.median(seconds):.1f}" if len(seconds) == len(mine) else f"over {limit:.0f}",
            f"{statistics.median(passes):.1f}" if passes else "",
            f"{statistics.median(shares):.4f}" if shares else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
