"""Writing a store: rows go to disk every `FLUSH_ROWS` or `FLUSH_SECONDS`, and a run can continue a killed one."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.atomic import alone_in, cannot_write, sync_file
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.keys import Key, Keys
from runtime.store.growing_parts import GrowingParts
from runtime.store.origin import differences
from runtime.store.parquet_parts import has_parts, open_part, part_files
from runtime.store.reader import Store
from runtime.store.records import FILE_NAMES, FORMER_FILE_NAMES, Embeddings, Float32, file_names, read_record

FLUSH_ROWS = 256
FLUSH_SECONDS = 30.0
_WAITING_BATCHES = 64
"""Batches that wait for a slow disk before the model must wait."""


@contextlib.contextmanager
def open_writer(folder: Path, origin: Mapping[str, Any]) -> Iterator[StoreWriter]:
    """Begin a store in `folder`, which is made if it is missing, or continue the store that is there.

    However the block ends, the added rows are written first. Only a block that ends well makes the store complete.

    Args:
        folder: a folder whose parent exists.
        origin: what makes the embeddings, as JSON: see `runtime.store.origin`. A store that lies there must have the
            same identity, and keeps the origin that it has.

    Raises:
        UsageError: the store there has another identity.
        InputError: the store there can't be read.
        OutputFileError: `folder` can't be made or written, holds other files, or another run is writing into it.
    """
    made = _make(folder)
    try:
        with alone_in(folder, "`embed`"):
            _remove_leftovers(folder)
            there = _origin_there(folder, origin)
            with contextlib.closing(StoreWriter(folder, origin if there is None else there)) as writer:
                yield writer
                writer.finish()
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                folder.rmdir()


class StoreWriter:
    """Takes rows and errors from one thread and writes them in another; made by `open_writer`."""

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.origin = dict(origin)
        """The origin that the store has: of the run that began it."""
        self._parts = GrowingParts(folder, self.origin)
        self.stored = Keys()
        """Keys of the rows that were in the store when it was opened."""
        for root, path in self._parts.stored():
            self.stored.add(root, path)
        self._folder = folder
        self._errors = folder / file_names(folder).errors
        self._has_errors = False
        self._changes = threading.Lock()
        self._waiting: queue.Queue[Embeddings | None] = queue.Queue(_WAITING_BATCHES)  # None ends the thread
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="store writer", daemon=True)
        self._thread.start()

    def add(self, roots: Sequence[str], paths: Sequence[str], vectors: Float32) -> None:
        """Add n rows, `vectors` (n, C) float32, whose keys are not in `stored`.

        Raises:
            OutputFileError: these rows, or earlier ones, can't be written.
        """
        self._raise_failure()
        self._waiting.put(Embeddings(list(roots), list(paths), vectors))

    def add_part(self, file: Path, rows: int, width: int) -> None:
        """Add a part that `parquet_parts.write_part` wrote elsewhere on this file system: it is moved.

        Raises:
            OutputFileError: it, or earlier rows, can't be written.
        """
        self._raise_failure()
        with self._changes:
            self._parts.adopt(file, rows, width)

    def add_error(self, root: str, path: str, error: str) -> None:
        """Record at once what can't be embedded, as a line of `_errors.jsonl`; raises OutputFileError."""
        # ASCII: some names hold U+2028, where Python's splitlines would break a line.
        line = json.dumps({"root": root, "path": path, "error": error}, ensure_ascii=True) + "\n"
        mode = "ab" if self._has_errors else "wb"  # those of the run before were tried again
        if not self._has_errors:
            with self._changes:
                self._parts.begin_errors()
        self._has_errors = True
        try:
            with self._errors.open(mode, buffering=0) as file:
                file.write(line.encode())
        except OSError as error_:
            raise cannot_write(self._errors, error_) from error_

    def stored_images(self) -> Iterator[Key]:
        """Root and path of the rows on disk; none if the store was empty when it was opened. Raises InputError."""
        return Store(self._folder).images() if len(self.stored) else iter(())

    def finish(self) -> None:
        """Write the rows that wait, and mark the store as complete; raises OutputFileError."""
        self.close()
        self._raise_failure()
        try:
            with self._errors.open("ab" if self._has_errors else "wb") as file:
                sync_file(file.fileno(), self._errors)
        except OSError as error:
            raise cannot_write(self._errors, error) from error
        self._parts.complete()  # last: it says that every image is a row or a line of errors

    def close(self) -> None:
        """Write the rows that wait; a second call does nothing. A failed write is raised by `add` and `finish`."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write(self) -> None:
        """Run in the thread: gather rows; write them if there are enough, or if the oldest has waited long enough."""
        pending: list[Embeddings] = []
        since = 0.0
        is_over = False
        while not is_over:
            patience = max(0.0, since + FLUSH_SECONDS - time.monotonic()) if pending else None
            with contextlib.suppress(queue.Empty):
                item = self._waiting.get(timeout=patience)
                while item is not None:
                    since = since if pending else time.monotonic()
                    pending.append(item)
                    item = self._waiting.get_nowait()
                is_over = True
            rows = sum(map(len, pending))
            if pending and (is_over or rows >= FLUSH_ROWS or time.monotonic() - since >= FLUSH_SECONDS):
                self._flush(pending)
                pending = []

    def _flush(self, pending: Sequence[Embeddings]) -> None:
        if self._failure is not None:  # the disk is full: rows are dropped until `add` raises
            return
        rows = Embeddings(
            [root for item in pending for root in item.roots],
            [path for item in pending for path in item.paths],
            np.concatenate([item.vectors for item in pending]),
        )
        try:
            with self._changes:
                self._parts.append(rows)
        except Exception as error:
            self._failure = error  # raised where the next rows are added


def _make(folder: Path) -> bool:
    """Make `folder` if it is missing; returns whether it was."""
    try:
        if folder.is_dir():
            return False
        if folder.exists():
            raise OutputFileError(f"{folder} is a file: --out is the folder of the embeddings; give another name")
        folder.mkdir()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return True


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed run: this run has the lock, so no other is writing."""
    for name in ("part-*.parquet", FILE_NAMES.record, FORMER_FILE_NAMES.record):
        for path in folder.glob(f".{name}.*"):
            if path.is_dir():  # of a run by Ray, which wrote parts there
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()


def _origin_there(folder: Path, origin: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Check that rows of `origin` may go into `folder`; returns the origin of the store there, or None."""
    record = read_record(folder)
    parts = part_files(folder) if has_parts(folder) else []
    if record is None and not parts:
        errors = folder / file_names(folder).errors
        if errors.exists() and not _is_error_log(errors):
            raise OutputFileError(
                f"{folder} holds {errors.name}, which `embed` did not write; give an --out of its own"
            )
        return None
    there = {} if record is None else record.origin
    if parts:
        with open_part(parts[0]) as part:
            if part.store is None:
                raise OutputFileError(
                    f"{folder} holds {parts[0].name}, which `embed` did not write; give an --out of its own"
                )
            there = there or part.origin
    if what := differences(there, origin):
        raise UsageError(
            f"{folder} was made otherwise: {what}; give the same model and options, or an --out of its own"
        )
    return there


def _is_error_log(path: Path) -> bool:
    """Whether a file is an `_errors.jsonl` of ours: empty, or its first line has our fields."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16)
        return not line or json.loads(line).keys() == {"root", "path", "error"}
    except (OSError, ValueError, AttributeError):
        return False
