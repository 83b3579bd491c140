"""How far a long run is: a bar on a terminal, else a line on stderr now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show progress on `stream` (stderr); call what this yields with how many are embedded and unreadable."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _lines(total, stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("embedding", total=total)

        def advance(embedded: int, unreadable: int) -> None:
            bar.update(task, completed=embedded + unreadable)

        yield advance


def _lines(total: int, stream: TextIO) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def advance(embedded: int, unreadable: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            speed = embedded / (now - start)
            stream.write(f"embedded {embedded} of {total} images, {unreadable} unreadable, {speed:.1f} a second\n")
            stream.flush()

    return advance
