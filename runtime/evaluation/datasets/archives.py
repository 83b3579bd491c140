"""Named files of a data set, from its folder or its tar, as the official archive has them: sizes before content."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.contract.errors import InputError, one_line
from runtime.sources.item import reason
from runtime.sources.names import TAR_SUFFIXES, printable
from runtime.sources.tar_members import Member, members, read_data, unpacked

_MAX_TEXT = 1 << 16
"""Bytes of a list of class names: the official ones have some hundreds."""


@dataclass(frozen=True)
class Layout:
    """Where a data set's files lie, and how large each is."""

    title: str
    folder: str
    """The folder in the archive."""
    archive: str
    sizes: Mapping[str, int]
    """Bytes of each binary file, exactly."""
    texts: tuple[str, ...]
    """Lists of names, `_MAX_TEXT` bytes at most."""
    refused: Mapping[str, str]
    """Files and folders of its other versions, and what to say of them."""

    def names(self) -> tuple[str, ...]:
        """All files."""
        return (*self.sizes, *self.texts)


def read_files(path: Path, layout: Layout) -> dict[str, bytes]:
    """The content of each file of a layout; `path` is the archive, its folder, or the folder in which that lies.

    Raises:
        InputError: a file is missing, has another size, or the archive is damaged.
    """
    where = printable(str(path))
    found: dict[str, bytes] = {}
    if path.is_dir():
        inner = path / layout.folder
        folder = inner if inner.is_dir() else path
        for name in layout.names():
            if os.path.lexists(folder / name):
                found[name] = _read_file(folder / name, layout)
        others = [name for name in layout.refused if os.path.lexists(path / name) or os.path.lexists(folder / name)]
    elif path.name.lower().endswith(TAR_SUFFIXES):
        found, others = _read_tar(path, layout)
    else:
        raise InputError(f"{where}: not {layout.title}: give its folder {layout.folder} or {layout.archive}")
    missing = [name for name in layout.names() if name not in found]
    if missing and others:
        raise InputError(f"{where}: {layout.refused[others[0]]}; give {layout.archive} or its folder {layout.folder}")
    if missing:
        raise InputError(f"{where}: has no {missing[0]}, which {layout.title} has ({layout.archive})")
    return found


def lines(content: bytes, name: str) -> list[str]:
    """The lines of a list of names that are not empty.

    Raises:
        InputError: it is no UTF-8.
    """
    try:
        return [line.strip() for line in content.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not text ({one_line(error)})") from error


def read_bounded(path: Path, limit: int) -> bytes:
    """A file's content, `limit` bytes at most.

    Raises:
        InputError: it can't be read, is no regular file, or is larger.
    """
    where = printable(str(path))
    try:
        # Not waiting for the other end of a named pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{where}: is a folder or a device, not a file")
            if status.st_size > limit:
                raise InputError(f"{where}: has {status.st_size:,} bytes, expected {limit:,} at most")
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from error
    if len(content) > limit:  # it grew
        raise InputError(f"{where}: has more than {limit:,} bytes")
    return content


def _read_file(path: Path, layout: Layout) -> bytes:
    exact = layout.sizes.get(path.name)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{printable(str(path))}: {error.strerror}") from error
    if exact is not None and size != exact and path.is_file():
        raise InputError(_wrong_size(printable(str(path)), size, exact))
    content = read_bounded(path, _MAX_TEXT if exact is None else exact)
    if exact is not None and len(content) != exact:
        raise InputError(_wrong_size(printable(str(path)), len(content), exact))
    return content


def _read_tar(path: Path, layout: Layout) -> tuple[dict[str, bytes], list[str]]:
    """Needed files of a tar, and names of refused ones; it is read only as far as the last file that is needed."""
    where = printable(str(path))
    found: dict[str, bytes] = {}
    others: list[str] = []
    try:
        with path.open("rb") as file:
            tar = unpacked(file)
            for member in members(tar):
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == layout.folder and name in layout.names() and name not in found:
                    found[name] = _read_member(tar, member, layout, name, where)
                    if len(found) == len(layout.names()):
                        break
                others += [one for one in (folder, name) if one in layout.refused]
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    except Exception as error:  # an unpacker fed a hostile file raises anything
        raise InputError(f"{where}: {reason(error)}") from error
    return found, others


def _read_member(tar: BinaryIO, member: Member, layout: Layout, name: str, where: str) -> bytes:
    inside = f"{where}/{printable(member.name)}"
    if member.problem:
        raise InputError(f"{inside}: {printable(member.problem)}")
    exact = layout.sizes.get(name)
    if exact is not None and member.size != exact:
        raise InputError(_wrong_size(inside, member.size, exact))
    if exact is None and member.size > _MAX_TEXT:
        raise InputError(f"{inside}: has {member.size:,} bytes, expected {_MAX_TEXT:,} at most")
    try:
        return read_data(tar, member)
    except InputError as error:
        raise InputError(f"{inside}: {error}") from error


def _wrong_size(where: str, found: int, expected: int) -> str:
    what = "it is cut short" if found < expected else "it is another file"
    return f"{where}: has {found:,} bytes, expected {expected:,}: {what}"
