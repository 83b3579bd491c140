"""The next export removes work folders that a killed export left behind, and no folders of others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.contract import atomic
from runtime.contract.atomic import work_folder
from runtime.contract.errors import OutputFileError

HOLD = """
import sys
from pathlib import Path
from runtime.contract.atomic import work_folder
with work_folder(beside=Path(sys.argv[1])) as folder:
    (folder / "half-written").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""
DEAD = 999_999_999
"""Above any process number that Linux gives."""


def start_holder(beside: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process inside `work_folder`, which it leaves when its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(beside)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def abandoned(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "half-written").write_bytes(b"x")
    return folder


def test_the_folder_is_gone_after_the_block_and_after_an_error_in_it(tmp_path):
    with work_folder(beside=tmp_path / "a.onnx") as folder:
        assert folder.parent == tmp_path
        assert str(os.getpid()) in folder.name
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), work_folder(beside=tmp_path / "a.onnx") as folder:
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("next_name", ["a.onnx", "another.engine"])
def test_the_folder_of_a_killed_process_goes_at_the_next_start(tmp_path, next_name):
    process, left = start_holder(tmp_path / "a.onnx")
    kill(process)
    assert (left / "half-written").is_file()
    with work_folder(beside=tmp_path / next_name) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_live_process_stays(tmp_path):
    process, held = start_holder(tmp_path / "a.onnx")
    try:
        with work_folder(beside=tmp_path / "a.onnx"):
            pass
        assert (held / "half-written").is_file()
    finally:
        process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_locked_stays_though_its_process_seems_dead(tmp_path, monkeypatch):
    """As in two containers of one host's name, each with process numbers of its own."""
    process, held = start_holder(tmp_path / "a.onnx")
    monkeypatch.setattr(atomic, "is_alive", lambda _: False)
    try:
        with work_folder(beside=tmp_path / "a.onnx"):
            assert (held / "half-written").is_file()
        assert (held / "half-written").is_file()
    finally:
        kill(process)
    with work_folder(beside=tmp_path / "a.onnx"):
        assert not held.exists()


def test_two_folders_of_one_process_leave_each_other_alone(tmp_path):
    with work_folder(beside=tmp_path / "a.onnx") as outer:
        with work_folder(beside=tmp_path / "a.onnx") as inner:
            assert inner != outer
            assert outer.is_dir()
        assert outer.is_dir()


def others() -> dict[str, str]:
    host = atomic.this_host()
    return {
        "another host": f".a.onnx.work-other.{host}-{DEAD}-abcdefgh",
        "a longer host name": f".a.onnx.work-{host}2-{DEAD}-abcdefgh",
        "no process": f".a.onnx.work-{host}-x-abcdefgh",
        "an older version's": ".a.onnx.work-abcdefgh",
        "not hidden": f"a.onnx.work-{host}-{DEAD}-abcdefgh",
        "something after it": f".a.onnx.work-{host}-{DEAD}-abcdefgh.bak",
        "process 1": f".a.onnx.work-{host}-1-abcdefgh",
    }


@pytest.mark.parametrize("name", others().values(), ids=others())
def test_a_folder_that_is_not_surely_ours_and_abandoned_stays(tmp_path, name):
    folder = abandoned(tmp_path, name)
    ours = abandoned(tmp_path, f".a.onnx.work-{atomic.this_host()}-{DEAD}-abcdefgh")
    with work_folder(beside=tmp_path / "a.onnx"):
        assert (folder / "half-written").is_file()
        assert not ours.exists()


def test_a_link_is_not_followed_nor_a_file_removed(tmp_path):
    elsewhere = abandoned(tmp_path, "elsewhere")
    link = tmp_path / f".a.onnx.work-{atomic.this_host()}-{DEAD}-abcdefgh"
    link.symlink_to(elsewhere)
    file = tmp_path / f".b.onnx.work-{atomic.this_host()}-{DEAD}-abcdefgh"
    file.touch()
    with work_folder(beside=tmp_path / "a.onnx"):
        pass
    assert (elsewhere / "half-written").is_file()
    assert link.is_symlink()
    assert file.is_file()


@pytest.mark.parametrize("host", ["plain", "dotted.name", "with-dash", "odd/../name", "ü", "", "x" * 300])
def test_any_host_name_makes_a_folder_that_is_found_again(tmp_path, monkeypatch, host):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(atomic.os, "getpid", lambda: DEAD)
    with work_folder(beside=tmp_path / "a.onnx") as first:
        assert first.parent == tmp_path
        first.rename(tmp_path / "aside")
    (tmp_path / "aside").rename(first)  # as if it had been killed
    with work_folder(beside=tmp_path / "a.onnx") as second:
        assert list(tmp_path.iterdir()) == [second]


def test_a_missing_folder_is_told_in_words(tmp_path):
    with (
        pytest.raises(OutputFileError, match=r"the folder .*missing does not exist"),
        work_folder(beside=tmp_path / "missing" / "a.onnx"),
    ):
        pass


def test_an_interrupt_waits_for_renames_that_belong_together(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.uninterrupted():  # noqa: PT012  # both happen inside
        signal.raise_signal(signal.SIGINT)
        (tmp_path / "after").touch()
    assert (tmp_path / "after").exists()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # as before the block
