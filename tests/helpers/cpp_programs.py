"""Programs of runtime/cpp that scripts/build-cpp built, for tests in Python."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.contract.manifest import Preprocessing

BUILD = Path(__file__).parents[2] / "build" / "cpp"


def program(name: str) -> Path:
    """The path of a built program; the test is skipped without it, or fails where ITAE_CPP is `required`."""
    path = BUILD / name
    if not path.exists():
        reason = f"{path} is not there: scripts/build-cpp"
        if os.environ.get("ITAE_CPP") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Decoder:
    """A running `itae-decode`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __call__(self, content: bytes) -> list[str]:
        """Its words on a picture: `decoded HEIGHT WIDTH SHA256...`, or `refused REASON`, the reason as one word."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("<I", len(content)) + content)
        self.process.stdin.flush()
        line = self.process.stdout.readline().decode()
        assert line.endswith("\n"), f"itae-decode ended: {self.process.wait(10)}"
        return line.split() if line.startswith("decoded") else line.rstrip("\n").split(" ", 1)


@contextlib.contextmanager
def decoder(way: Preprocessing | None = None) -> Iterator[Decoder]:
    """`itae-decode`, which also prepares the pictures in this way if there is one."""
    arguments = [] if way is None else [way.fit, way.resize_filter, *way.crop, *(way.resize_cover or ())]
    command = [program("itae-decode"), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Decoder(process)
        finally:
            process.kill()
