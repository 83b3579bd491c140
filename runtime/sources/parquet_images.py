"""Images inside a column of a parquet file."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from typing import Any

from runtime.contract.errors import InputError
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted, Item, Unreadable, reason
from runtime.sources.parquet_columns import ImageColumn, image_column, open_columns

_ROWS = 16
"""Rows in memory at a time, each with its image."""


class ParquetImages:
    """Images in a column. Root: the file; path: the row's number, and the struct's path if there is one."""

    may_repeat = False
    skipped = NONE_SKIPPED

    def __init__(self, root: str, column: ImageColumn, rows: int, max_bytes: int) -> None:
        self.roots = (root,)
        self._column = column
        self._rows = rows
        self._max_bytes = max_bytes

    def count(self) -> int:
        """Number of rows."""
        return self._rows

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, a few rows at a time; a damaged row group is reported, and the next one is read."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_columns(self.roots[0]))
                groups = _row_groups(file)
            except Exception as error:
                yield Unreadable(self.roots[0], "", reason(error))
                return
            for group, rows in enumerate(groups):
                yield from self._group(file, group, rows, is_wanted)

    def _group(self, file: Any, group: int, rows: range, is_wanted: IsWanted) -> Iterator[Entry]:  # noqa: ANN401
        root = self.roots[0]
        try:
            keys = _keys(file, self._column, group, rows)
        except Exception as error:
            yield Unreadable(root, "", f"rows {rows.start} to {rows.stop - 1}: {reason(error)}")
            return
        missing = [key if is_wanted(root, key) else None for key in keys]  # before their bytes are read
        if not any(missing):
            return
        row = 0
        try:
            for value in _values(file, self._column, group):
                if key := missing[row]:
                    yield self._entry(key, value)
                row += 1
        except Exception as error:
            yield from (Unreadable(root, key, reason(error)) for key in missing[row:] if key)

    def _entry(self, key: str, value: Any) -> Entry:  # noqa: ANN401  # a pyarrow scalar
        try:
            return Item(self.roots[0], key, _image_bytes(value, self._max_bytes))
        except InputError as error:
            return Unreadable(self.roots[0], key, reason(error))


def read_row(root: str, path: str, max_bytes: int) -> bytes:
    """Return the content of the image of a key of `ParquetImages`.

    Raises:
        InputError: there is no such image, or it can't be read.
    """
    try:
        number = int(path.partition("/")[0])
        with open_columns(root) as file:
            column = image_column(file.schema_arrow, root)
            for group, rows in enumerate(_row_groups(file)):
                if column and number in rows and _keys(file, column, group, rows)[number - rows.start] == path:
                    for row, value in zip(rows, _values(file, column, group), strict=True):
                        if row == number:
                            return _image_bytes(value, max_bytes)
    except InputError:
        raise
    except Exception as error:
        raise InputError(reason(error)) from error
    raise InputError("is not in the parquet file")


def _row_groups(file: Any) -> list[range]:  # noqa: ANN401
    """The numbers of the rows of each row group."""
    groups, start = [], 0
    for group in range(file.num_row_groups):
        groups.append(range(start, start + file.metadata.row_group(group).num_rows))
        start = groups[-1].stop
    return groups


def _keys(file: Any, column: ImageColumn, group: int, rows: range) -> list[str]:  # noqa: ANN401
    """The paths of the rows of a row group, as in their keys."""
    if not column.has_path:
        return [str(row) for row in rows]
    read = file.read_row_group(group, columns=[f"{column.name}.path"])
    names = read.column(0).combine_chunks().field("path").to_pylist()
    return [f"{row}/{name}" if (name := _inside(text)) else str(row) for row, text in zip(rows, names, strict=True)]


def _inside(text: str | None) -> str:
    """Return a struct's path as one that stays below its root, whatever it says; empty if there is none."""
    return posixpath.normpath(f"/{text}").lstrip("/").replace("\0", "") if text else ""


def _values(file: Any, column: ImageColumn, group: int) -> Iterator[Any]:  # noqa: ANN401
    """The bytes of each row of a row group, as pyarrow's scalars."""
    name = f"{column.name}.bytes" if column.is_struct else column.name
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[name]):
        values = batch.column(0)
        yield from values.flatten()[0] if column.is_struct else values


def _image_bytes(value: Any, max_bytes: int) -> bytes:  # noqa: ANN401
    if not value.is_valid:
        raise InputError("holds no bytes (null)")
    buffer = value.as_buffer()
    if buffer.size > max_bytes:
        raise InputError(f"has {buffer.size:,} bytes, more than {max_bytes:,}")
    return bytes(buffer)
