"""Writes that happen whole or not at all: a file in the same folder, fsync, `os.replace`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.errors import OutputFileError


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

    Raises:
        OutputFileError: the folder of `beside` is missing or can't be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=f".{beside.name}.work-"))
    except OSError as error:
        raise cannot_write(beside, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(source: Path, target: Path) -> None:
    """Move a finished file of a `work_folder` to `target`, atomically, durably; raises as `atomic_file`."""
    try:
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> OutputFileError:
    """The one-line error for a failed write of `path`."""
    reason = error.strerror or str(error)
    if not path.parent.is_dir():
        return OutputFileError(f"can't write {path}: the folder {path.parent} does not exist; make it first")
    return OutputFileError(
        f"can't write {path}: {reason}; nothing was left there, and what was there is as before"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
