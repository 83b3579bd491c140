"""A process that holds one contestant and runs it on command; the clock is inside."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import one_line
from scripts.benchmark.runners import Job, load

Float32 = npt.NDArray[np.float32]
Result = TypeVar("Result")

WARM_SECONDS = 0.5
"""Shortest time that each contestant runs before a batch size is timed."""
WARM_RUNS = 3


class Refused(Exception):  # noqa: N818  # a reason, not an error of ours
    """A contestant can't take part; the text says why."""


class Worker:
    """The parent's end of a worker."""

    def __init__(self, job: Job, connection: Connection, process: multiprocessing.process.BaseProcess) -> None:
        self.contestant = job.contestant
        self._connection, self._process = connection, process

    def load(self) -> str:
        """Wait until it is loaded; what runs it, with its version."""
        return str(self._answer())

    def embed(self, images: Float32) -> Float32:
        """The embeddings (S, C) of images (S, 3, H, W)."""
        self._connection.send(("embed", images))
        return np.asarray(self._answer())

    def warm(self, batch: Float32) -> None:
        """Take a batch and run it until its time is steady."""
        self._connection.send(("warm", batch))
        self._answer()

    def seconds(self) -> float:
        """Run the batch once; how long that took."""
        self._connection.send(("time", None))
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(("end", None))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _answer(self) -> Any:  # noqa: ANN401
        """Receive the worker's answer.

        Raises:
            Refused: the contestant failed, or its process died.
        """
        try:
            answer = self._connection.recv()
        except EOFError as error:
            raise Refused("its process died; is there enough memory?") from error
        if isinstance(answer, Refused):
            raise answer
        return answer


@contextlib.contextmanager
def started(job: Job) -> Iterator[Worker]:
    """Start a worker, which loads meanwhile; it ends with the block."""
    context = multiprocessing.get_context("spawn")  # nothing of the parent's threads and libraries
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    worker = Worker(job, ours, process)
    try:
        yield worker
    finally:
        worker.close()


def serve(connection: Connection, job: Job) -> None:
    """The worker's own loop."""
    _stdout_to_stderr()
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # read when torch is imported
    os.environ["OMP_PROC_BIND"] = "true"
    try:
        runner = load(job)
        connection.send(runner.version)
        while True:
            command, batch = connection.recv()
            if command == "end":
                return
            if command == "time":
                start = time.perf_counter()
                runner.run()
                connection.send(time.perf_counter() - start)
                continue
            runner.put(batch)
            until = time.perf_counter() + (WARM_SECONDS if command == "warm" else 0)
            runs = 0
            while runs < (WARM_RUNS if command == "warm" else 1) or time.perf_counter() < until:
                runner.run()
                runs += 1
            connection.send(runner.get())
    except (EOFError, KeyboardInterrupt):  # the parent has gone
        return
    except Exception as error:  # a library's own, of any class
        with contextlib.suppress(OSError):
            connection.send(Refused(one_line(error)[:300]))


def in_a_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process of its own, so that its memory is released at the end."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_stdout_to_stderr) as pool:
        return pool.submit(function, *arguments).result()


def _stdout_to_stderr() -> None:
    """Send the output of libraries to stderr, since stdout is the report."""
    os.dup2(2, 1)
