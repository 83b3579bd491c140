"""The command: start Triton and the guard before it, report when they are ready, stop them together."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from runtime.contract.console import Parser, run
from runtime.contract.errors import BackendError, CheckError, UsageError
from scripts.serving.guard import MAX_HEAD, Guard

_START_SECONDS, _STOP_SECONDS, _WATCH_SECONDS = 600.0, 30.0, 1.0
_LOOPBACK = "127.0.0.1"
_RESTRICTED = "shared-memory,model-repository,trace,logging"
"""Interfaces with which a client could make the server load programs, write files or read memory."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/serve",
        description="Serve a model repository with Triton on this machine's CPU. Writes a line to stdout when the "
        "server is ready; new versions in the repository are loaded while it runs; Ctrl-C stops it.",
    )
    options.add_argument("repository", metavar="REPO", type=Path, help="what `python -m runtime triton` wrote")
    options.add_argument(
        "--address",
        default=_LOOPBACK,
        help="where HTTP listens; gRPC and metrics stay on 127.0.0.1, since this Triton does not limit a request there "
        "(default: %(default)s)",
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        what = f"of {name}; 0: any that is free (default: %(default)s)"
        options.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help=what)
    options.add_argument(
        "--max-request", type=int, default=64, metavar="MB", help="largest HTTP request, in MiB (default: %(default)s)"
    )
    options.add_argument(
        "--poll",
        type=int,
        default=5,
        metavar="SECONDS",
        help="how often the repository is looked at for new versions (default: %(default)s)",
    )
    options.add_argument("--log-info", action="store_true", help="let Triton write all of its log to stderr")
    options.add_argument("--setup-only", action="store_true", help="install Triton into build/triton, and end")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 after Ctrl-C or SIGTERM, 1 if Triton ended by itself."""
    return run("serve", lambda: _serve(parser().parse_args(argv)))


def _serve(given: argparse.Namespace) -> int:
    if not given.repository.is_dir():
        raise UsageError(f"{given.repository} is no folder: write a repository with `python -m runtime triton`")
    for name in ("http_port", "grpc_port", "metrics_port"):
        if not 0 <= getattr(given, name) < 1 << 16:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(given, name)}: must be from 0 to 65535")
    if not 1 <= given.max_request <= 1024 or not 1 <= given.poll <= 86400:
        raise UsageError("--max-request must be from 1 to 1024, --poll from 1 to 86400")
    return asyncio.run(_until_stopped(given))


async def _until_stopped(given: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    behind, grpc, metrics = _ports(0, given.grpc_port, given.metrics_port)
    guard = Guard(behind, given.max_request << 20)
    try:
        front = await asyncio.start_server(guard.serve, given.address, given.http_port, limit=MAX_HEAD)
    except OSError as error:
        raise BackendError(f"can't listen at {given.address}:{given.http_port}: {error.strerror}") from error
    stopped = asyncio.create_task(stop.wait())
    command = _command(given, behind, grpc, metrics)
    async with front:
        http = front.sockets[0].getsockname()[1]
        line = f"ready: http={given.address}:{http} grpc={_LOOPBACK}:{grpc} metrics={_LOOPBACK}:{metrics}"
        while await _run(command, behind, stopped, line):
            print("serve: the process of a model died: Triton is started again", file=sys.stderr, flush=True)
            line = ""
    return 0


async def _run(command: Sequence[str], port: int, stopped: asyncio.Task[bool], line: str) -> bool:
    """Run Triton until it is stopped, or a model's process dies, which Triton itself does not notice.

    Args:
        command: of Triton.
        port: its HTTP port.
        stopped: a task that ends when Triton shall.
        line: a line for stdout when it is ready; empty for none.

    Returns:
        Whether a model's process died.

    Raises:
        CheckError: Triton ended by itself.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then stops it
        preexec_fn=_die_with_parent,
    )
    ended = asyncio.create_task(process.wait())
    waiting = [asyncio.create_task(_ready(port))]
    try:
        await asyncio.wait({*waiting, ended, stopped}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return False
        if not waiting[0].done():
            raise CheckError("Triton did not become ready; what it wrote above says why")
        if line:
            print(line, flush=True)
        waiting.append(asyncio.create_task(_a_child_died(process.pid)))
        await asyncio.wait({waiting[1], ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not stopped.done():
            raise CheckError(f"Triton ended by itself (exit code {process.returncode}); what it wrote above says why")
        if not stopped.done():
            process.kill()  # it would wait for the process that died
        return not stopped.done()
    finally:
        for one in waiting:
            one.cancel()
        await _end(process, ended)
        for left in Path("/dev/shm").glob(f"{_shared_memory()}*"):
            left.unlink(missing_ok=True)


async def _a_child_died(pid: int) -> None:
    """Wait until a process that `pid` started has ended, and `pid` does not take note of it."""
    before: set[str] = set()
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        dead = set()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in task.read_text().split():
                    if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        dead.add(child)
        if dead & before:
            return
        before = dead


def _ports(*wanted: int) -> list[int]:
    """The ports, free ones for 0.

    Raises:
        BackendError: one is in use.
    """
    found = []
    with contextlib.ExitStack() as stack:
        for port in wanted:
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((_LOOPBACK, port))
            except OSError as error:
                raise BackendError(f"port {port} can't be used: {error.strerror}") from error
            found.append(one.getsockname()[1])
    return found


def _command(given: argparse.Namespace, http: int, grpc: int, metrics: int) -> list[str]:
    triton = _triton()
    key = secrets.token_hex(16)  # which nobody knows: these interfaces are closed
    return [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={given.repository.resolve()}",
        f"--backend-directory={triton / 'backends'}",
        *(f"--{name}-address={_LOOPBACK}" for name in ("http", "grpc", "metrics")),
        *(f"--{name}-port={port}" for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics))),
        "--model-control-mode=poll",
        f"--repository-poll-secs={given.poll}",
        "--disable-auto-complete-config",
        f"--http-restricted-api={_RESTRICTED}:itae={key}",
        f"--grpc-restricted-protocol={_RESTRICTED}:itae={key}",
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={_shared_memory()}",
        "--exit-timeout-secs=10",
        f"--log-info={'true' if given.log_info else 'false'}",
    ]


def _shared_memory() -> str:
    """How the names of shared memory of this server begin, which Triton leaves where it does not end well."""
    return f"itae-serve-{os.getpid()}-"


def _triton() -> Path:
    return Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"


def _environment() -> dict[str, str]:
    """The environment of Triton, which finds its libraries, and the Python of this process."""
    prefix, libraries = Path(sys.prefix), _triton().parents[1] / "nvidia_pytriton.libs"
    paths = {"LD_LIBRARY_PATH": str(libraries), "PATH": f"{prefix / 'bin'}:{os.environ.get('PATH', '')}"}
    return {**os.environ, **paths, "VIRTUAL_ENV": str(prefix)}


def _die_with_parent() -> None:
    """Let the child get SIGTERM when this process ends, however it ends."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


async def _ready(port: int) -> None:
    """Wait until Triton says that it is ready."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(_LOOPBACK, port)
            writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            line = await reader.readline()
            writer.close()
            if b" 200 " in line:
                return
        await asyncio.sleep(0.1)


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    """Let Triton finish what it is at, and end it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    await asyncio.wait({ended}, timeout=_STOP_SECONDS)
    if process.returncode is None:
        process.kill()
    await ended


if __name__ == "__main__":
    sys.exit(main())
