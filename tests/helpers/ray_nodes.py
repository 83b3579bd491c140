"""Machines of a Ray cluster, all of them here: each is a `ray start` of its own, which a test may kill."""

import contextlib
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

RAY = Path(sys.executable).with_name("ray")
_PATIENCE = 60
_PR_SET_PDEATHSIG = 1
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Of the machines, and of the commands that use them: another one's cluster is not to be reached by mistake."""


class Node:
    """A machine: `ray start --block` in a session of its own."""

    def __init__(
        self, folder: Path, port: int, *, head: bool, cpus: int = 1, gpus: int = 0, memory: int = 100 << 20
    ) -> None:
        where = (
            [f"--port={port}", "--head", f"--temp-dir={folder}", "--include-dashboard=false"]
            if head
            else [f"--address=127.0.0.1:{port}"]
        )
        command = [
            str(RAY),
            "start",
            *where,
            "--block",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            f"--object-store-memory={memory}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
        ]
        library = ctypes.CDLL(None)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
            preexec_fn=lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # where pytest is killed
        )
        self._seen: dict[int, str] = {}

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def is_up(self) -> bool:
        """Whether `ray start` has said that it runs."""
        if self._process.poll() is not None:
            pytest.fail(f"ray start ended: {self.log()}")
        return "Ray runtime started" in self.log()

    def processes(self) -> dict[int, str]:
        """Numbers and command lines of all its processes, in so far as they run."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        ours = {self._process.pid}
        while more := {child for child, parent in parents.items() if parent in ours} - ours:
            ours |= more
        found = {}
        for pid in ours:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        self._seen |= found
        return found

    def workers(self, of: str) -> list[int]:
        """Processes of Ray that do `of` now, a part of a function's or class's name."""
        return [pid for pid, line in self.processes().items() if line.startswith("ray::") and of in line]

    def memory(self) -> list[int]:
        """Bytes of memory of their own that Ray's workers hold now: not what they share, such as the object store."""
        found = []
        for pid, line in self.processes().items():
            if line.startswith("ray::"):
                with contextlib.suppress(OSError, IndexError):
                    words = Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()
                    found.append(int(words[0]) * 1024)
        return found

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut does."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)  # so that none sees another one die
        self._kill_all()

    def _kill_all(self) -> None:
        for pid, line in self.processes().items() | self._seen.items():
            with contextlib.suppress(OSError):
                now = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if now == line or now.startswith("ray::"):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(_PATIENCE)

    def close(self) -> None:
        self.kill()
        self._log.close()


@contextlib.contextmanager
def cluster(*machines: dict):
    """Start machines, the first being the head, and end them all; yields the address and the machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    nodes: list[Node] = []
    try:
        for number, how in enumerate(machines):
            nodes.append(Node(folder, port, head=not number, **how))
            wait_until(nodes[-1].is_up)
        yield f"127.0.0.1:{port}", nodes
    finally:
        for node in reversed(nodes):
            node.close()
        shutil.rmtree(folder, ignore_errors=True)


def start_another(address: str, nodes: list[Node], **how: int) -> None:
    """Add a machine to a cluster."""
    nodes.append(Node(Path(), int(address.rpartition(":")[2]), head=False, **how))
    wait_until(nodes[-1].is_up)


def wait_until(is_so, seconds: float = _PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.05)


_DRIVER = """
import contextlib, io, json, logging, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
ray._private.worker._worker_logs_enabled = False  # a command of its own is disconnected before it prints its JSON
from runtime.__main__ import main
exec(sys.argv[2])
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
ray.shutdown()
"""


class Driver:
    """A process that is connected once and runs one command after the other: Ray's workers take seconds to start."""

    def __init__(self, address: str, prepare: str = "") -> None:
        """Connect, and run the Python code `prepare`."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, address, prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )

    def start(self, *words: object) -> None:
        """Begin a command."""
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()

    def is_running(self) -> bool:
        """Whether the command that was begun has not ended."""
        return not select.select([self._process.stdout], [], [], 0)[0]

    def end(self) -> tuple[int, str, str]:
        """Wait for the command's end; returns exit code, stdout and stderr."""
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            pytest.fail(f"the driver died: {self._errors.read().decode(errors='replace')[-4000:]}")
        return tuple(json.loads(line))

    def run(self, *words: object) -> tuple[int, str, str]:
        self.start(*words)
        return self.end()

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
