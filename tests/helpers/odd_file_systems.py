"""File systems that lack something, and processes that fail or die at a chosen step of their writing."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import io
import os
import signal
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "link", "fsync", "chmod", "truncate", "ftruncate")
"""Functions of `os` that change a file system; opening a file for writing is a step too."""


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@contextlib.contextmanager
def lacking(*features: str, number: int = errno.EINVAL) -> Iterator[None]:
    """A file system without `fsyncdir`, `fsync` (of files), `chmod`, `flock` or `link`: they fail with `number`."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if ("fsyncdir" if is_folder else "fsync") in features:
            raise error(number)
        real(descriptor)

    def refuse(*_: object, **__: object) -> None:
        raise error(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(os, "fsync", fsync))
        for feature, owner, name in (
            ("chmod", os, "chmod"), ("chmod", os, "fchmod"), ("flock", fcntl, "flock"), ("link", os, "link")
        ):  # fmt: skip
            if feature in features:
                stack.enter_context(mock.patch.object(owner, name, refuse))
        yield


@contextlib.contextmanager
def watched(act: Callable[[int, str], None], after: Callable[[int, str], None] = lambda *_: None) -> Iterator[None]:
    """Call `act` before, and `after` after, each step that changes a file system, with its number and name."""
    count = 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: object, **rest: object) -> object:
            nonlocal count
            if name == "open":
                mode = args[1] if len(args) > 1 else rest.get("mode", "r")
                writes = isinstance(mode, str) and set(mode) & set("wax+")
                flags = isinstance(mode, int) and mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if not writes and not flags:
                    return real(*args, **rest)
            number, count = count, count + 1
            act(number, name)
            result = real(*args, **rest)
            try:
                after(number, name)
            except OSError:
                if isinstance(result, io.IOBase):
                    result.close()
                elif name == "open":
                    os.close(result)
                raise
            return result

        return step

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, wrapped(name, getattr(os, name))))
        for owner in (os, io, builtins):
            stack.enter_context(mock.patch.object(owner, "open", wrapped("open", owner.open)))
        yield


def count_steps(body: Callable[[], object]) -> list[str]:
    """The names of the steps that `body` takes when nothing goes wrong."""
    steps: list[str] = []
    with watched(lambda _, name: steps.append(name)):
        body()
    return steps


@contextlib.contextmanager
def failing(step: int, number: int = errno.ENOSPC, how: str = "once") -> Iterator[Callable[[], bool]]:
    """Fail at a step: `once`; `on`: there and at each of the same name from there on; `late`: once, its work done.

    Yields a function that returns whether there were so many steps.
    """
    failed: set[str] = set()
    last = -1

    def act(count: int, name: str) -> None:
        nonlocal last
        last = count
        if count == step and how != "late":
            failed.add(name)
            raise error(number)
        if how == "on" and name in failed:
            raise error(number)

    def after(count: int, _: str) -> None:
        if count == step and how == "late":
            raise error(number)

    with watched(act, after):
        yield lambda: last >= step


def killed(step: int, body: Callable[[], object]) -> bool:
    """Run `body` in a process that dies by SIGKILL before a step; whether it came so far."""

    def die(count: int, _: str) -> None:
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child uses none of them
        child = os.fork()
    if child == 0:
        code = 1
        try:
            with watched(die):
                body()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
