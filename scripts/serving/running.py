"""Runs `scripts/serve` for the length of a block, for tests and measurements."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.contract.errors import CheckError

SERVE = Path(__file__).parents[1] / "serve"
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
_STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A running server: its process, and where it listens."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    metrics: str


@contextlib.contextmanager
def running(repository: Path, log: Path, *options: str) -> Iterator[Server]:
    """Start a server on ports that are free, wait until it is ready, and stop it as Ctrl-C does.

    Args:
        repository: the model repository.
        log: file for what the server writes to stderr.
        options: further options of `scripts/serve`.

    Raises:
        CheckError: it did not start, or ended otherwise than by Ctrl-C.
    """
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [SERVE, repository, *FREE_PORTS, *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            line = stdout.readline()  # empty if it ends first, as it does after its own limit
        ready = re.fullmatch(r"ready: http=(\S+) grpc=(\S+) metrics=(\S+)\n", line)
        if ready is None:
            raise CheckError(f"the server did not start: {log.read_text()[-2000:]}")
        yield Server(process, *ready.groups())
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code:
        raise CheckError(f"the server ended with exit code {code}: {log.read_text()[-2000:]}")


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found
