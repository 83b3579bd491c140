"""Every way in which this machine can run a model, side by side: time, memory, distance from the golden sample.

Each way has processes of its own, which hold the model while all are timed in turns: whatever else the machine does
hits all of them alike, and a library that crashes ends its own process only.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import PROVIDERS, open_session, resolve_provider, uses_gpu
from runtime.backends.compute import COMPUTES, resolve_compute
from runtime.backends.session import Session, run_in_batches
from runtime.backends.tuned import Choice
from runtime.checks.bench import check_sizes, noise, peak_rss
from runtime.checks.verify import limits_at
from runtime.contract.comparison import compare
from runtime.contract.errors import BackendError, CheckError, ItaeError, ManifestError, UsageError, one_line
from runtime.contract.golden import read_golden
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest

MIN_ROUNDS = 3
WARM_UP_RUNS = 2
PAUSE = 0.02
"""Seconds before each run: the threads of the way before spin for a while, waiting for work."""
AS_FAST = 0.02
"""Share of the highest throughput by which another way may be slower and still counts as equally fast."""
_JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class Way:
    """A way to run a model."""

    provider: str
    compute: str
    streams: int = 1
    """Number of sessions at the same time, each in a process of its own with its share of the cores."""


@dataclass(frozen=True)
class Distance:
    """The distance of a way's results from the golden sample."""

    max_abs: float
    min_cosine: float
    failure: str | None
    """The limit of its compute type that it did not keep."""


@dataclass(frozen=True)
class Runs:
    """The runs of one way at one batch size."""

    batch: int
    seconds: tuple[float, ...]
    """The time of each round: until the last of the streams has run a batch."""

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Measured:
    """One way, measured; or the reason why it can't be."""

    way: Way
    problem: str | None = None
    backend: str | None = None
    load_seconds: float | None = None
    distance: Distance | None = None
    not_compared: str | None = None
    """The reason why there is no distance."""
    peak_rss: int | None = None
    """Bytes: the sum of the peaks of its processes, each with Python and libraries."""
    runs: tuple[Runs, ...] = ()

    def images_per_second(self, runs: Runs) -> float:
        """Throughput of all streams together."""
        return self.way.streams * runs.batch / runs.median


@dataclass(frozen=True)
class Comparison:
    """All ways, in the order in which they were asked for."""

    manifest: Manifest
    cores: int
    seed: int
    measured: tuple[Measured, ...]


def ways(manifest: Manifest, streams: Sequence[int] = (1,)) -> list[Way]:
    """Return the ways in which the model may run: providers and compute types; several streams on the CPU only."""
    if manifest.builder.name != "onnx":
        return [Way(resolve_provider(manifest, "auto"), manifest.options.precision)]
    found = []
    for provider in (name for name in PROVIDERS if name != "auto"):
        for compute in dict.fromkeys((manifest.options.precision, *COMPUTES)):
            with contextlib.suppress(UsageError):  # not for this provider or file
                resolve_compute(manifest, provider, compute)
                found += [Way(provider, compute, n) for n in streams if n == 1 or not uses_gpu(provider)]
    return found


def compare_ways(
    model: Path,
    manifest: Manifest,
    batches: Sequence[int],
    streams: Sequence[int] = (1,),
    *,
    seconds: float,
    runs: int,
    seed: int = 0,
    verify_hash: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Time every way to run a model at each batch size, in turns, on seeded noise.

    Args:
        model: the model's file.
        manifest: its manifest.
        batches: batch sizes of one stream.
        streams: numbers of sessions at the same time.
        seconds: approximate time for one way at one batch size; there are `MIN_ROUNDS` rounds at least.
        runs: largest number of rounds.
        seed: seed of the inputs.
        verify_hash: as `open_session`.
        tell: called with the progress, a line at a time.

    Raises:
        UsageError: a number makes no sense, or the model takes no such batch.
        BackendError: this machine can't run the model in any way.
    """
    cores = usable_cores()
    if not seconds > 0 or runs < 1:
        raise UsageError(f"{seconds} seconds and {runs} runs: both must be more than 0")
    if wrong := next((n for n in streams if not 1 <= n <= cores), None):
        raise UsageError(f"--streams {wrong}: must be from 1 to the {cores} cores here, which the streams share")
    check_sizes(manifest, batches)
    with contextlib.ExitStack() as stack:
        racers = []
        failed: dict[Way, str] = {}
        for way in ways(manifest, streams):
            tell(f"loading {way.provider}, {way.compute}, {way.streams} stream{'s' * (way.streams > 1)}")
            try:
                racers.append(_Racer(stack, way, model, cores, seed, verify_hash))
            except BackendError as error:
                failed[way] = one_line(error)
        if not racers:
            reasons = "; ".join(f"{way.provider}, {way.compute}: {reason}" for way, reason in failed.items())
            raise BackendError(f"{model} runs in no way here: {reasons}")
        _race(racers, failed, batches, seconds, runs, tell)
        by_way = {racer.way: racer.measured(batches) for racer in racers if racer.way not in failed}
    every = [by_way.get(way) or Measured(way, failed[way]) for way in ways(manifest, streams)]
    return Comparison(manifest, cores, seed, tuple(every))


def choose(comparison: Comparison, min_cosine: float) -> tuple[Choice, Measured, Runs]:
    """Return the way of most images a second whose distance keeps the limits of its compute type, and `min_cosine`.

    Of ways within `AS_FAST` of the fastest it is the one with the fewest streams, then the smallest batch.

    Raises:
        CheckError: no way keeps them.
    """
    kept = [
        (one, runs)
        for one in comparison.measured
        if one.distance is not None and one.distance.failure is None and one.distance.min_cosine >= min_cosine
        for runs in one.runs
    ]
    if not kept:
        reasons = [f"{one.way.provider}, {one.way.compute}: {_reason(one)}" for one in comparison.measured]
        raise CheckError(f"no way keeps a cosine of {min_cosine:g} to the golden sample: {'; '.join(reasons)}")
    fastest = max(one.images_per_second(runs) for one, runs in kept)
    near = [(one, runs) for one, runs in kept if one.images_per_second(runs) >= (1 - AS_FAST) * fastest]
    best, runs = min(near, key=lambda pair: (pair[0].way.streams, pair[1].batch, -pair[0].images_per_second(pair[1])))
    return Choice(best.way.provider, best.way.compute, runs.batch, best.way.streams), best, runs


def _reason(one: Measured) -> str:
    if one.problem is not None:
        return one.problem
    if one.distance is None:
        return str(one.not_compared)
    return one.distance.failure or f"cosine {one.distance.min_cosine:.6f}"


@dataclass
class _Racer:
    """A way with its processes; several of them run a batch each at the same time."""

    stack: contextlib.ExitStack
    way: Way
    model: Path
    cores: int
    seed: int
    verify_hash: bool
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        share = max(1, self.cores // self.way.streams) if self.way.streams > 1 else None
        arguments = (self.model, self.way.provider, self.way.compute, share, self.seed, self.verify_hash)
        self._connections = [self.stack.enter_context(_process(arguments)) for _ in range(self.way.streams)]
        answers = self._receive()
        self._loaded: _Loaded = answers[0]
        self._load_seconds = max(one.seconds for one in answers)

    def warm(self, batch: int) -> None:
        """Take a batch of this size, and run it a few times."""
        self.seconds.setdefault(batch, [])
        self._send(("warm", batch))
        self._receive()

    def run(self, batch: int) -> None:
        """Run a batch in every stream, and note the time."""
        self._send(("run", batch))
        answers = self._receive()
        self.seconds[batch].append(max(end for _, end in answers) - min(start for start, _ in answers))

    def measured(self, batches: Sequence[int]) -> Measured:
        """The figures."""
        self._send(("memory", 0))
        loaded = self._loaded
        return Measured(
            self.way,
            None,
            loaded.backend,
            self._load_seconds,
            loaded.distance,
            loaded.not_compared,
            sum(self._receive()),
            tuple(Runs(batch, tuple(self.seconds[batch])) for batch in batches),
        )

    def _send(self, command: tuple[str, int]) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it died: the answer tells
                connection.send(command)

    def _receive(self) -> list[Any]:
        """The answers of all streams; raises BackendError if one failed or died."""
        answers = []
        for connection in self._connections:
            try:
                answers.append(connection.recv())
            except (EOFError, OSError):
                answers.append("its process died: a library crashed, or there was not enough memory")
        if problem := next((one for one in answers if isinstance(one, str)), None):
            raise BackendError(problem)
        return answers


def _race(
    racers: Sequence[_Racer],
    failed: dict[Way, str],
    batches: Sequence[int],
    seconds: float,
    runs: int,
    tell: Callable[[str], None],
) -> None:
    """Run all ways in turns, in another order each time; one that fails goes to `failed` and is left out."""

    def turn(call: Callable[[_Racer], None], number: int) -> None:
        left = [racer for racer in racers if racer.way not in failed]
        place = number % max(1, len(left))
        order = left[place:] + left[:place]
        for racer in order if number // max(1, len(left)) % 2 == 0 else order[::-1]:
            try:
                call(racer)
            except BackendError as error:
                failed[racer.way] = one_line(error)

    for size in batches:
        tell(f"batch {size}: warming up {len(racers)} ways")
        turn(lambda racer, size=size: racer.warm(size), 0)  # type: ignore[misc]
        end = time.perf_counter() + seconds * len(racers)
        number = 0
        while number < runs and (number < MIN_ROUNDS or time.perf_counter() < end):
            turn(lambda racer, size=size: racer.run(size), number)  # type: ignore[misc]
            number += 1
        tell(f"batch {size}: {number} rounds")
    if len(failed) and all(racer.way in failed for racer in racers):
        raise BackendError(f"every way failed: {'; '.join(dict.fromkeys(failed.values()))}")


@dataclass(frozen=True)
class _Loaded:
    backend: str
    seconds: float
    distance: Distance | None
    not_compared: str | None


@contextlib.contextmanager
def _process(arguments: tuple[Any, ...]) -> Iterator[Connection]:
    """Start a process that loads a model; it ends with the block.

    Raises:
        BackendError: it can't be started.
    """
    context = multiprocessing.get_context("spawn")  # nothing of this process's threads and libraries
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, *arguments), daemon=True)
    try:
        process.start()
    except OSError as error:
        raise BackendError(f"a process for it can't be started ({error.strerror or one_line(error)})") from error
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()  # which ends it
        process.join(_JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(
    connection: Connection,
    model: Path,
    provider: str,
    compute: str,
    threads: int | None,
    seed: int,
    verify_hash: bool,
) -> None:
    """The process of one stream: answers each command, with a text if it failed; ends when the other side does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends the work
    os.dup2(2, 1)  # what libraries print
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        try:
            start = time.perf_counter()
            session = open_session(model, provider, compute=compute, threads=threads, verify_hash=verify_hash)
            loaded = time.perf_counter() - start
            with contextlib.closing(session):
                distance, not_compared = _distance(model, session)
                connection.send(_Loaded(session.name, loaded, distance, not_compared))
                batches: dict[int, Any] = {}
                while True:
                    command, size = connection.recv()
                    if command == "memory":
                        connection.send(peak_rss())
                        continue
                    if command == "warm":
                        batches = {size: noise(session.manifest, size, seed)}
                        for _ in range(WARM_UP_RUNS):
                            session.run(batches[size])
                    time.sleep(PAUSE)
                    start = time.perf_counter()  # one clock for all processes
                    session.run(batches[size])
                    connection.send((start, time.perf_counter()))
        except ItaeError as error:
            connection.send(one_line(error))


def _distance(model: Path, session: Session) -> tuple[Distance | None, str | None]:
    """The distance from the golden sample, or the reason why it is not known."""
    manifest = session.manifest
    try:
        golden = read_golden(model, manifest)
    except ManifestError as error:
        return None, one_line(error)
    found = compare(run_in_batches(session, golden.input), golden, limits_at(session))
    if math.isnan(found.max_abs):
        return None, "; ".join(found.failures)
    return Distance(found.max_abs, min(found.min_cosine, 1.0), "; ".join(found.failures) or None), None
