"""The machine: which platforms this project runs on, and how many cores a process may use."""

from __future__ import annotations

import os
import sys

from runtime.contract.errors import BackendError

PLATFORMS = ("linux",)
"""Values of `sys.platform` that are supported: file locks, signals and `/proc` are used as Linux has them."""


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
    """Return the number of cores that this process may use, at least 1: fewer than the machine has, in a container."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
