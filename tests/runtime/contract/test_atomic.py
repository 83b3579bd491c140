"""Atomic writes: whatever happens in the middle of a write, the old file is unchanged and nothing else is left."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime.contract import atomic
from runtime.contract.atomic import atomic_file, hidden_name, locked, this_host, work_folder, write_atomically
from runtime.contract.errors import OutputFileError

OLD = b"old and whole"


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    return path


def write_and_raise(path: Path, error: BaseException) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_write_replaces_the_old_file(target):
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == [target.name]


def test_the_old_file_stays_until_the_block_ends(target):
    with atomic_file(target) as file:
        file.write(b"half")
        file.flush()
        assert target.read_bytes() == OLD
    assert target.read_bytes() == b"half"


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=lambda e: type(e).__name__
)
def test_an_exception_in_the_block_leaves_the_old_file_alone_and_passes_through(target, error):
    with pytest.raises(type(error)):
        write_and_raise(target, error)
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name]


def test_a_disk_that_fills_in_the_block_is_one_error_and_leaves_the_old_file(target):
    with pytest.raises(OutputFileError, match=r"file\.bin: No space left on device"):
        write_and_raise(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name]


def test_a_disk_that_fills_at_fsync_is_one_error_and_leaves_the_old_file(target, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputFileError, match=r"file\.bin: No space left on device"):
        write_atomically(target, b"new")
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name]


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_the_old_file(tiny_disk):
    target = tiny_disk / "file.bin"
    target.write_bytes(OLD)
    with pytest.raises(OutputFileError, match="No space left on device"):
        write_atomically(target, bytes(1 << 20))
    assert target.read_bytes() == OLD
    assert names(tiny_disk) == ["file.bin"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputFileError, match=r"the folder .*/nowhere does not exist; make it first"):
        write_atomically(tmp_path / "nowhere" / "file.bin", b"new")
    assert names(tmp_path) == []


def test_a_file_in_the_folders_place_is_refused(target):
    with pytest.raises(OutputFileError, match=r"can't write .*file\.bin/inner"):
        write_atomically(target / "inner", b"new")
    assert target.read_bytes() == OLD


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(OutputFileError, match=r"can't write .*file\.bin: Is a directory"):
        write_atomically(tmp_path / "file.bin", b"new")
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_folder_that_takes_no_files_is_refused(target, monkeypatch, code):
    # Permission bits don't bind root, who may run this: the system calls are patched.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(OutputFileError, match=rf"can't write .*file\.bin: {os.strerror(code)}"):
            write_atomically(target, b"new")
        with pytest.raises(OutputFileError, match=rf"can't write .*file\.bin: {os.strerror(code)}"):
            work_folder(beside=target).__enter__()
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from runtime.contract.atomic import atomic_file

    with atomic_file(Path(sys.argv[1])) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sigkill_in_the_middle_leaves_the_old_file_whole(target):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == OLD
    left = [name for name in names(target.parent) if name != target.name]
    assert len(left) == 1  # it was in the middle
    assert left[0].startswith(".file.bin.")  # hidden, and never of the name that readers ask for


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_the_new_file_has_the_mode_that_open_would_give_it(target, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(target, b"new")
        assert os.umask(umask) == umask  # the process's own is as before
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode


def test_a_link_is_replaced_and_what_it_led_to_is_not_touched(target):
    link = target.with_name("link")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert (link.is_symlink(), link.read_bytes(), target.read_bytes()) == (False, b"new", OLD)


def test_data_reaches_the_disk_before_the_name_and_the_name_after(target, monkeypatch):
    steps: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        steps.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        assert (target.read_bytes() == OLD) == (steps == ["file"])
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    write_atomically(target, b"new")
    assert steps == ["file", "folder"]


def test_a_work_folder_lies_beside_its_target_and_goes_in_any_case(target):
    def interrupted() -> None:
        with work_folder(beside=target) as work:
            assert work.parent == target.parent
            (work / "deep").mkdir()
            (work / "deep" / "file").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(target.parent) == [target.name]


def test_a_work_folder_needs_its_parent(tmp_path):
    with pytest.raises(OutputFileError, match=r"/nowhere does not exist; make it first"):
        work_folder(beside=tmp_path / "nowhere" / "file.bin").__enter__()


def dead_process() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def leftover(path: Path, process: int, host: str | None = None) -> Path:
    """A temporary file as a killed write of `path` leaves it."""
    start = hidden_name(path.name, f"write-{host or this_host()}-")
    found = path.with_name(f"{start}{process}-0123abcd")
    found.write_bytes(b"half")
    return found


@pytest.mark.parametrize("name", ["report.html", "x" * 200])
def test_what_killed_writes_left_is_removed_by_the_next_write_of_the_name(name, tmp_path) -> None:
    script = "import os, signal\nfrom pathlib import Path\nfrom runtime.contract.atomic import atomic_file\n"
    script += f"with atomic_file(Path({str(tmp_path / name)!r})) as file:\n file.write(b'half')\n file.flush()\n"
    script += " os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script], timeout=100).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    write_atomically(tmp_path / "another", b"")
    assert len(list(tmp_path.iterdir())) == 2
    write_atomically(tmp_path / name, b"whole")
    assert {one.name for one in tmp_path.iterdir()} == {name, "another"}
    assert (tmp_path / name).read_bytes() == b"whole"


def test_other_files_are_left_alone(tmp_path) -> None:
    path, dead = tmp_path / "a.json", dead_process()
    kept = [leftover(path, os.getppid()), leftover(path, dead, "elsewhere"), leftover(tmp_path / "a.json.b", dead)]
    kept += [tmp_path / name for name in (".a.json.0123abcd", f".a.json.write-{this_host()}-{dead}-0123abcd.txt")]
    for one in kept[3:]:
        one.touch()
    locked_one = leftover(path, dead)
    folder = tmp_path / locked_one.name.replace("0123abcd", "00000000")
    folder.mkdir()
    with locked(locked_one):
        write_atomically(path, b"x")
    assert {*kept, locked_one, folder, path} == {*tmp_path.iterdir()}
    write_atomically(path, b"x")
    assert not locked_one.exists()


def test_a_file_that_is_being_written_is_locked(tmp_path) -> None:
    with atomic_file(tmp_path / "a"):
        (temporary,) = tmp_path.iterdir()
        with locked(temporary) as is_free:
            assert is_free is False


def test_a_handler_of_the_program_around_python_stays(monkeypatch):
    """Triton's Python backend catches SIGINT and SIGTERM in C, and Python knows no handler to put back."""
    monkeypatch.setattr(atomic.signal, "getsignal", lambda number: None)
    monkeypatch.setattr(atomic.signal, "signal", lambda *_: pytest.fail("it was replaced"))
    with atomic.uninterrupted():
        pass
