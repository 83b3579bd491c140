"""The process in which checks run, so that a crash or a broken GPU context ends one check alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runtime.contract.errors import ItaeError, one_line
from scripts.gpu_checks.check import Failed, Skipped

ROOT = Path(__file__).parents[2]
"""The checkout."""
GRACE = 10.0
"""Seconds that a process gets to end by itself."""


class Child:
    """Calls functions in a process of its own, one after another; a new one after each call that went wrong."""

    def __init__(self, log: Path) -> None:
        """Prepare; `log` gets what libraries print."""
        self._log = log
        self._process: Any = None
        self._connection: Any = None

    def call(self, seconds: float, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Call a function of a module and return its result, both of which must be picklable.

        Raises:
            Failed: the function raised, or the process died.
            Skipped: the function raised it.
            TimeoutError: it took longer than `seconds`.
        """
        if self._process is None:
            self._start()
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(seconds):
                raise TimeoutError(f"it ran longer than {seconds:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                self.close(kill=True)
                raise
            self._process.join(GRACE)
            code = self._process.exitcode
            self.close(kill=True)
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            raise Failed(f"its process died ({how}): a library crashed, or memory ran out; see {self._log}") from error
        if isinstance(answer, Failed | Skipped):
            self.close()
            raise answer
        return answer

    def close(self, *, kill: bool = False) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._connection.send(None)
        if kill:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with the processes that it started
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of the parent's threads and libraries
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._log))
        self._process.start()
        theirs.close()


def _serve(connection: Connection, log: Path) -> None:
    """The child's loop."""
    os.setsid()  # a group of its own, which can be killed as one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the parent has gone
            return
        if job is None:
            return
        function, arguments = job
        try:
            answer = function(*arguments)
        except (Failed, Skipped) as result:
            answer = result
        except ItaeError as error:
            answer = Failed(one_line(error))
        except Exception as error:  # a library's own, of any class, perhaps not picklable
            answer = Failed(f"{type(error).__name__}: {one_line(error)[:500]}")
        connection.send(answer)


def command(log: Path, seconds: float, *words: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a command in the checkout's root and return its stdout; stderr goes to `log`.

    Raises:
        Failed: its exit code is not 0; the reason is its last line on stderr.
        TimeoutError: it took longer than `seconds`.
    """
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that its own processes can be ended with it
        )
        try:
            stdout, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"it ran longer than {seconds:.0f} s") from error
            raise
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    text = stdout.decode(errors="replace")
    if process.returncode:
        last = said or text.strip().splitlines() or ["it said nothing"]
        raise Failed(f"exit code {process.returncode}: {last[-1][:500]}")
    return text
