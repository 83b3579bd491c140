"""Writing embeddings: parts go into a hidden folder and are moved to their places when all are there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic import cannot_write, publish, work_folder
from runtime.errors import OutputFileError
from runtime.store import FORMAT, METADATA_KEY, PART, Embeddings, Float32, digest

PART_ROWS = 16_384
"""Rows of a part: 50 MB of ViT-B's embeddings, which is what a writer holds in memory."""
ERRORS = "errors.jsonl"


@contextlib.contextmanager
def new_store(folder: Path, origin: Mapping[str, Any]) -> Iterator[StoreWriter]:
    """Write a new set of embeddings into `folder`, made where it is missing, in place of the one there.

    Parts are written into a hidden folder in `folder` and moved when the block has ended well, so that an
    older set stays as it was until then. It also stays where the block added no row.

    Args:
        folder: a folder whose parent exists.
        origin: what made the embeddings, as JSON; goes into each part's metadata.

    Raises:
        OutputFileError: `folder` can't be made or written, or holds another program's `.parquet` file.
    """
    made = _make(folder)
    try:
        with _locked(folder), work_folder(beside=folder / "embeddings") as work:
            old = _replaceable(folder)
            writer = StoreWriter(work, origin)
            yield writer
            writer.finish()
            if writer.parts or not old:
                _publish(writer, folder, old)
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                folder.rmdir()


class StoreWriter:
    """Takes rows and writes them as parts; made by `new_store`, which publishes them."""

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.parts: list[Path] = []
        self.errors = work / ERRORS
        self._work = work
        self._origin = dict(origin)
        self._previous = ""
        self._roots: list[str] = []
        self._paths: list[str] = []
        self._vectors: list[Float32] = []
        self._log: list[str] = []

    def add(self, roots: Sequence[str], paths: Sequence[str], vectors: Float32) -> None:
        """Add n rows, `vectors` (n, C) float32; raises OutputFileError where a part can't be written."""
        self._roots += roots
        self._paths += paths
        self._vectors.append(vectors)
        while len(self._paths) > PART_ROWS:  # not >=: the last part is marked, and it may be a full one
            self._write_part(PART_ROWS, last=False)

    def add_error(self, root: str, path: str, error: str) -> None:
        """Record a picture that can't be read, for `errors.jsonl`."""
        # ASCII: some names hold U+2028, where Python's splitlines would break a line.
        self._log.append(json.dumps({"root": root, "path": path, "error": error}, ensure_ascii=True))

    def finish(self) -> None:
        """Write what is left; raises OutputFileError."""
        if self._paths:
            self._write_part(len(self._paths), last=True)
        try:
            self.errors.write_text("".join(line + "\n" for line in self._log), "utf-8")
        except OSError as error:
            raise cannot_write(self.errors, error) from error

    def _write_part(self, rows: int, *, last: bool) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        vectors = np.concatenate(self._vectors)
        part = Embeddings(self._roots[:rows], self._paths[:rows], vectors[:rows])
        self._roots, self._paths, self._vectors = self._roots[rows:], self._paths[rows:], [vectors[rows:]]
        number = len(self.parts)
        metadata = {
            "format": FORMAT,
            "part": number,
            "previous": self._previous,
            "last": last,
            **self._origin,
        }
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.vectors.ravel()), part.vectors.shape[1])
        table = pa.table(
            {
                "root": pa.array(part.roots, pa.string()),
                "path": pa.array(part.paths, pa.string()),
                "embedding": column,
            }
        ).replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
        path = self._work / f"{number}.part"  # no .parquet yet: nothing half-written may look like a part
        try:
            with path.open("wb") as file:  # pyarrow itself takes no name that isn't UTF-8
                parquet.write_table(table, file, use_dictionary=["root"], write_page_checksum=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        self.parts.append(path)
        self._previous = digest(self._previous, part)


def _make(folder: Path) -> bool:
    """Make `folder` where it is missing, and say whether."""
    try:
        if folder.is_dir():
            return False
        folder.mkdir()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, however this one ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputFileError(f"another `embed` is writing into {folder}: wait for it") from error
        yield
    finally:
        os.close(descriptor)


def _replaceable(folder: Path) -> list[Path]:
    """The parts in `folder`, to be replaced; raises OutputFileError where there is other parquet."""
    old = sorted(folder.glob("*.parquet"))
    for path in old:
        if not (PART.fullmatch(path.name) and _is_ours(path)):
            raise OutputFileError(
                f"{folder} holds {path.name}, which `embed` did not write, or not whole; give an --out of its own"
            )
    return old


def _is_ours(path: Path) -> bool:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            return METADATA_KEY in (parquet.read_schema(file).metadata or {})
    except (OSError, ValueError, pa.ArrowException):
        return False


def _publish(writer: StoreWriter, folder: Path, old: Sequence[Path]) -> None:
    """Move the new parts over the old ones and drop the rest; the chain tells if that is cut short."""
    new = [folder / f"part-{number:05d}.parquet" for number in range(len(writer.parts))]
    for source, target in zip(writer.parts, new, strict=True):
        publish(source, target)
    try:
        for path in set(old) - set(new):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    publish(writer.errors, folder / ERRORS)
