"""How far a long run is, for people and for logs."""

import io

import pytest

from runtime import progress as module
from runtime.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_line_comes_every_ten_seconds_with_share_speed_and_time_left(clock) -> None:
    stream = io.StringIO()
    with progress(1000, stream) as shown:
        for second in range(1, 26):
            clock.now = 100.0 + second
            shown.show(8 * second, 100, second // 5)
    assert stream.getvalue() == (
        "182 of 1,000 images (18%), 8.2 a second, 2 min left, 2 failed\n"
        "264 of 1,000 images (26%), 8.2 a second, 90 s left, 4 failed\n"
    )


def test_where_the_total_is_not_known_no_share_is_told(clock) -> None:
    stream = io.StringIO()
    with progress(None, stream) as shown:
        clock.now += 10
        shown.show(5000, 0, 0)
    assert stream.getvalue() == "5,000 images, 500.0 a second\n"


def test_speed_is_that_of_the_last_half_minute(clock) -> None:
    stream = io.StringIO()
    with progress(10_000, stream) as shown:
        for second in range(1, 101):
            clock.now += 1
            shown.show(second if second <= 50 else 50 + 10 * (second - 50), 0, 0)
    assert "10.0 a second" in stream.getvalue().splitlines()[-1]


def test_what_was_skipped_is_no_speed(clock) -> None:
    stream = io.StringIO()
    with progress(1000, stream) as shown:
        clock.now += 10
        shown.show(0, 900, 0)
    assert stream.getvalue() == "900 of 1,000 images (90%), 0.0 a second\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_told_in_their_units(seconds, words) -> None:
    assert module._duration(seconds) == words


def test_bar_shows_the_same_on_a_terminal(clock) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress(10, stream) as shown:
        clock.now += 2
        shown.show(3, 1, 1)
        shown._bar.refresh()
        text = stream.getvalue()
    assert "4 of 10 images" in text or "5 of 10 images" in text
    assert "1 failed" in text
