"""Where a writer's rows go: parquet parts, one of which grows, so that a run can go on after a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.atomic import cannot_write, sync_folder
from runtime.contract.errors import OutputFileError
from runtime.contract.keys import Key
from runtime.store.parquet_parts import has_parts, open_part, part_files, part_path, write_part
from runtime.store.reader import Store
from runtime.store.records import Embeddings, StoreRecord, file_names, read_record, write_record

PART_ROWS = 4096
"""Rows of a part, which is written anew until it has so many: 12 MB of ViT-B's embeddings."""


class GrowingParts:
    """The parts of a store, of which one is replaced by a longer one of itself at each `append`: at first the last."""

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        """Begin a store, or go on with the one in `folder`; raises InputError."""
        import pyarrow.parquet  # noqa: F401  # if it is missing, it is now that a user must read it

        self._folder, self._origin = folder, origin
        self._store = Store(folder) if has_parts(folder) else None
        self._rows = 0 if self._store is None else len(self._store)
        self._count = 0 if self._store is None else len(part_files(folder))
        self._growing: tuple[int, Embeddings] | None = None  # number and rows
        if self._count:
            with open_part(part_path(folder, self._count - 1)) as part:
                if part.rows < PART_ROWS:
                    self._growing = self._count - 1, part.read()
        self._is_marked = False
        self._is_new = read_record(folder) is None

    def stored(self) -> Iterator[Key]:
        """The keys of the rows that lay there before the first `append`; raises InputError."""
        return iter(()) if self._store is None else self._store.images()

    def append(self, rows: Embeddings) -> None:
        """Append rows durably; raises OutputFileError, after which there is no going on."""
        with self._undone_if_new():
            self._mark_incomplete(rows.vectors.shape[1])
            self._write_parts(rows)
        self._rows += len(rows)

    def adopt(self, file: Path, rows: int, width: int) -> None:
        """Take a finished part, of this many rows, from elsewhere on this file system; raises as `append`."""
        with self._undone_if_new():
            self._mark_incomplete(width)
            path = part_path(self._folder, self._count)
            try:
                file.replace(path)
            except OSError as error:
                raise cannot_write(path, error) from error
            sync_folder(self._folder)
        self._count += 1
        self._rows += rows

    @contextlib.contextmanager
    def _undone_if_new(self) -> Iterator[None]:
        """Remove `_store.json` of a store that has not come to be, if the block raises OutputFileError."""
        try:
            yield
        except OutputFileError:
            if self._is_new and not has_parts(self._folder):
                with contextlib.suppress(OSError):
                    (self._folder / file_names(self._folder).record).unlink(missing_ok=True)
            raise

    def begin_errors(self) -> None:
        """Say that a store is not complete, since the errors of the run before are replaced; raises OutputFileError."""
        if self._store is not None:
            self._mark_incomplete(self._store.width)

    def _mark_incomplete(self, width: int) -> None:
        """Say so before the first change, so that a store that changes is never taken for a complete one."""
        if not self._is_marked:
            self._write_record(width, complete=False)
            self._is_marked, self._width = True, width

    def _write_parts(self, rows: Embeddings) -> None:
        number, left = (self._count, rows) if self._growing is None else self._growing
        if self._growing is not None:
            left = _joined(left, rows)
        while len(left):
            piece, left = left[:PART_ROWS], left[PART_ROWS:]
            write_part(part_path(self._folder, number), piece, self._origin)
            self._count = max(self._count, number + 1)
            self._growing = None if len(piece) == PART_ROWS else (number, piece)
            number = self._count

    def complete(self) -> None:
        """Say in `_store.json` that the run has ended; raises OutputFileError."""
        if self._is_marked:
            self._write_record(self._width, complete=True)
        elif self._store is not None:
            self._write_record(self._store.width, complete=True)

    def _write_record(self, width: int, *, complete: bool) -> None:
        record = StoreRecord(complete=complete, rows=self._rows, width=width, origin=self._origin)
        write_record(self._folder, record)


def _joined(one: Embeddings, other: Embeddings) -> Embeddings:
    vectors = np.concatenate([one.vectors, other.vectors])
    return Embeddings(one.roots + other.roots, one.paths + other.paths, vectors)
