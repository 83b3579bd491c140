"""`scripts/bench cluster`: the whole command beside bare k-means of other libraries. `scripts/bench cluster --help`."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.clustering.points import Float32, distances_to, nearest
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.machine import usable_cores
from runtime.store.writer import open_writer
from scripts.benchmark.measure import orders

OURS = "itae cluster"
BARE = {"scikit-learn KMeans": "sklearn", "scikit-learn MiniBatchKMeans": "sklearn", "faiss-cpu": "faiss"}
"""Contestants that are called bare, and the module that each needs."""
EQUAL = 0.01
"""Inertia within this share of the best one is as good: only these are compared in time."""
_FOLDERS, _IMAGES = 200, 1000
"""Each folder shows the same images, by a link, so that the picture has something to draw."""


@dataclass(frozen=True)
class Run:
    """One contestant in one round."""

    name: str
    seconds: float
    """Time of the whole process for `cluster`, and of the call, labels included, for the others."""
    peak: float
    """Memory of the process at most, by VmHWM, as a multiple of the embeddings'."""
    inertia: float


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench cluster",
        description="Time `cluster`, from its start to its exit, beside k-means of other libraries called bare on the "
        "same unit vectors: interleaved, each in a process of its own. Seeded data. Markdown on stdout.",
    )
    options.add_argument("--n", type=int, default=200_000, help="embeddings (default: %(default)s)")
    options.add_argument("--width", type=int, default=768, help="(default: %(default)s)")
    options.add_argument("--k", type=int, default=1000, help="(default: %(default)s)")
    options.add_argument("--iterations", type=int, default=20, help="at most (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=4, help="(default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of data and starts (default: %(default)s)")
    options.add_argument("--contestants", help=f"only these besides ours: comma-separated, of {', '.join(BARE)}")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every run there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    given = parser().parse_args(argv)
    if min(given.n, given.width, given.k, given.iterations, given.rounds) < 1 or given.k > given.n:
        raise UsageError("every number must be 1 or more, and --k at most --n")
    names = [OURS, *_chosen(given.contestants)]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        points = draw(given.n, given.width, given.seed)
        _write(folder, points)
        cycle = orders(names)
        for number in range(given.rounds):
            for name in cycle[number % len(cycle)]:
                runs.append(_run(name, folder, points, given.k, given.iterations, given.seed + number))
                last = runs[-1]
                _say(f"round {number + 1}: {name}: {last.seconds:.1f} s, {last.peak:.2f}, inertia {last.inertia:.6g}")
    print(_as_markdown(runs, names, f"{given.n:,} x {given.width}, k = {given.k:,}, {given.iterations} iterations"))
    if given.json:
        given.json.write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n")
    return 0


def _chosen(text: str | None) -> list[str]:
    """The contestants besides ours that can run here."""
    wanted = list(BARE) if text is None else text.split(",")
    if unknown := next((name for name in wanted if name not in BARE), None):
        raise UsageError(f"--contestants {unknown}: must be of {', '.join(BARE)}")
    found = [name for name in wanted if importlib.util.find_spec(BARE[name])]
    for name in set(wanted) - set(found):
        _say(f"{name} is left out: the package {BARE[name]} is not installed")
    return found


def draw(n: int, width: int, seed: int) -> Float32:
    """Seeded unit vectors: groups of very different sizes in 64 dimensions, overlapping, and noise in all of them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1500, 64)).astype(np.float32)
    lift = (rng.standard_normal((64, width)) / 8).astype(np.float32)
    shares = rng.pareto(1.5, len(centres)) + 0.2
    groups = rng.choice(len(centres), n, p=shares / shares.sum())
    points = np.empty((n, width), np.float32)
    for start in range(0, n, 4096):
        of = groups[start : start + 4096]
        near = centres[of] + 0.7 * rng.standard_normal((len(of), 64), np.float32)
        points[start : start + 4096] = near @ lift + 0.3 * rng.standard_normal((len(of), width), np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def _write(folder: Path, points: Float32) -> None:
    """The store for ours, the array for the others, and images for the picture."""
    np.save(folder / "points.npy", points)
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(_IMAGES):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{number}.jpg")
    for number in range(_FOLDERS):
        (folder / f"{number}").symlink_to(images)
    step = 4096
    with open_writer(folder / "store", {}) as writer:
        for start in range(0, len(points), step):
            rows = range(start, min(start + step, len(points)))
            roots = [str(folder / f"{row // _IMAGES % _FOLDERS}") for row in rows]
            paths = [f"{'./' * (row // (_IMAGES * _FOLDERS))}{row % _IMAGES}.jpg" for row in rows]
            writer.add(roots, paths, points[start : start + step])


def _run(name: str, folder: Path, points: Float32, k: int, iterations: int, seed: int) -> Run:
    out = folder / "out"
    if name == OURS:
        words = ["cluster", folder / "store", "--out", out, "--k", k, "--n-init", 1, "--max-iter", iterations]
        command = [sys.executable, "-c", _COMMAND, *words, "--seed", seed, "--quiet", "--json"]
    else:
        command = [sys.executable, "-c", _CALLS[name], folder / "points.npy", k, iterations, seed, folder / "found.npy"]
    start = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise CheckError(f"{name} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    peak, _, took = done.stderr.splitlines()[-1].partition(" ")
    centroids = np.load(out / "centroids.npy" if name == OURS else folder / "found.npy").astype(np.float64)
    inertia = float((distances_to(points, centroids, nearest(points, centroids)) ** 2).sum())
    return Run(name, float(took) if took else seconds, int(peak) * 1024 / points.nbytes, inertia)


_PEAK = """
def peak():
    import re
    return re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
"""
_COMMAND = f"""{_PEAK}
import sys
from runtime.__main__ import main
code = main(sys.argv[1:])
print(peak(), file=sys.stderr)
sys.exit(code)
"""
_CALL = f"""{_PEAK}
import sys, time
import numpy as np
points, k, iterations, seed = np.load(sys.argv[1]), *map(int, sys.argv[2:5])
%s
start = time.perf_counter()
%s
print(peak(), time.perf_counter() - start, file=sys.stderr)
np.save(sys.argv[5], centroids)
"""
_CALLS = {
    "scikit-learn KMeans": _CALL
    % (
        "from sklearn.cluster import KMeans",
        "found = KMeans(k, n_init=1, max_iter=iterations, random_state=seed).fit(points)\n"
        "centroids, labels = found.cluster_centers_, found.labels_",
    ),
    "scikit-learn MiniBatchKMeans": _CALL
    % (
        "from sklearn.cluster import MiniBatchKMeans",
        "found = MiniBatchKMeans(k, n_init=1, max_iter=iterations, random_state=seed).fit(points)\n"
        "centroids, labels = found.cluster_centers_, found.labels_",
    ),
    # All points, as the others; by default faiss takes 256 for each centroid.
    "faiss-cpu": _CALL
    % (
        "import faiss",
        "found = faiss.Kmeans(\n"
        "    points.shape[1], k, niter=iterations, seed=seed + 1, max_points_per_centroid=len(points)\n"
        ")\n"
        "found.train(points)\n"
        "centroids, labels = found.centroids, found.index.search(points, 1)[1]",
    ),
}


def _as_markdown(runs: Sequence[Run], names: Sequence[str], what: str) -> str:
    """The table; ratios are of each round, to the fastest bare call whose inertia is as good as the best's."""
    by_name = {name: [run for run in runs if run.name == name] for name in names}
    best = min(statistics.median(run.inertia for run in by_name[name]) for name in names)
    as_good = [
        name for name in names[1:] if statistics.median(run.inertia for run in by_name[name]) <= best * (1 + EQUAL)
    ]
    lines = [
        f"{what}, one start, {usable_cores()} cores, {len(by_name[OURS])} rounds, medians",
        "",
        "| | seconds | memory / embeddings | inertia / best | ours / it |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        mine = by_name[name]
        ratio = statistics.median(ours.seconds / other.seconds for ours, other in zip(by_name[OURS], mine, strict=True))
        share = statistics.median(run.inertia for run in mine) / best
        seconds, peak = (statistics.median(getattr(run, field) for run in mine) for field in ("seconds", "peak"))
        mark = "" if name in as_good or name == OURS else " (not as good)"
        lines.append(f"| {name}{mark} | {seconds:.1f} | {peak:.2f} | {share:.4f} | {ratio:.2f} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
