"""The most memory that another process holds at a time."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

_PAUSE = 0.005
"""Seconds between two looks."""


def run_to_end(process: subprocess.Popen[Any]) -> int:
    """Wait for a process and return its peak resident memory in bytes, as Linux has it.

    Looked at while it runs, since the system forgets it with the process; what is taken in its last milliseconds alone
    may be missed. Not `getrusage`, whose figure begins with the peak of the process that started this one.
    """
    peak = 0
    while process.poll() is None:
        words = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()
        peak = max(peak, int(words[0]) * 1024 if words else 0)  # none if it has just ended
        time.sleep(_PAUSE)
    return peak
