"""Starts and stops `scripts/serve`."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "scripts" / "serve"
STOP_SECONDS = 60
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@dataclass(frozen=True)
class Server:
    """A running server."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[str]
    log: Path


def start(repository: Path, log: Path) -> Server:
    """Start a server and wait until it is ready."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [SERVE, repository, *FREE_PORTS, "--poll", "1"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as stdout:
        line = stdout.readline()  # empty if it ends first, as it does after its own limit
    found = re.fullmatch(r"ready: http=(\S+) grpc=(\S+) metrics=(\S+)\n", line)
    if found is None:
        process.wait(STOP_SECONDS)
        pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
    return Server(*found.groups(), process, log)


def stop(server: Server) -> None:
    """Press Ctrl-C; nothing of the server may be left."""
    tritons = children(server.process.pid)
    assert tritons
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(STOP_SECONDS) == 0, server.log.read_text()[-2000:]
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in tritons) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in tritons if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found
