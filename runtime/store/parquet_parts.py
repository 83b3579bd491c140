"""The parts of a parquet store: `part-00000.parquet` and so on, with columns `root`, `path` and `embedding`.

The metadata of a part holds the origin of its rows under `itae`, so that parts of two models are never taken for one
set.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.atomic import atomic_file
from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key
from runtime.store.origin import fingerprint
from runtime.store.records import AGAIN, FORMAT, Embeddings, Float32

METADATA_KEY = b"itae"
PART = re.compile(r"part-(\d{5,})\.parquet")
KEY_COLUMNS = ("root", "path")


def part_path(folder: Path, number: int) -> Path:
    """Return the path of part `number`."""
    return folder / f"part-{number:05d}.parquet"


def part_files(folder: Path) -> list[Path]:
    """Return the parts in `folder`, by number.

    Raises:
        InputError: there is no such folder, a number is left out, or another file there ends in `.parquet`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of embeddings")
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("[!.]*.parquet")):  # a hidden one is of a write that was cut short
        match = PART.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path} is not a part of embeddings (part-00000.parquet ...): move it elsewhere")
        found[int(match[1])] = path
    if sorted(found) != list(range(len(found))):
        raise InputError(f"{folder}: parts {sorted(found)} are not numbered from 0 on: {AGAIN}")
    return [found[number] for number in sorted(found)]


def has_parts(folder: Path) -> bool:
    """Whether any file in `folder` would be read as a part."""
    return next(folder.glob("[!.]*.parquet"), None) is not None


def write_part(path: Path, rows: Embeddings, origin: Mapping[str, Any]) -> None:
    """Write a part, whole or not at all; it may replace a shorter one that it continues. Raises OutputFileError."""
    import pyarrow as pa
    from pyarrow import parquet

    metadata = {"format": FORMAT, "store": fingerprint(origin), **origin}
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.ravel()), rows.vectors.shape[1])
    table = pa.table(
        {"root": pa.array(rows.roots, pa.string()), "path": pa.array(rows.paths, pa.string()), "embedding": column}
    ).replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    with atomic_file(path) as file:  # pyarrow itself takes no path that isn't UTF-8
        # No dictionary of vectors, no compression: float32 noise shrinks by 8 % and costs more than the disk.
        parquet.write_table(table, file, use_dictionary=["root"], compression="none", write_page_checksum=True)


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[PartFile]:
    """Open a part for reading, after its columns were checked.

    Raises:
        InputError: it can't be read, or its columns are others.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(path.open("rb"))  # not the path: pyarrow takes none that isn't UTF-8
            # Not read_table: that takes names like `k=v` on the way for columns.
            file = stack.enter_context(
                parquet.ParquetFile(source, page_checksum_verification=True, buffer_size=1 << 20)  # or a whole column
            )
            metadata = _parse_metadata(file.schema_arrow.metadata)
            status = os.fstat(source.fileno())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{path} can't be read ({one_line(error)}): {AGAIN}") from error
        yield PartFile(path, file, metadata, (status.st_size, status.st_mtime_ns))


class PartFile:
    """A part opened for reading; `open_part` makes one."""

    def __init__(
        self,
        path: Path,
        file: Any,  # noqa: ANN401  # pyarrow's
        metadata: dict[str, Any] | None,
        changed: tuple[int, int],
    ) -> None:
        self.path = path
        self.changed = changed
        """Bytes and time of the last change (ns)."""
        self.metadata = metadata
        self.width = _checked_width(file.schema_arrow, path)
        self.rows: int = file.metadata.num_rows
        self._file = file

    @property
    def store(self) -> str | None:
        """Fingerprint of the rows' origin; None if another program wrote the file."""
        return None if self.metadata is None else self.metadata["store"]

    @property
    def origin(self) -> dict[str, Any]:
        """The rows' origin; empty if another program wrote the file."""
        return {key: value for key, value in (self.metadata or {}).items() if key not in ("format", "store")}

    def keys(self) -> tuple[list[str], list[str]]:
        """Roots and paths of all rows; raises InputError."""
        table = self._read(KEY_COLUMNS)
        return table.column("root").to_pylist(), table.column("path").to_pylist()

    def read(self) -> Embeddings:
        """All rows; raises InputError."""
        table = self._read((*KEY_COLUMNS, "embedding"))
        vectors = self._vectors(table.column("embedding").combine_chunks())
        return Embeddings(table.column("root").to_pylist(), table.column("path").to_pylist(), vectors)

    def vectors(self, rows: int) -> Iterator[Float32]:
        """All embeddings, at most `rows` of them at a time and in memory: (`rows`, C) float32; raises InputError."""
        import pyarrow as pa

        try:
            for batch in self._file.iter_batches(rows, columns=["embedding"], use_threads=False):  # each holds memory
                yield self._vectors(batch.column(0))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _vectors(self, column: Any) -> Float32:  # noqa: ANN401  # pyarrow ships no types
        values = column.flatten()
        if values.null_count or len(values) != len(column) * self.width:
            raise InputError(f"{self.path} holds nulls: {AGAIN}")
        # Not to_numpy: it imports pandas where that is installed, 80 MB and a second.
        numbers = np.frombuffer(values.buffers()[1] or b"", np.float32, len(values), 4 * values.offset)
        vectors = numbers.reshape(len(column), self.width)
        if not np.isfinite(vectors).all():
            raise InputError(f"{self.path} holds NaN or infinity: {AGAIN}")
        return vectors

    def _read(self, columns: tuple[str, ...]) -> Any:  # noqa: ANN401  # pyarrow ships no types
        import pyarrow as pa

        try:
            table = self._file.read(columns=list(columns))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        if any(table.column(name).null_count for name in table.column_names):
            raise InputError(f"{self.path} holds nulls: {AGAIN}")
        return table

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self.path} can't be read ({one_line(error)}): {AGAIN}")


class Parts:
    """The parts of a folder, for reading: the rows that exist when they are opened."""

    def __init__(self, folder: Path, origin: str | None) -> None:
        """Compare the parts' columns and origins; `origin` is the fingerprint that they must have, if it is known.

        Raises:
            InputError: there is no part, one can't be read, or they are not one set.
        """
        files = part_files(folder)
        if not files:
            raise InputError(f"{folder} holds no part-00000.parquet: {AGAIN}")
        self._parts: list[tuple[Path, int]] = []
        self._state: list[list[str | int]] = []
        widths: set[int] = set()
        for path in files:
            with open_part(path) as part:
                origin = part.store if path == files[0] and origin is None else origin
                if part.store != origin:
                    raise InputError(f"{path} is not of the same run as the parts before it, or _store.json: {AGAIN}")
                self._parts.append((path, part.rows))
                self._state.append([path.name, *part.changed, part.rows])
                widths.add(part.width)
        if len(widths) > 1:
            raise InputError(f"{folder}: parts with embeddings of widths {sorted(widths)}: {AGAIN}")
        self.width = widths.pop()
        self.rows = sum(rows for _, rows in self._parts)

    def state(self) -> list[list[str | int]]:
        """Name, bytes, time of the last change (ns) and rows of each part, as it was when it was counted."""
        return self._state

    def images(self) -> Iterator[Key]:
        """Root and path of each row; raises InputError."""
        for part, count in self._opened():
            yield from itertools.islice(zip(*part.keys(), strict=True), count)

    def parts(self) -> Iterator[Embeddings]:
        """All rows, a part at a time; raises InputError."""
        for part, count in self._opened():
            yield part.read()[:count]

    def blocks(self, rows: int) -> Iterator[Float32]:
        """All rows, at most `rows` of them at a time and in memory: (`rows`, C) float32; raises InputError."""
        for part, left in self._opened():
            for block in part.vectors(rows):
                yield block[:left]  # the part may have grown since it was counted
                left -= min(left, len(block))

    def _opened(self) -> Iterator[tuple[PartFile, int]]:
        """Each part with its number of rows. A run that goes on only makes parts longer, and adds others."""
        for path, rows in self._parts:
            with open_part(path) as part:
                if part.rows < rows or part.width != self.width:
                    raise InputError(
                        f"{path} held {rows} rows of {self.width} when it was opened, now {part.rows} of "
                        f"{part.width}: something else writes there; read it again when that is done"
                    )
                yield part, rows
            _release_memory()


def _release_memory() -> None:
    """Free what pyarrow keeps for later use, which would grow to 100 MB over many parts."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _parse_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """Parse the `itae` entry of a file's metadata; None if there is none. Raises ValueError if it is damaged."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    fields: dict[str, Any] = json.loads(text)
    is_ours = isinstance(fields, dict) and "format" in fields
    if is_ours and fields["format"] != FORMAT:
        raise ValueError(f"it has format {fields['format']}, this version reads {FORMAT}")
    if not (is_ours and isinstance(fields.get("store"), str)):
        raise ValueError("its metadata is damaged")
    return fields


def _checked_width(schema: Any, path: Path) -> int:  # noqa: ANN401  # pyarrow ships no types
    """Check the columns, and return the width of the embeddings."""
    import pyarrow as pa

    for name in (*KEY_COLUMNS, "embedding"):
        if name not in schema.names:
            raise InputError(f"{path} has no column `{name}`: not embeddings")
        kind = schema.field(name).type
        if name != "embedding" and kind not in (pa.string(), pa.large_string()):
            raise InputError(f"{path}: column `{name}` is {kind}, expected string")
        if name == "embedding" and not (
            pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32() and kind.list_size > 0
        ):
            raise InputError(f"{path}: column `{name}` is {kind}, expected a fixed-size list of float32")
    return int(schema.field("embedding").type.list_size)
