"""`scripts/bench dedup`: time, memory and recall of `dedup` on made embeddings. `scripts/bench dedup --help`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyarrow import parquet

from runtime.clustering.points import Float32
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.machine import usable_cores
from runtime.store.writer import open_writer
from scripts.benchmark.cluster import draw
from scripts.benchmark.peak import run_to_end

PLANTED = 0.2
"""Share of the rows that are near-duplicates of another row."""
_STEP = 4096


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench dedup",
        description="Time `dedup`, from its start to its exit, on seeded embeddings of which a fifth are "
        "near-duplicates of others: seconds, memory, share of the planted ones that it finds. Markdown on stdout.",
    )
    options.add_argument("--n", type=int, default=100_000, help="embeddings (default: %(default)s)")
    options.add_argument("--width", type=int, default=768, help="(default: %(default)s)")
    options.add_argument("--threshold", type=float, default=0.97, help="(default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the data (default: %(default)s)")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    if min(given.n, given.width) < 1 or not 0 < given.threshold < 1:
        raise UsageError("--n and --width must be 1 or more, --threshold between 0 and 1")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        points = draw(given.n, given.width, given.seed)
        one, other = plant(points, given.threshold, given.seed)
        with open_writer(folder / "store", {}) as writer:
            for start in range(0, given.n, _STEP):
                rows = range(start, min(start + _STEP, given.n))
                writer.add(["/made"] * len(rows), [f"{row}.jpg" for row in rows], points[start : start + _STEP])
        size = points.nbytes
        del points
        words = [
            "dedup",
            folder / "store",
            "--out",
            folder / "out",
            "--threshold",
            given.threshold,
            "--json",
            "--quiet",
        ]
        command = [sys.executable, "-m", "runtime", *map(str, words)]
        begun = time.perf_counter()
        with (folder / "summary").open("wb") as stdout:
            process = subprocess.Popen(command, stdout=stdout)
            peak = run_to_end(process)
        seconds = time.perf_counter() - begun
        if process.returncode:
            raise CheckError(f"dedup failed with exit code {process.returncode}")
        summary = json.loads((folder / "summary").read_text())
        groups = parquet.read_table(folder / "out" / "duplicates.parquet")["group"].to_pylist()
    found = sum(groups[a] is not None and groups[a] == groups[b] for a, b in zip(one, other, strict=True))
    print(
        f"{given.n:,} x {given.width}, threshold {given.threshold:g}, {usable_cores()} cores\n\n"
        "| seconds | memory, MB | of the embeddings' bytes | groups | planted pairs found |\n"
        "|---|---|---|---|---|\n"
        f"| {seconds:.1f} | {peak / 1e6:,.0f} | {peak / size:.2f} | {summary['groups']:,} | "
        f"{found:,} of {len(one):,} |"
    )
    return 0


def plant(points: Float32, threshold: float, seed: int) -> tuple[list[int], list[int]]:
    """Make some of the unit vectors (n, C) near-duplicates of others; returns the rows of the pairs.

    Their cosines lie between the threshold and 1.
    """
    rng = np.random.default_rng([seed, 1])
    count = int(PLANTED * len(points))
    rows = rng.permutation(len(points))[: 2 * count]
    one, other = rows[:count], rows[count:]
    cosines = rng.uniform(threshold + 0.001 * (1 - threshold), 1, count)
    for start in range(0, count, _STEP):
        a, b = one[start : start + _STEP], other[start : start + _STEP]
        cosine = cosines[start : start + _STEP, None]
        aside = rng.standard_normal((len(a), points.shape[1]))
        aside -= np.einsum("ij,ij->i", aside, points[a])[:, None] * points[a]
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        points[b] = cosine * points[a] + np.sqrt(1 - cosine**2) * aside
    return one.tolist(), other.tolist()
