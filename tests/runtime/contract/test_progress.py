"""Progress of a long run, on terminals and in logs."""

import io
import time

import pytest

from runtime.contract import progress as module
from runtime.contract.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_line_tells_share_speed_time_left_and_failures(clock) -> None:
    speed = module._Speed(1000)
    clock.now += 10
    assert speed.words(80, 100, 2) == "182 of 1,000 images (18%), 8.2 a second, 2 min left, 2 failed"
    clock.now += 10
    assert speed.words(160, 100, 4) == "264 of 1,000 images (26%), 8.2 a second, 90 s left, 4 failed"


def test_where_the_total_is_not_known_no_share_is_told(clock) -> None:
    speed = module._Speed(None)
    clock.now += 10
    assert speed.words(5000, 0, 0) == "5,000 images, 500.0 a second"


def test_speed_is_that_of_the_last_half_minute(clock) -> None:
    speed = module._Speed(10_000)
    for second in range(1, 101):
        clock.now += 1
        said = speed.words(second if second <= 50 else 50 + 10 * (second - 50), 0, 0)
    assert "10.0 a second" in said


def test_what_was_skipped_is_no_speed(clock) -> None:
    speed = module._Speed(1000)
    clock.now += 10
    assert speed.words(0, 900, 0) == "900 of 1,000 images (90%), 0.0 a second"


def test_lines_come_also_while_nothing_does(monkeypatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.02)
    stream = io.StringIO()
    with progress(100, stream) as shown:
        shown.show(3, 1, 1)
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 5
    assert all(line.startswith("5 of 100 images (5%), ") for line in lines[1:])
    time.sleep(0.1)
    assert len(stream.getvalue().splitlines()) == len(lines)  # none after the end


def test_a_short_run_writes_no_line() -> None:
    stream = io.StringIO()
    with progress(100, stream) as shown:
        shown.show(100, 0, 0)
    assert stream.getvalue() == ""


def test_a_stream_that_has_gone_ends_nothing(monkeypatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)
    stream = io.StringIO()
    with progress(100, stream) as shown:
        stream.close()
        time.sleep(0.1)
        shown.show(1, 0, 0)


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


def test_now_and_then_a_line_is_passed_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    said: list[str] = []
    say = module.NowAndThen(said.append)
    for seconds in (0, 1.9, 2, 3, 11.9, 12.1, 13):
        now[0] = 100 + seconds
        say(f"{seconds}")
    assert said == ["2", "12.1"]
