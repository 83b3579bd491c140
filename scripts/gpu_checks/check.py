"""Checks, their outcomes, and the loop that runs them: all that were asked for, whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.contract.errors import ItaeError, UsageError, one_line

Figures = dict[str, Any]
"""The figures of a check by name, as JSON has them."""
LEFT_OUT = "left out: "
"""The beginning of the reason of a check that `--minutes` had no time for."""


class Failed(Exception):  # noqa: N818  # as `Skipped`: a result
    """A check found something wrong."""

    def __init__(self, reason: str, figures: Figures | None = None) -> None:
        super().__init__(reason, figures)
        self.reason, self.figures = reason, figures or {}

    def __str__(self) -> str:
        return self.reason


class Skipped(Exception):  # noqa: N818  # a result, not an error
    """A check can't be run here.

    Args:
        reason: why.
        excused: whether this machine can't run it, so that it counts as nothing wrong.
    """

    def __init__(self, reason: str, excused: bool = True) -> None:
        super().__init__(reason, excused)  # both, or the second is lost on the way from the child process
        self.reason, self.excused = reason, excused

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    """Why it failed or was skipped."""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    excused: bool = True
    """For a skipped check: whether this machine could not have run it, or the user left it out."""

    @property
    def is_wrong(self) -> bool:
        """Whether the command exits with 1 for it."""
        return self.status == "failed" or (self.status == "skipped" and not self.excused)


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    run: Callable[[float], Figures]
    """Takes the seconds that it may last, returns what it measured.

    Raises Failed, Skipped, or any error, which fails it.
    """
    needs: tuple[str, ...] = ()
    """Names of checks that must have passed before."""


def choose(checks: Sequence[Check], words: Sequence[str]) -> list[Check]:
    """The checks whose name holds one of the words, and what they need, in their order; all of them without words.

    Raises:
        UsageError: a word is in no name.
    """
    for word in words:
        if not any(word in check.name for check in checks):
            kinds = dict.fromkeys(check.name.split()[0] for check in checks)
            raise UsageError(f"--only {word}: no check's name holds that; names begin with {', '.join(kinds)}")
    by_name = {check.name: check for check in checks}
    wanted = {check.name for check in checks if not words or any(word in check.name for word in words)}
    waiting = list(wanted)
    while waiting:
        for name in by_name[waiting.pop()].needs:
            if name not in wanted:
                wanted.add(name)
                waiting.append(name)
    return [check for check in checks if check.name in wanted]


def run_all(
    checks: Sequence[Check],
    *,
    longest: float,
    deadline: float | None,
    tell: Callable[[Outcome], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run checks in their order; none stops the others.

    Args:
        checks: what each needs comes before it.
        longest: seconds that one check may last.
        deadline: the clock's time at which the rest is left out; None for no such time.
        tell: called with each outcome.
        clock: seconds.
    """
    outcomes: dict[str, Outcome] = {}
    for check in checks:
        start = clock()
        outcome = _run(check, outcomes, longest, None if deadline is None else deadline - start)
        outcomes[check.name] = Outcome(
            check.name, outcome.status, outcome.reason, clock() - start, outcome.figures, outcome.excused
        )
        tell(outcomes[check.name])
    return list(outcomes.values())


def _run(check: Check, done: dict[str, Outcome], longest: float, left: float | None) -> Outcome:
    for name in check.needs:
        if name in done and done[name].status != "passed":
            before = done[name]
            reason = (
                before.reason
                if before.reason.startswith(LEFT_OUT)
                else f"it needs `{name}`, which {'was skipped' if before.status == 'skipped' else before.status}"
            )
            excused = before.status == "skipped" and before.excused
            return Outcome(check.name, "skipped", reason, excused=excused)
    if left is not None and left <= 0:
        return Outcome(check.name, "skipped", f"{LEFT_OUT}--minutes were over")
    try:
        return Outcome(check.name, "passed", figures=check.run(longest if left is None else min(longest, left)))
    except Skipped as skipped:
        return Outcome(check.name, "skipped", skipped.reason, excused=skipped.excused)
    except TimeoutError as error:
        if left is not None and left < longest:
            return Outcome(check.name, "skipped", f"{LEFT_OUT}--minutes ended while it ran")
        return Outcome(check.name, "failed", one_line(error))
    except Failed as failed:
        return Outcome(check.name, "failed", failed.reason, figures=failed.figures)
    except ItaeError as error:
        return Outcome(check.name, "failed", one_line(error))
    except Exception as error:  # a library's own, of any class
        return Outcome(check.name, "failed", f"{type(error).__name__}: {one_line(error)[:500]}")
