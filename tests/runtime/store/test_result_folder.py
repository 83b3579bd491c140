"""A folder of results: whatever fails or dies at any step, a reader finds the older result, the new one, or none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from odd_file_systems import count_steps, failing, killed

from runtime.contract import atomic
from runtime.contract.errors import OutputFileError
from runtime.store.result_folder import SUMMARY, Kind, publish_result, result_folder

KIND = Kind("test", ("first", "second"), ("third",))
OLDER = {"first": b"old", "second": b"old", "third": b"old"}
NEW = {"first": b"new", "second": b"new"}


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """What is on the disk can't be seen here, and these tests would wait for it a thousand times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write(out: Path, contents: dict[str, bytes]) -> None:
    with result_folder(out, KIND) as work:
        publish_result(out, work, KIND, contents.items(), {"what": "test"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(out: Path) -> dict[str, bytes] | None:
    """The files that a summary tells of, which must be there and no others; None without one."""
    if not (out / SUMMARY).exists():
        return None
    told = json.loads((out / SUMMARY).read_bytes())["files"]
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != SUMMARY}
    assert found.keys() == told.keys()
    assert all(hashlib.sha256(data).hexdigest() == told[name]["sha256"] for name, data in found.items())
    return found


@pytest.fixture(params=["older", "none", "no folder"])
def places(request, tmp_path):
    """For each step of writing: its number, a fresh copy of what is there before, and what a reader finds there."""
    start = tmp_path / "start"
    if request.param != "no folder":
        start.mkdir()
    if request.param == "older":
        write(start, OLDER)

    def copies():
        copy(start, tmp_path / "rehearsal")
        steps = count_steps(lambda: write(tmp_path / "rehearsal", NEW))
        assert len(steps) > 12
        for step in range(len(steps)):
            copy(start, tmp_path / str(step))
            yield step, tmp_path / str(step)

    return copies(), OLDER if request.param == "older" else None


def copy(start: Path, to: Path) -> None:
    if start.exists():
        shutil.copytree(start, to)


@pytest.mark.parametrize(("how", "number"), [("once", errno.ENOSPC), ("late", errno.EACCES)])
def test_a_failure_at_any_step_leaves_the_older_result_or_the_new_one(places, how, number, monkeypatch):
    monkeypatch.setattr(atomic, "is_alive", lambda _: False)  # as for the next process
    copies, before = places
    failed = 0
    for step, out in copies:
        try:
            with failing(step, number, how):
                write(out, NEW)
        except OutputFileError:
            failed += 1
            assert (read(out) if out.exists() else None) == before
        else:
            assert read(out) == NEW
        write(out, NEW)
        assert names(out) == sorted([*NEW, SUMMARY])
    assert failed > 8


def test_a_kill_at_any_step_leaves_the_older_result_or_the_new_one_or_no_summary(places):
    copies, before = places
    found = []
    for step, out in copies:
        assert killed(step, lambda out=out: write(out, NEW))
        found.append(state := read(out) if out.exists() else None)
        assert state in (None, before, NEW)
        if out.exists():
            with pytest.raises(ZeroDivisionError), result_folder(out, KIND):  # a next run that fails by itself
                1 / 0  # noqa: B018
            assert read(out) in (before, NEW)
        write(out, NEW)
        assert names(out) == sorted([*NEW, SUMMARY])
    assert None in found
    assert NEW in found
    assert before in found
