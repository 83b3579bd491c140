"""Writes that happen whole or not at all: a file in the same folder, fsync, `os.replace`.

What a file system may lack (syncing a folder, locks) does not stop a write: it is said once per command, in the log.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.contract.errors import OutputFileError, plain

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of a call that a file system doesn't have. Others, such as EIO, mean that the call failed."""
_SHORT_NAME = 60
"""Bytes of a name from which a temporary name can be made by additions: the least limit known is 143 bytes."""

_log = logging.getLogger(__name__)
_said: set[str] = set()

Identity = tuple[int, int, int]
"""Inode, bytes and time of the last change (ns) of a file: what stays when it is renamed."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes `path`'s place when the block ends well, and vanishes when it doesn't.

    Files that killed processes of this host left of earlier writes of the same name are removed first.

    Raises:
        OutputFileError: the folder is missing or read-only, the disk is full, or the file can't be written.
    """
    try:
        before = identity(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    _remove_leftovers(path)
    temporary: Path | None = None
    try:
        temporary = path.with_name(f"{_temporary_start(path)}{os.getpid()}-{secrets.token_hex(4)}")
        # Not tempfile: its files are private to their owner, and some file systems refuse chmod.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            _hold(descriptor)
            yield file
            file.flush()
            sync_file(file.fileno(), path)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error, _what_is_left(path, before, temporary)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _temporary_start(path: Path) -> str:
    """How the names of this host's temporary files for `path` begin; the process and a random number follow."""
    return hidden_name(path.name, f"write-{this_host()}-")


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files for `path` of processes of this host that were killed."""
    ours = re.compile(rf"{re.escape(_temporary_start(path))}(\d{{1,9}})-[0-9a-f]{{8}}")
    with contextlib.suppress(OSError, OutputFileError), os.scandir(path.parent) as entries:
        for one in entries:
            if (found := ours.fullmatch(one.name)) and one.is_file(follow_symlinks=False):
                _remove_abandoned_one(Path(one.path), int(found[1]))


def _remove_abandoned_one(path: Path, process: int) -> None:
    """Remove a file or folder of a process of this host, if that has ended.

    Raises:
        OSError, OutputFileError: it can't be opened or removed.
    """
    if is_alive(process):
        return
    with locked(path) as is_free:  # a container may share the host's name and not its process numbers
        if is_free is not False:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # refuses links
            else:
                path.unlink()


def _hold(descriptor: int) -> None:
    """Lock an open file until it is closed, where the file system can, so that none takes it for a leftover."""
    import fcntl  # here: it is of Unix alone, and other platforms are to be refused in words

    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _what_is_left(path: Path, before: Identity | None, temporary: Path | None) -> str:
    """Remove the temporary file, look at what lies at `path`, and say it."""
    left = ""
    try:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    except OSError:
        if temporary is not None and os.path.lexists(temporary):
            left = f"; {temporary.name} is left over in that folder, remove it"
    try:
        now = identity(path)
    except OSError:
        return f"what is there now can't be seen{left}"
    if now != before:
        return f"what is there now is not what was there before{left}"
    return ("nothing was left there" if before is None else "what was there is as before") + left


def identity(path: Path) -> Identity | None:
    """Numbers that distinguish a file from another without reading it; None if there is no file; raises OSError."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def hidden_name(name: str, suffix: str) -> str:
    """`.NAME.SUFFIX`, or a hash in the place of a long name, so that the result is a legal name wherever NAME is."""
    data = os.fsencode(name)
    return f".{name if len(data) <= _SHORT_NAME else hashlib.sha256(data).hexdigest()[:32]}.{suffix}"


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
        prefix = hidden_name(beside.name, f"work-{this_host()}-{os.getpid()}-")
        folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=prefix))
    except OSError as error:
        raise cannot_write(beside, error) from error
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove work folders of processes of this host that were killed; of others nothing can be known."""
    ours = re.compile(rf"\..+\.work-{re.escape(this_host())}-(\d{{1,9}})-[a-z0-9_]+")
    with contextlib.suppress(OSError, OutputFileError):
        for folder in parent.iterdir():
            if (found := ours.fullmatch(folder.name)) and folder.is_dir():
                _remove_abandoned_one(folder, int(found[1]))


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool | None]:
    """Hold the lock of a folder or file; the end of the process releases it, however it ends.

    Yields True; False if another process holds the lock; None if the file system has no locks.

    Raises:
        OutputFileError: the folder can't be opened.
    """
    import fcntl  # here: it is of Unix alone, and other platforms are to be refused in words

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    is_free: bool | None = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            is_free = None
        yield is_free
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path, program: str) -> Iterator[None]:
    """Keep others that ask for the same out of a folder; `program` says who they are.

    Raises:
        OutputFileError: another one is in it, or it can't be opened.
    """
    with locked(folder) as is_free:
        if is_free is False:
            raise OutputFileError(f"another {program} is writing into {folder}: wait for it")
        if is_free is None:
            _go_on_without("locks", folder, "do not run two commands that write there at a time")
        yield


def this_host() -> str:
    """This host's name, as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:40]


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
        if signal.getsignal(number) is not None  # None: of a program in C that holds this Python, which keeps it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in waiting:
            signal.raise_signal(late)


def sync_file(descriptor: int, path: Path) -> None:
    """Make a file's content durable; `path` is its name for people.

    Raises:
        OSError: it may not be on the disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _go_on_without("fsync", path.parent, "a power cut may lose what was just written", error)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where its file system can; the files in it are whole in any case."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _go_on_without("fsync of folders", folder, "a power cut may undo what was just written", error)


def _go_on_without(what: str, folder: Path, consequence: str, error: OSError | None = None) -> None:
    """Say once per command that a file system lacks what a write can do without."""
    if what not in _said:
        _said.add(what)
        reason = "" if error is None else f" ({error.strerror})"
        _log.warning("warning: %s has no %s%s: %s", plain(str(folder)), what, reason, consequence)


def forget_warnings() -> None:
    """Let the next command say again what its file systems lack."""
    _said.clear()


def cannot_write(path: Path, error: OSError, state: str = "") -> OutputFileError:
    """The one-line error for a failed write of `path`; `state` says what was found there after looking."""
    reason = error.strerror or f"the disk is full or failing ({error})"  # numpy gives no error number
    with contextlib.suppress(OSError):
        if not path.parent.is_dir():
            return OutputFileError(f"can't write {path}: the folder {path.parent} does not exist; make it first")
    return OutputFileError(f"can't write {path}: {reason}{state and '; '}{state}")
