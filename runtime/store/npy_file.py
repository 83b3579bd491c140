r"""The files of an npy store: `embeddings.npy`, (n, C) float32, and `paths.txt`, a line for each row.

A line is root and path joined by `/./`: a path that any program opens, and that still tells the key. A backslash,
newline or carriage return in a name is written as `\\`, `\n`, `\r`, and each `/.` of a root that itself holds `/./` as
`/\.`. Rows are appended, then the header is overwritten in place, then `store.json` says how far the files are good;
the rest is of a run that was cut short.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.contract.atomic import cannot_write
from runtime.contract.errors import InputError
from runtime.store.records import AGAIN, Embeddings, Float32, StoreRecord

VECTORS = "embeddings.npy"
PATHS = "paths.txt"
SEPARATOR = "/./"

_MAX_LINE = 1 << 20
"""Longer lines are damage: a path has 4,096 bytes at most."""


def header(rows: int, width: int) -> bytes:
    """The header of `embeddings.npy`, of the same length for any number of rows: numpy leaves room for that."""
    file = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def line_of(root: str, path: str) -> str:
    """A row of `paths.txt`, with its newline."""
    root, path = (name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for name in (root, path))
    if SEPARATOR in f"{root}/":  # a URL's, for one: the first of a line is ours
        root = root.replace("/.", "/\\.")
    return f"{root}{SEPARATOR}{path}\n"


def key_of(line: str) -> tuple[str, str]:
    """Root and path of a row of `paths.txt`; raises ValueError."""
    root, separator, path = line.removesuffix("\n").partition(SEPARATOR)
    if not separator:
        raise ValueError(f"no {SEPARATOR} in it")
    return _unescaped(root), _unescaped(path)


class NpyFiles:
    """The two files of a store, for reading up to what `store.json` says."""

    def __init__(self, folder: Path, record: StoreRecord) -> None:
        """Check the sizes; raises InputError."""
        self._folder, self._record = folder, record
        self._offset = len(header(record.rows, record.width))
        needed = {VECTORS: self._offset + 4 * record.rows * record.width, PATHS: record.paths_bytes or 0}
        for name, size in needed.items():
            try:
                found = (folder / name).stat().st_size
            except OSError as error:
                raise InputError(f"can't read {folder / name}: {error.strerror}: {AGAIN}") from error
            if found < size:
                raise InputError(f"{folder / name} has {found} bytes, store.json speaks of {size}: {AGAIN}")

    def vectors(self) -> Float32:
        """All rows, (n, C) float32, mapped into memory, read-only; raises InputError."""
        shape = (self._record.rows, self._record.width)
        try:
            return np.memmap(self._folder / VECTORS, np.dtype("<f4"), "r", self._offset, shape)
        except (OSError, ValueError) as error:
            raise InputError(f"can't read {self._folder / VECTORS}: {error}") from error

    def blocks(self, rows: int) -> Iterator[Float32]:
        """All rows, at most `rows` of them at a time and in memory: (`rows`, C) float32; raises InputError."""
        path, width = self._folder / VECTORS, self._record.width
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                for start in range(0, self._record.rows, rows):
                    count = min(rows, self._record.rows - start)
                    block = np.fromfile(file, "<f4", count * width)
                    if len(block) < count * width:
                        raise InputError(f"{path} ends before row {start + count}: {AGAIN}")
                    if not np.isfinite(block).all():
                        raise InputError(f"{path} holds NaN or infinity: {AGAIN}")
                    yield block.reshape(count, width)
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from error

    def keys(self) -> Iterator[tuple[str, str]]:
        """Root and path of each row; raises InputError."""
        path, size = self._folder / PATHS, self._record.paths_bytes or 0
        try:
            with path.open("rb") as file:
                for row in range(self._record.rows):
                    line = file.readline(_MAX_LINE)
                    if file.tell() > size or not line.endswith(b"\n"):
                        raise InputError(f"{path} ends at row {row} of {self._record.rows}: {AGAIN}")
                    yield key_of(line.decode())
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}, row {row}: {error}: {AGAIN}") from error


class NpyAppender:
    """Appends rows to the files of a store, durably; `rows` and `paths_bytes` tell how far they are good."""

    def __init__(self, folder: Path, record: StoreRecord) -> None:
        """Open or make the files and cut off what `record` doesn't know of; raises OutputFileError."""
        self._folder, self._width = folder, record.width
        self.rows, self.paths_bytes = record.rows, record.paths_bytes or 0
        try:
            self._vectors = _open(folder / VECTORS)
            self._paths = _open(folder / PATHS)
            start = self._vectors.write(header(self.rows, self._width))
            self._vectors.seek(self._vectors.truncate(start + 4 * self.rows * self._width))
            self._paths.seek(self._paths.truncate(self.paths_bytes))
        except OSError as error:
            raise cannot_write(folder / VECTORS, error) from error

    def append(self, rows: Embeddings) -> None:
        """Append rows and make them durable; raises OutputFileError."""
        lines = "".join(map(line_of, rows.roots, rows.paths)).encode()
        try:
            self._vectors.write(np.ascontiguousarray(rows.vectors, "<f4").data)
            self._paths.write(lines)
            _sync(self._vectors)
            _sync(self._paths)
            # Last, so that a reader who knows no store.json never finds fewer bytes than the header says.
            self._vectors.seek(0)
            self._vectors.write(header(self.rows + len(rows), self._width))
            self._vectors.seek(0, os.SEEK_END)
            _sync(self._vectors)
        except OSError as error:
            raise cannot_write(self._folder / VECTORS, error) from error
        self.rows += len(rows)
        self.paths_bytes += len(lines)

    def close(self) -> None:
        """Close the files; what an `append` that failed has left in memory may not go to disk, and need not."""
        for file in (self._vectors, self._paths):
            with contextlib.suppress(OSError):
                file.close()


def _unescaped(text: str) -> str:
    pieces = text.split("\\\\") if "\\" in text else [text]
    return "\\".join(piece.replace("\\n", "\n").replace("\\r", "\r").replace("/\\.", "/.") for piece in pieces)


def _open(path: Path) -> io.BufferedRandom:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _sync(file: io.BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
