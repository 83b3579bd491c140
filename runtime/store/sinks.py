"""Where a writer's rows go: parquet parts that grow, or one npy file; both can be gone on with after a crash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.store.npy_file import NpyAppender
from runtime.store.parquet_parts import has_parts, open_part, part_path, write_part
from runtime.store.reader import Store
from runtime.store.records import Embeddings, Kind, StoreRecord, read_record, write_record

PART_ROWS = 4096
"""Rows of a part, which is written anew until it has so many: 12 MB of ViT-B's embeddings."""


class Sink(Protocol):
    """Takes rows, each time durably; writes `store.json`."""

    def stored(self) -> Iterator[tuple[str, str]]:
        """The keys of the rows that lay there; to be asked before the first `append`; raises InputError."""

    def append(self, rows: Embeddings) -> None:
        """Append rows; raises OutputFileError, after which there is no going on."""

    def complete(self) -> None:
        """Say in `store.json` that the run has ended; raises OutputFileError."""

    def close(self) -> None:
        """Close the files."""


def open_sink(folder: Path, origin: dict[str, Any], kind: Kind) -> Sink:
    """The sink of a new store, or of the one in `folder`; raises InputError."""
    return ParquetSink(folder, origin) if kind == "parquet" else NpySink(folder, origin)


class ParquetSink:
    """A set of parts, of which the last is replaced by a longer one of itself at each `append`."""

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        import pyarrow.parquet  # noqa: F401  # where it is missing, that is to be told before the model has run

        self._folder, self._origin = folder, origin
        self._store = Store(folder) if has_parts(folder) else None
        self._rows = 0 if self._store is None else len(self._store)
        self._full_parts = 0 if self._store is None else self._store.part_count
        self._last: Embeddings | None = None
        if self._full_parts:
            with open_part(part_path(folder, self._full_parts - 1)) as part:
                if part.rows < PART_ROWS:
                    self._last = part.read()
                    self._full_parts -= 1
        self._is_marked = False

    def stored(self) -> Iterator[tuple[str, str]]:  # noqa: D102
        return iter(()) if self._store is None else self._store.images()

    def append(self, rows: Embeddings) -> None:  # noqa: D102
        if not self._is_marked:  # first, so that a set that grows is never taken for a complete one
            self._write_record(rows.vectors.shape[1], complete=False)
            self._is_marked = True
        left = rows if self._last is None else _joined(self._last, rows)
        while len(left):
            piece, left = _split(left, PART_ROWS)
            write_part(part_path(self._folder, self._full_parts), piece, self._origin)
            is_full = len(piece) == PART_ROWS
            self._full_parts += is_full
            self._last = None if is_full else piece
        self._rows += len(rows)
        self._width = rows.vectors.shape[1]

    def complete(self) -> None:  # noqa: D102
        if self._is_marked:
            self._write_record(self._width, complete=True)
        elif self._store is not None:
            self._write_record(self._store.width, complete=True)

    def close(self) -> None:  # noqa: D102
        pass  # each append closes its file

    def _write_record(self, width: int, *, complete: bool) -> None:
        record = StoreRecord(kind="parquet", complete=complete, rows=self._rows, width=width, origin=self._origin)
        write_record(self._folder, record)


class NpySink:
    """One file of vectors and one of paths, good as far as `store.json` says."""

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        self._folder, self._origin = folder, origin
        self._record = read_record(folder)
        self._files: NpyAppender | None = None

    def stored(self) -> Iterator[tuple[str, str]]:  # noqa: D102
        # With no row the files may be missing: a run was cut short before it made them.
        return Store(self._folder).images() if self._record is not None and self._record.rows else iter(())

    def append(self, rows: Embeddings) -> None:  # noqa: D102
        if self._record is None:  # first, so that the files are never found without
            width = rows.vectors.shape[1]
            self._write_record(StoreRecord(kind="npy", complete=False, rows=0, width=width, origin=self._origin))
        assert self._record is not None
        if self._files is None:
            self._files = NpyAppender(self._folder, self._record)
        self._files.append(rows)
        update = {"complete": False, "rows": self._files.rows, "paths_bytes": self._files.paths_bytes}
        self._write_record(self._record.model_copy(update=update))

    def complete(self) -> None:  # noqa: D102
        if self._record is not None:
            self._write_record(self._record.model_copy(update={"complete": True}))

    def close(self) -> None:  # noqa: D102
        if self._files is not None:
            self._files.close()

    def _write_record(self, record: StoreRecord) -> None:
        write_record(self._folder, record)
        self._record = record


def _joined(one: Embeddings, other: Embeddings) -> Embeddings:
    vectors = np.concatenate([one.vectors, other.vectors])
    return Embeddings(one.roots + other.roots, one.paths + other.paths, vectors)


def _split(rows: Embeddings, count: int) -> tuple[Embeddings, Embeddings]:
    """The first `count` rows, and the others."""
    return (
        Embeddings(rows.roots[:count], rows.paths[:count], rows.vectors[:count]),
        Embeddings(rows.roots[count:], rows.paths[count:], rows.vectors[count:]),
    )
