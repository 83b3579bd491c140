"""Progress of a long run: a bar on a terminal, otherwise a line on stderr from time to time."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, Self, TextIO

FIRST_LINE = 2.0
"""Seconds before the first line, after which a reader begins to wonder whether the program still runs."""
SECONDS_BETWEEN_LINES = 10.0
_WINDOW = 30.0
"""Seconds over which the speed is measured: the first images are slow, and the last may lie on another disk."""


class NowAndThen:
    """Passes on a line after `FIRST_LINE`, then one every `SECONDS_BETWEEN_LINES`; the others are dropped."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._due = time.monotonic() + FIRST_LINE

    def __call__(self, line: str) -> None:
        """Pass the line on if one is due, otherwise drop it."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + SECONDS_BETWEEN_LINES
            self._say(line)


def after(words: str, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that passes each line on to `say` with `words` before it."""
    return lambda line: say(f"{words}{line}")


class Progress(Protocol):
    """A display that any thread calls with the counts of a run so far."""

    def show(self, embedded: int, present: int, failed: int) -> None:
        """Show the counts of this run: embedded, skipped because they were in the store, failed."""


class Silent:
    """A `Progress` that shows nothing."""

    def show(self, embedded: int, present: int, failed: int) -> None:
        """Do nothing."""


@contextlib.contextmanager
def progress(total: int | None, stream: TextIO | None = None) -> Iterator[Progress]:
    """Show progress on `stream` (stderr); `total` is the number of images, or None if it is not known."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        with _Lines(total, stream) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        yield _Bar(total, bar)


class _Speed:
    """Turns counts into words: done of total, share, speed, time left, failures."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def words(self, embedded: int, present: int, failed: int) -> str:
        with self._lock:
            return self._words(embedded, present, failed)

    def _words(self, embedded: int, present: int, failed: int) -> str:
        now, done = time.monotonic(), embedded + failed
        self._seen.append((now, done))
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
            self._seen.popleft()
        start, before = self._seen[0]
        speed = (done - before) / (now - start) if now > start else 0.0
        handled = done + present
        parts = [f"{handled:,} images"]
        if self._total:
            parts = [f"{handled:,} of {self._total:,} images ({handled / self._total:.0%})"]
        parts.append(f"{speed:.1f} a second")
        if self._total and speed > 0:
            parts.append(f"{_duration((self._total - handled) / speed)} left")
        if failed:
            parts.append(f"{failed:,} failed")
        return ", ".join(parts)


class _Lines:
    """Writes a line every `SECONDS_BETWEEN_LINES` from a thread, so that a log grows even while nothing is finished."""

    def __init__(self, total: int | None, stream: TextIO) -> None:
        self._speed, self._stream = _Speed(total), stream
        self._counts = (0, 0, 0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def show(self, embedded: int, present: int, failed: int) -> None:
        self._counts = embedded, present, failed

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _tick(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr has gone: no reason to end the run
            while not self._is_over.wait(SECONDS_BETWEEN_LINES):
                self._stream.write(self._speed.words(*self._counts) + "\n")
                self._stream.flush()


class _Bar:
    def __init__(self, total: int | None, bar: object) -> None:
        from rich.progress import Progress as Bar

        assert isinstance(bar, Bar)
        self._bar, self._speed = bar, _Speed(total)
        self._task = bar.add_task("embedding", total=total)

    def show(self, embedded: int, present: int, failed: int) -> None:
        words = self._speed.words(embedded, present, failed)
        self._bar.update(self._task, completed=embedded + present + failed, description=words)


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
