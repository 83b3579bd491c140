"""How fast a model runs here, by batch size, and what memory it takes: the model alone, no pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.device_memory import used_device_memory
from runtime.backends.session import Array, Session, batch_limits
from runtime.contract.errors import UsageError
from runtime.contract.manifest import Manifest

WARM_UP_RUNS = 3
PERCENTILES = (50, 95, 99)
"""Each is a latency that was seen: the smallest that so many percent of the runs kept to."""


@dataclass(frozen=True)
class Timing:
    """One batch size."""

    batch: int
    latencies: npt.NDArray[np.float64]
    """(runs,): seconds of each run, of a whole batch: from arrays in memory to checked arrays in memory."""
    first: float
    """Seconds of the very first run: some backends allocate or choose kernels in it."""
    peak_rss: int
    """Bytes: the process's peak until the end of this size, Python and libraries included."""
    device_memory: int | None
    """Bytes in use on the GPU after these runs; None if there is no GPU to ask."""

    @property
    def runs(self) -> int:
        """Number of timed runs, without the warm-up."""
        return len(self.latencies)

    @property
    def images_per_second(self) -> float:
        """Images of all timed runs, through their time."""
        return float(self.batch * self.runs / self.latencies.sum())

    def percentile(self, percent: int) -> float:
        """A percentile of the latencies, in seconds."""
        return float(np.percentile(self.latencies, percent, method="inverted_cdf"))


@dataclass(frozen=True)
class Bench:
    """The figures of `bench` for one model."""

    manifest: Manifest
    backend: str
    load_seconds: float
    rss_before: int
    """Bytes: the process's peak before the model was loaded."""
    rss_loaded: int
    """Bytes: the process's peak after the model was loaded."""
    device_memory_before: int | None
    """Bytes in use on the GPU before the model was loaded, by whichever program."""
    timings: tuple[Timing, ...]
    seed: int


def supported(percent: int, runs: int) -> bool:
    """Whether so many runs say something of a percentile: at least one of them lies above it."""
    return runs * (100 - percent) >= 100


def bench(
    open_model: Callable[[], Session],
    batches: Sequence[int],
    *,
    seconds: float,
    runs: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Load a model and time it at each batch size, on seeded noise, one run after another.

    Args:
        open_model: loads the model; it is timed and must load it anew. What it imports counts.
        batches: sizes in the order to run them.
        seconds: time for the timed runs of one size; the run that exceeds it is the last.
        runs: largest number of timed runs of one size.
        seed: seed of the inputs.
        tell: called with the progress, a line at a time.

    Raises:
        UsageError: a number makes no sense, or the model takes no such batch.
        ItaeError: as `open_session` and `Session.run`.
    """
    if not seconds > 0 or runs < 1:
        raise UsageError(f"{seconds} seconds and {runs} runs: both must be more than 0")
    rss_before, device_before = peak_rss(), used_device_memory()
    start = time.perf_counter()
    session = open_model()
    load_seconds = time.perf_counter() - start
    try:
        check_sizes(session.manifest, batches)
        rss_loaded = peak_rss()
        timings = []
        for size in batches:
            tell(f"batch {size}: at most {runs} runs and {seconds:g} s, after {WARM_UP_RUNS} to warm up")
            timings.append(_time(session, size, seconds, runs, seed))
    finally:
        session.close()
    return Bench(
        session.manifest, session.name, load_seconds, rss_before, rss_loaded, device_before, tuple(timings), seed
    )


def check_sizes(manifest: Manifest, batches: Sequence[int]) -> None:
    """Check that the model takes batches of these sizes.

    Raises:
        UsageError: it doesn't.
    """
    smallest, _, largest = batch_limits(manifest)
    for size in batches:
        if size < smallest or (largest is not None and size > largest):
            taken = f"{smallest} or more" if largest is None else f"{smallest} to {largest}"
            raise UsageError(f"a batch of {size}: {manifest.files.model.name} takes {taken} images at a time")


def _time(session: Session, size: int, seconds: float, runs: int, seed: int) -> Timing:
    batch = noise(session.manifest, size, seed)
    start = time.perf_counter()
    first = _run(session, batch)
    for _ in range(WARM_UP_RUNS - 1):
        if time.perf_counter() - start < seconds:
            _run(session, batch)
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies) < runs and (not latencies or time.perf_counter() < end):
        latencies.append(_run(session, batch))
    return Timing(size, np.array(latencies), first, peak_rss(), used_device_memory())


def _run(session: Session, batch: Array) -> float:
    start = time.perf_counter()
    session.run(batch)
    return time.perf_counter() - start


def noise(manifest: Manifest, size: int, seed: int) -> Array:
    """Seeded noise as the model takes it, B x ...: its time doesn't depend on what is in a picture."""
    rng = np.random.default_rng(seed)
    shape = (size, *(int(one) for one in manifest.input.shape[1:]))
    try:
        if manifest.input.dtype == "uint8":
            return rng.integers(0, 256, shape, np.uint8)
        return rng.standard_normal(shape, np.float32)
    except MemoryError as error:
        raise UsageError(f"a batch of {size}: its input alone is more than the memory here; take a smaller") from error


def peak_rss() -> int:
    """The process's peak resident memory so far, in bytes, as Linux has it.

    Not `getrusage`, whose figure begins with the peak of the process that started this one.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def as_text(result: Bench) -> str:
    """The table for people; a percentile that the runs are too few for has a star."""
    options = result.manifest.options
    base = result.device_memory_before
    what = f"{options.size}, {options.precision}, {options.image_size[0]}x{options.image_size[1]}"
    lines = [
        f"{result.manifest.files.model.name} on {result.backend}: {what}",
        f"loaded in {result.load_seconds:.2f} s, with the check of its hash and the backend's import",
        "",
        "  batch   runs    p50 ms    p95 ms    p99 ms  images/s  first ms  peak RSS MB"
        + ("" if base is None else "   GPU MB"),
        *(_row(one, base) for one in result.timings),
        "",
    ]
    if any(not supported(percent, one.runs) for percent in PERCENTILES for one in result.timings):
        lines.append("  *: too few runs for this percentile (p95 needs 20, p99 100): give more --seconds or --runs")
    lines.append(
        "  peak RSS: of the whole process so far, Python and libraries included; "
        f"{result.rss_before / 1e6:.0f} MB before loading, {result.rss_loaded / 1e6:.0f} MB after"
    )
    if base is not None:
        lines.append("  GPU MB: memory in use on the whole first GPU, less what was in use before loading")
    return "\n".join(lines)


def _row(one: Timing, device_memory_before: int | None) -> str:
    marks = {percent: " " if supported(percent, one.runs) else "*" for percent in PERCENTILES}
    latencies = " ".join(f"{one.percentile(percent) * 1e3:8.2f}{mark}" for percent, mark in marks.items())
    row = f"  {one.batch:5} {one.runs:6} {latencies} {one.images_per_second:8.1f} {one.first * 1e3:9.1f} "
    row += f"{one.peak_rss / 1e6:12.0f}"
    if device_memory_before is not None and one.device_memory is not None:
        row += f"{(one.device_memory - device_memory_before) / 1e6:9.0f}"
    return row


def as_json(result: Bench) -> dict[str, Any]:
    """The same as data, times in the units of their names."""
    return {
        "model": result.manifest.files.model.name,
        "model_sha256": result.manifest.files.model.sha256,
        "size": result.manifest.options.size,
        "precision": result.manifest.options.precision,
        "image_size": list(result.manifest.options.image_size),
        "embedding_width": result.manifest.embedding_width,
        "backend": result.backend,
        "seed": result.seed,
        "warm_up_runs": WARM_UP_RUNS,
        "load_s": round(result.load_seconds, 4),
        "peak_rss_before_load_bytes": result.rss_before,
        "peak_rss_after_load_bytes": result.rss_loaded,
        "device_memory_before_load_bytes": result.device_memory_before,
        "batches": [
            {
                "batch": one.batch,
                "runs": one.runs,
                **{f"p{percent}_ms": round(one.percentile(percent) * 1e3, 4) for percent in PERCENTILES},
                "too_few_runs_for": [f"p{percent}_ms" for percent in PERCENTILES if not supported(percent, one.runs)],
                "images_per_s": round(one.images_per_second, 3),
                "first_run_ms": round(one.first * 1e3, 4),
                "peak_rss_bytes": one.peak_rss,
                "device_memory_bytes": one.device_memory,
            }
            for one in result.timings
        ],
    }
