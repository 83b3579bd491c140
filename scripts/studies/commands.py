"""The exporter and the runtime as commands: what they say on stderr is shown, and kept in a log."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from runtime.contract.errors import CheckError, plain

ROOT = Path(__file__).parents[2]
"""The checkout."""
INTERRUPTED = 130
GRACE = 20.0
"""Seconds that an interrupted command gets to remove what it has half written."""

Command = Callable[[str, Sequence[str]], str]
"""Runs `exporter` or `runtime` with some words and returns its stdout; raises CheckError if its exit code is not 0."""


def as_processes(log: Path, starter: Sequence[str]) -> Command:
    """Commands that are processes of their own.

    Args:
        log: the file that what they say is added to.
        starter: Python's words before the package's name: `-m`, or `-m` and a module that runs packages.
    """

    def run(package: str, words: Sequence[str]) -> str:
        command = [sys.executable, "-P", *starter, package, *words]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with tempfile.TemporaryFile() as stdout, log.open("ab") as kept:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            ) as process:
                try:
                    said = _show(process, kept)
                    process.wait()
                except BaseException:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE)
                    process.kill()
                    raise
            stdout.seek(0)
            text = stdout.read().decode(errors="replace")
        if process.returncode == INTERRUPTED:
            raise KeyboardInterrupt
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise CheckError(plain(lines[-1].rpartition("\r")[2]))
        return text

    return run


def _show(process: subprocess.Popen[bytes], kept: BinaryIO) -> bytes:
    """Copy the process's stderr to ours and to a file, until it ends; returns the end of it."""
    assert process.stderr is not None
    said = b""
    while part := os.read(process.stderr.fileno(), 1 << 16):
        kept.write(part)
        sys.stderr.write(part.decode(errors="replace"))
        sys.stderr.flush()
        said = (said + part)[-10_000:]
    return said
