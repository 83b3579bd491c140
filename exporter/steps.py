"""Progress of an export on stderr: a spinner with the step and what it is at, or a line per step without a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape


class Progress:
    """Shows which step runs and how long each took; prints nothing if `quiet`."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._verbose = verbose
        self._current: str | None = None
        self._status = self._console.status("") if self._console.is_terminal and not verbose else None
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Run the block as the step `name`; `what` it does is shown meanwhile."""
        self._current = f"[bold]{name}[/] {escape(what)}"
        start = time.monotonic()
        if self._status is not None:
            self._status.update(self._current)
            self._status.start()
        try:
            yield
        finally:
            if self._status is not None:
                self._status.stop()
            self._current = None
        self.seconds[name] = time.monotonic() - start
        self._console.print(f"{name:<8}{self.seconds[name]:6.1f} s  {escape(what)}")

    def detail(self, text: str) -> None:
        """Show a detail of the step, on a terminal and with `verbose`."""
        if self._status is not None:
            self._status.update(f"{self._current} [dim]· {escape(text)}[/]")
        elif self._verbose:
            self._console.print(f"        {escape(text)}")

    def note(self, text: str) -> None:
        """Show a note that the user should read; the export continues."""
        self._console.print(escape(f"note: {text}"))

    def log(self, severity: str, text: str) -> None:
        """A message of the engine's builder; seen with `verbose`."""
        if self._verbose:
            self._console.print(escape(f"        [{severity}] {text}"))
