"""Progress: a bar on a terminal, a line now and then elsewhere."""

import io

import pytest

from runtime import progress as module
from runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 3), (3600.0, 0)], ids=["always due", "never due"])
def test_lines_come_when_they_are_due(seconds, lines, monkeypatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", seconds)
    stream = io.StringIO()
    with progress(10, stream) as advance:
        for done in (2, 5, 9):
            advance(done, 1)
    written = stream.getvalue().splitlines()
    assert len(written) == lines
    assert all(" of 10 images, 1 unreadable, " in line for line in written)
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_bar_counts_the_unreadable_too() -> None:
    stream = Terminal()
    with progress(10, stream) as advance:
        advance(7, 3)
    assert "10/10" in stream.getvalue()
