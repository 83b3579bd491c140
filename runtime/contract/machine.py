"""The machine: which platforms this project runs on, and how many cores and threads a process may use."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.contract.errors import BackendError

PLATFORMS = ("linux",)
"""Values of `sys.platform` that are supported: file locks, signals and `/proc` are used as Linux has them."""

MAX_THREADS = 4096
"""Largest number of threads; more is a slip of the pen."""
_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables from which numpy, scikit-learn and torch take their numbers of threads, when they are imported."""
_WAITING = "OMP_WAIT_POLICY"
"""How OpenMP's threads wait for each other, as torch and scikit-learn take it when they are imported. By default they
spin, which on a busy machine burns the time that the thread they wait for would need."""
_chosen: int | None = None
"""The number of `limited_threads`."""


def require_supported_platform() -> None:
    """Check that this project runs on this platform.

    Raises:
        BackendError: it does not.
    """
    if sys.platform not in PLATFORMS:
        raise BackendError(
            f"itae runs on Linux, and this platform is {sys.platform}: use a Linux machine, a container or WSL"
        )


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1, and so of threads that are of use.

    It is that of `limited_threads`, or the cores that the process may run on, or a container's quota if that is less.
    """
    return thread_limit() or _allowed_cores()


def thread_limit() -> int | None:
    """Return the number of threads to which this process is held, for libraries that would take all cores.

    Returns None if there is neither a number of `limited_threads` nor a quota below the number of cores.
    """
    if _chosen is not None:
        return _chosen
    quota = _quota()
    return quota if quota is not None and quota < _allowed_cores() else None


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Hold this process to `threads` in the block; None: to a container's quota, if there is one.

    Libraries that are imported in the block, and processes that are started there, are held to it too, and their
    threads sleep while they wait. A variable of the user's own, such as `OMP_NUM_THREADS`, is stronger than the quota,
    not than `threads`.
    """
    global _chosen  # one process, one command: every station would have to pass it on otherwise
    before, variables = _chosen, {name: os.environ.get(name) for name in (*_LIBRARIES, _WAITING)}
    _chosen = threads if threads is not None else before
    os.environ.setdefault(_WAITING, "PASSIVE")
    if (limit := thread_limit()) is not None:
        os.environ.update({name: str(limit) for name in _LIBRARIES if threads is not None or variables[name] is None})
    try:
        yield
    finally:
        _chosen = before
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _allowed_cores() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _quota() -> int | None:
    return cpu_quota(Path("/"))


def cpu_quota(root: Path) -> int | None:
    """Return the CPU time that control groups grant this process, in cores, rounded up; None if all of it.

    The smallest quota counts: of the process's own group or of one above it, in version 1 or 2. Inside of a container
    the groups above are not to be seen, and the container's own may be the root of what is.

    Args:
        root: `/`, or a folder that stands for it.
    """
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):  # 4:cpu,cpuacct:/docker/1f, or 0::/docker/1f in version 2
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        groups.update(dict.fromkeys(controllers.split(","), path))
    quotas: list[float] = []
    for line in _lines(root / "proc/self/mountinfo"):  # 32 31 0:29 /docker/1f /sys/fs/cgroup/cpu rw - cgroup cgroup rw
        mount, _, system = line.partition(" - ")
        words = system.split() or [""]
        kind, options = words[0], words[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options):
            top, place = [*mount.split(), "", "", "", "", ""][3:5]
            group = groups.get("" if kind == "cgroup2" else "cpu", "/")
            quotas += _quotas(root / _unescaped(place).lstrip("/"), _below(group, _unescaped(top)))
    return max(1, math.ceil(min(quotas))) if quotas else None


def _below(group: str, top: str) -> list[str]:
    """The names of the folders from a mount, whose own group is `top`, to `group`; none if it does not lie below."""
    parts = [part for part in group.split("/") if part]
    above = [part for part in top.split("/") if part]
    return parts[len(above) :] if parts[: len(above)] == above and ".." not in parts else []


def _quotas(folder: Path, names: list[str]) -> Iterator[float]:
    """The quotas, in cores, of a group and of those below it; those without a limit are left out."""
    for depth in range(len(names) + 1):
        group = folder.joinpath(*names[:depth])
        # Version 2: `max 100000` or `150000 100000`. Version 1: two files; -1 is no limit.
        words = " ".join(_lines(group / "cpu.max")).split()
        if not words:
            words = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) / int(words[1])


def _lines(file: Path) -> list[str]:
    """The lines of a file; none if it can't be read."""
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """A path of mountinfo, where a blank is a backslash and 040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
