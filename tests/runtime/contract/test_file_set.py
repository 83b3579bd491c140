"""Sets of files: whatever fails or dies at any step, a reader finds the older set, the new one, or no seal."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from odd_file_systems import count_steps, error, failing, killed, lacking, watched

from runtime.contract import atomic, file_set
from runtime.contract.atomic import forget_warnings, work_folder
from runtime.contract.errors import OutputFileError
from runtime.contract.file_set import FileSet, is_interrupted, publish_sets, recover

SEAL = "m.json"
OLDER = {"m": b"old", "m.npz": b"old", "m.data": b"old", SEAL: b"old"}
NEW = {"m": b"new", "m.npz": b"new", "m.more": b"new", SEAL: b"new"}
"""As long as the older ones, so that sizes tell nothing."""


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def publish(*folders: Path) -> None:
    """What a command does: tidy up, finish the files in a work folder, publish them."""
    recover(folders[0])
    with work_folder(beside=folders[0] / "m") as work:
        sets = []
        for number, folder in enumerate(folders):
            made = work / str(number)
            made.mkdir()
            put(made, NEW)
            sets.append(FileSet(folder / SEAL, {name: made / name for name in NEW}, ["m.data"]))
        publish_sets(sets, work)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder: Path) -> str:
    """What a reader finds, who believes nothing without the seal."""
    found = contents(folder)
    if SEAL not in found:
        return "refused"
    assert found in (OLDER, NEW)
    return "older" if found == OLDER else "new"


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """What is on the disk can't be seen here, and these tests would wait for it thousands of times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    forget_warnings()


@pytest.fixture
def _next_process(monkeypatch):
    """This process passes for an older one, which has left behind what it could not remove."""
    monkeypatch.setattr(atomic, "is_alive", lambda _: False)


@pytest.fixture(params=["older", "none"])
def folders(request, tmp_path) -> tuple[Path, Path]:
    """Two folders with a set each, or without."""
    made = tmp_path / "a", tmp_path / "b"
    for folder in made:
        folder.mkdir()
        if request.param == "older":
            put(folder, OLDER)
    return made


def test_a_set_takes_the_place_of_another(folders):
    publish(*folders)
    for folder in folders:
        assert contents(folder) == NEW
        assert all(not path.name.startswith(".") for path in folder.iterdir())


def every_step(folders, tmp_path):
    """Fresh copies of the folders, each with the number of a step."""
    rehearsal = [shutil.copytree(folder, tmp_path / "rehearsal" / folder.name) for folder in folders]
    steps = count_steps(lambda: publish(*rehearsal))
    assert len(steps) > 20
    for number in range(len(steps)):
        yield number, [shutil.copytree(folder, tmp_path / str(number) / folder.name) for folder in folders]


@pytest.mark.usefixtures("_next_process")
@pytest.mark.parametrize(("how", "number"), [("once", errno.ENOSPC), ("late", errno.EIO)])
def test_a_failure_at_any_step_leaves_the_older_set_or_the_new_one(folders, tmp_path, how, number):
    before = read(folders[0]), contents(folders[0])
    said = set()
    for step, copies in every_step(folders, tmp_path):
        message = ""
        try:
            with failing(step, number, how):
                publish(*copies)
        except OutputFileError as problem:
            message = str(problem)
        except OSError:  # while the work folder was filled: not ours to translate
            message = "before"
        for folder in copies:
            if message:
                assert (read(folder), contents(folder)) == before
            else:
                assert read(folder) == "new"
        said.add(message.rpartition("; ")[2])
        publish(*copies)
        assert [names(folder) for folder in copies] == [sorted(NEW)] * 2
    expected = "what was there is as before" if before[0] == "older" else "nothing was left there"
    assert expected in said
    assert {one for one in said if "there" in one} == {expected}


@pytest.mark.usefixtures("_next_process")
def test_a_failure_that_goes_on_is_told_as_it_is(folders, tmp_path):
    """`replace` may fail for good: then links put the older files back."""
    before = contents(folders[0])
    for links in (True, False):
        found = set()
        for step, copies in every_step(folders, tmp_path / str(links)):
            try:
                with failing(step, errno.EACCES, "on"), lacking(*([] if links else ["link"])):
                    publish(*copies)
            except OutputFileError as problem:
                message = str(problem)
            except OSError:
                continue
            else:
                assert [read(folder) for folder in copies] == ["new"] * 2
                continue
            for folder in copies:
                is_before = contents(folder) == before
                assert is_before or read(folder) in ("refused", "new")
                if "what was there is as before" in message or "nothing was left there" in message:
                    assert is_before
                if is_interrupted(folder / SEAL) and not (folder / SEAL).exists():
                    assert "is missing" in message
                found.add(is_before)
            publish(*copies)
            assert [names(folder) for folder in copies] == [sorted(NEW)] * 2
        assert True in found


def test_a_kill_at_any_step_leaves_the_older_set_or_the_new_one_or_no_seal(folders, tmp_path):
    before = contents(folders[0])
    found = set()
    for step, copies in every_step(folders, tmp_path):
        assert killed(step, lambda copies=copies: publish(*copies))
        for folder in copies:
            if (state := read(folder)) == "refused" and contents(folder) != before:
                assert is_interrupted(folder / SEAL)
            found.add(state)
            recover(folder)  # as the next command does before it begins
            assert contents(folder) in (before, NEW)
            assert not is_interrupted(folder / SEAL)
        publish(*copies)
        assert [names(folder) for folder in copies] == [sorted(NEW)] * 2
    assert found == ({"older", "refused", "new"} if before else {"refused", "new"})


@pytest.mark.parametrize("feature", ["fsyncdir", "fsync", "chmod", "link"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_what_a_file_system_lacks_does_not_matter(folders, feature, number, caplog):
    with lacking(feature, number=number):
        publish(*folders)
    assert [read(folder) for folder in folders] == ["new", "new"]
    assert len(caplog.messages) == (feature in ("fsyncdir", "fsync"))


def test_a_file_that_may_not_be_on_the_disk_is_an_error(folders):
    before = contents(folders[0])
    with lacking("fsync", number=errno.EIO), pytest.raises(OutputFileError, match="Input/output error"):
        publish(folders[0])
    assert contents(folders[0]) == before


def test_a_kill_where_there_are_no_locks_is_recovered_from_too(tmp_path):
    (tmp_path / "a").mkdir()
    put(tmp_path / "a", OLDER)
    with lacking("flock"):
        for step, (copy,) in every_step([tmp_path / "a"], tmp_path):
            assert killed(step, lambda copy=copy: publish(copy))
            recover(copy)
            assert contents(copy) in (OLDER, NEW)
            publish(copy)
            assert names(copy) == sorted(NEW)


@pytest.mark.parametrize("locks", [True, False])
def test_an_exchange_of_a_live_process_is_left_alone(tmp_path, monkeypatch, locks):
    """Killed is pretended: the thread stops in the middle, and another one comes."""
    put(tmp_path, OLDER)
    monkeypatch.setattr(file_set, "_PATIENCE", 0.1)
    stopped, go_on = threading.Event(), threading.Event()

    def stop(_: int, name: str) -> None:
        if name == "replace" and threading.current_thread() is first and not (tmp_path / SEAL).exists():
            stopped.set()
            go_on.wait(20)

    first = threading.Thread(target=publish, args=[tmp_path])
    with watched(stop), lacking(*([] if locks else ["flock"])):
        first.start()
        assert stopped.wait(20)
        if not locks:  # another process: of this one nothing could be told
            monkeypatch.setattr(file_set, "_runs_elsewhere", lambda _: True)
        recover(tmp_path)
        with pytest.raises(OutputFileError, match="another run is writing it; wait for it"):
            publish(tmp_path)
        go_on.set()
        first.join()
    assert contents(tmp_path) == NEW
    assert not any(path.name.endswith(".exchange") for path in tmp_path.iterdir())


@pytest.mark.parametrize("comes", ["nothing", "another's"])
def test_an_exchange_that_ends_while_its_lock_is_asked_for_is_not_undone(tmp_path, monkeypatch, comes):
    put(tmp_path, {"m": b"new"})
    exchange = tmp_path / f".{SEAL}.exchange"
    exchange.mkdir()
    plan = {"seal": SEAL, "older": [], "fresh": ["m"], "had_seal": False, "host": "h", "process": 1, "token": "t"}
    real = file_set.locked

    def locked(folder: Path):
        exchange.rename(tmp_path / "ended")
        if comes == "another's":
            exchange.mkdir()
            (exchange / "plan.json").write_text(json.dumps(plan))
            return real(tmp_path / "ended")
        return real(folder)

    monkeypatch.setattr(file_set, "locked", locked)
    assert file_set._recovered(exchange) == (comes == "nothing")
    assert (tmp_path / "m").exists()
    assert exchange.exists() == (comes == "another's")


def test_a_plan_that_is_damaged_loses_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    put(out, OLDER)
    rehearsal = shutil.copytree(out, tmp_path / "rehearsal")
    steps = count_steps(lambda: publish(rehearsal))
    last = len(steps) - 1 - steps[::-1].index("replace")
    assert killed(last, lambda: publish(out))
    (plan,) = out.glob(".*.exchange/plan.json")
    assert read(out) == "refused"
    for text in ("", "{}", json.dumps({**json.loads(plan.read_bytes()), "older": ["../m"]})):
        plan.write_text(text)
        recover(out)
        with pytest.raises(OutputFileError, match=r"plan\.json is damaged: move the files of .*older"):
            publish(out)
    assert any((plan.parent / "older").iterdir())


@pytest.mark.parametrize("length", [60, 61, 250, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, length):
    seal = tmp_path / ("x" * length)
    for text in (b"1", b"2"):
        with work_folder(beside=seal) as work:
            (work / "made").write_bytes(text)
            publish_sets([FileSet(seal, {seal.name: work / "made"})], work)
        assert (seal.read_bytes(), names(tmp_path)) == (text, [seal.name])


def test_an_older_link_is_put_back_as_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    put(tmp_path / "elsewhere", OLDER)
    out = tmp_path / "out"
    out.mkdir()
    for name in OLDER:
        (out / name).symlink_to(Path("..", "elsewhere", name))
    with pytest.raises(OutputFileError, match="as before"), watched(fail_at_seal(out)):
        publish(out)
    assert all((out / name).is_symlink() for name in OLDER)
    assert contents(out) == OLDER
    publish(out)
    assert contents(out) == NEW
    assert contents(tmp_path / "elsewhere") == OLDER


def fail_at_seal(folder: Path):
    """Fail once, when all but the seal is in its place."""
    calls = []

    def act(_: int, name: str) -> None:
        if name == "replace" and not calls and (folder / "m.more").exists():
            calls.append(name)
            raise error(errno.EIO)

    return act


def test_ctrl_c_waits_for_the_end(tmp_path):
    put(tmp_path, OLDER)

    def act(_: int, name: str) -> None:
        if name == "replace" and not (tmp_path / SEAL).exists():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), watched(act):
        publish(tmp_path)
    assert contents(tmp_path) == NEW
