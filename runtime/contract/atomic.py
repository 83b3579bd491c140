"""Writes that happen whole or not at all: a file in the same folder, fsync, `os.replace`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.contract.errors import OutputFileError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes `path`'s place when the block ends well, and vanishes when it doesn't.

    Raises:
        OutputFileError: the folder is missing or read-only, the disk is full, or the file can't be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            yield file  # type: ignore[misc]  # typeshed's wrapper has every method of BinaryIO
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # tempfile makes it private to its owner
        temporary.replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises as `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def work_folder(beside: Path) -> Iterator[Path]:
    """A folder on the same file system as `beside`, removed at the end, for results that are moved out of it.

    Folders that killed processes of this host left there are removed first.

    Raises:
        OutputFileError: the folder of `beside` is missing or can't be written.
    """
    _remove_abandoned(beside.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=f".{beside.name}.work-{_host()}-{os.getpid()}-"))
    except OSError as error:
        raise cannot_write(beside, error) from error
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove work folders of processes of this host that were killed; of others nothing can be known."""
    ours = re.compile(rf"\..+\.work-{re.escape(_host())}-(\d{{1,9}})-[a-z0-9_]+")
    with contextlib.suppress(OSError, OutputFileError):
        for folder in parent.iterdir():
            found = ours.fullmatch(folder.name)
            if found and not _is_alive(int(found[1])) and folder.is_dir():
                # A container may share the host's name and not its process numbers: then the lock tells.
                with locked(folder) as is_free:
                    if is_free:
                        shutil.rmtree(folder, ignore_errors=True)  # refuses links


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which goes with the process however it ends; false where another has it.

    Raises:
        OutputFileError: the folder can't be opened.
    """
    import fcntl  # here: it is of Unix alone, and other platforms are to be refused in words

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    is_free = True
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the process number alone tells
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free = False
        yield is_free
    finally:
        os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64]


def publish(source: Path, target: Path) -> None:
    """Move a finished file of a `work_folder` to `target`, atomically, durably; raises as `atomic_file`."""
    try:
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block's end: for a few renames that belong together."""
    if threading.current_thread() is not threading.main_thread():  # only it gets signals, and may set handlers
        yield
        return
    waiting: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: waiting.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in waiting:
            signal.raise_signal(late)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> OutputFileError:
    """The one-line error for a failed write of `path`."""
    reason = error.strerror or f"the disk is full or failing ({error})"  # numpy gives no error number
    if not path.parent.is_dir():
        return OutputFileError(f"can't write {path}: the folder {path.parent} does not exist; make it first")
    return OutputFileError(f"can't write {path}: {reason}; nothing was left there, and what was there is as before")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
