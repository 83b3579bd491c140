"""Images inside a column of a parquet file."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key
from runtime.sources.files import resolved
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted, Item, Unreadable, reason
from runtime.sources.lists import key_of
from runtime.sources.names import is_remote, printable
from runtime.sources.parquet_columns import ImageColumn, buffer_of, column_in, column_of, key_columns, open_columns
from runtime.sources.picture_text import picture_of
from runtime.sources.remote import split

_ROWS = 16
"""Rows in memory at a time, each with its image."""
_KEY = re.compile(r"(?P<row>\d{1,18})(?:\.\d+)?(?P<mark>:[^/]*)?(?:/(?P<name>.*))?", re.DOTALL)


class ParquetImages:
    """Images in a column. Root: the file; path: `ROW`, then `.NUMBER` in a list of images, `:COLUMN`, `/NAME`.

    `:COLUMN` is there only if the column is not the one taken by default, `/NAME` only if there is a name: the struct's
    path, or the value of another column.
    """

    may_repeat = False
    skipped = NONE_SKIPPED

    def __init__(self, root: str, column: ImageColumn, rows: int, max_bytes: int) -> None:
        self.roots = (root,)
        self._column = column
        self._rows = rows
        self._max_bytes = max_bytes

    def count(self) -> int | None:
        """Number of rows; None if each holds a list."""
        return None if self._column.is_list else self._rows

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, a few rows at a time; a damaged row group is reported, and the next one is read."""
        found = not self._column.is_list
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_columns(self.roots[0]))
                groups = _row_groups(file)
            except Exception as error:
                yield Unreadable(self.roots[0], "", reason(error))
                return

            def is_found(root: str, path: str) -> bool:
                nonlocal found
                found = True
                return is_wanted(root, path)

            group = _Group(file, self.roots[0], self._column, self._max_bytes)
            for number, rows in enumerate(groups):
                for one in group.entries(number, rows, is_found):
                    found = True
                    yield one
        if not found:
            yield Unreadable(self.roots[0], "", f"holds no image: all lists in column `{self._column.name}` are empty")

    def places(self) -> Iterator[Key]:
        """The files that images without bytes may lie in; only paths are read. Lists of images are left out."""
        with open_columns(self.roots[0]) as file:
            for group, rows in enumerate(_row_groups(file)):
                for path in _paths(file, self._column, group, rows):
                    with contextlib.suppress(InputError):  # as of most images that have bytes
                        if path:
                            yield _place(path, self.roots[0])


class _Group:
    """Reads the row groups of an open file."""

    def __init__(self, file: Any, root: str, column: ImageColumn, max_bytes: int) -> None:  # noqa: ANN401  # pyarrow's
        self._file, self._root, self._column, self._max_bytes = file, root, column, max_bytes

    def entries(self, group: int, rows: range, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images of a row group."""
        try:
            names, paths = _names(self._file, self._column, group, rows), _paths(self._file, self._column, group, rows)
        except Exception as error:
            yield Unreadable(self._root, "", f"rows {rows.start} to {rows.stop - 1}: {reason(error)}")
            return
        if self._column.is_list:
            yield from self._lists(group, rows, names, is_wanted)
            return
        keys = [self._key(row, name) for row, name in zip(rows, names, strict=True)]
        missing = [key if is_wanted(self._root, key) else None for key in keys]  # before their bytes are read
        if not any(missing):
            return
        row = 0
        try:
            for value in _values(self._file, self._column, group):
                if key := missing[row]:
                    yield self._entry(key, value, paths[row])
                row += 1
        except Exception as error:
            yield from (Unreadable(self._root, key, reason(error)) for key in missing[row:] if key)

    def _lists(self, group: int, rows: range, names: list[str], is_wanted: IsWanted) -> Iterator[Entry]:
        """The images of lists, whose bytes are read in any case."""
        row = rows.start
        try:
            for values in _lists(self._file, self._column, group):
                for number, (value, path) in enumerate(values):
                    name = names[row - rows.start] if self._column.key else _inside(path)
                    key = self._key(f"{row}.{number}", name)
                    if is_wanted(self._root, key):
                        yield self._entry(key, value, path)
                row += 1
        except Exception as error:
            yield Unreadable(self._root, "", f"rows {row} to {rows.stop - 1}: {reason(error)}")

    def _key(self, row: int | str, name: str) -> str:
        return f"{row}{self._column.mark}/{name}" if name else f"{row}{self._column.mark}"

    def _entry(self, key: str, value: Any, path: str | None) -> Entry:  # noqa: ANN401  # a pyarrow scalar
        try:
            buffer = buffer_of(value)
            if buffer is None and not path:
                return Unreadable(self._root, key, "holds no bytes (null)")
            if path and not (buffer and buffer.size):
                return Item(self._root, key, place=_place(path, self._root))
            if self._column.is_text or bytes(buffer[:5]).lower() == b"data:":
                return Item(self._root, key, picture_of(bytes(buffer), self._max_bytes))
            return Item(self._root, key, _image_bytes(buffer, self._max_bytes))
        except InputError as error:
            return Unreadable(self._root, key, reason(error))


def read_row(root: str, path: str, max_bytes: int) -> Item:
    """Return the image of a key of `ParquetImages`, with its content or the place where that lies.

    Raises:
        InputError: there is no such image, or it can't be read.
    """
    for one in read_rows(root, [path], max_bytes):
        if isinstance(one, Unreadable):
            raise InputError(one.error)
        return one
    raise InputError("is not in the parquet file")


def read_rows(root: str, paths: Iterable[str], max_bytes: int) -> Iterator[Entry]:
    """The images of several keys of `ParquetImages` in one pass, without those that are not there.

    Raises:
        InputError: the file can't be read.
    """
    asked: defaultdict[str, dict[str, re.Match[str]]] = defaultdict(dict)
    for path in paths:
        if match := _KEY.fullmatch(path):
            asked[match["mark"] or ""][path] = match
    try:
        with open_columns(root) as file:
            for mark, matches in asked.items():
                if (column := column_of(file, mark)) is not None:
                    for number, rows in enumerate(_row_groups(file)):
                        here = {path: match for path, match in matches.items() if int(match["row"]) in rows}
                        yield from _found(file, root, column, number, rows, here, max_bytes)
    except InputError:
        raise
    except Exception as error:
        raise InputError(reason(error)) from error


def _found(
    file: Any,  # noqa: ANN401
    root: str,
    column: ImageColumn,
    number: int,
    rows: range,
    asked: dict[str, re.Match[str]],
    max_bytes: int,
) -> Iterator[Entry]:
    """The images of some keys in a row group; the column that --key-column named is found by the names in the keys."""
    left = dict(asked)
    for key in dict.fromkeys([column.key, None, *key_columns(file.schema_arrow)]):
        if not left:
            return
        named = replace(column, key=key)
        names = [] if key is None else _names(file, named, number, rows)
        if key is None or any(
            (match["name"] or "") == names[int(match["row"]) - rows.start] for match in left.values()
        ):
            group = _Group(file, root, named, max_bytes)
            for one in group.entries(number, rows, lambda _, path: path in left):
                if isinstance(one, Unreadable) and not one.path:
                    raise InputError(one.error)
                del left[one.path]
                yield one
                if not left:
                    return


def _row_groups(file: Any) -> list[range]:  # noqa: ANN401
    """The numbers of the rows of each row group."""
    groups, start = [], 0
    for group in range(file.num_row_groups):
        groups.append(range(start, start + file.metadata.row_group(group).num_rows))
        start = groups[-1].stop
    return groups


def _names(file: Any, column: ImageColumn, group: int, rows: range) -> list[str]:  # noqa: ANN401
    """The names of the rows of a row group, as in their keys; empty where there is none."""
    if column.key is not None:
        read = file.read_row_group(group, columns=[column.key])
        values = column_in(read, column.key).to_pylist()
        return [_inside(None if value is None else str(value)) for value in values]
    return (
        [_inside(path) for path in _struct_paths(file, column, group)]
        if column.has_path and not column.is_list
        else [""] * len(rows)
    )


def _paths(file: Any, column: ImageColumn, group: int, rows: range) -> list[str | None]:  # noqa: ANN401
    """Where the image of each row of a row group lies if there are no bytes."""
    if column.is_list:
        return []
    if column.has_path:
        return _struct_paths(file, column, group)
    if column.beside is None:
        return [None] * len(rows)
    read = file.read_row_group(group, columns=[column.beside])
    found = column_in(read, column.beside).to_pylist()
    return [path if isinstance(path, str) else None for path in found]


def _struct_paths(file: Any, column: ImageColumn, group: int) -> list[str | None]:  # noqa: ANN401
    read = file.read_row_group(group, columns=[f"{column.name}.path"])
    paths: list[str | None] = column_in(read, column.name).combine_chunks().field("path").to_pylist()
    return paths


def _inside(text: str | None) -> str:
    """Return a struct's path as one that stays below its root, whatever it says; empty if there is none."""
    return posixpath.normpath(f"/{text}").lstrip("/").replace("\0", "") if text else ""


def _values(file: Any, column: ImageColumn, group: int) -> Iterator[Any]:  # noqa: ANN401
    """The bytes of each row of a row group, as pyarrow's scalars."""
    name = f"{column.name}.bytes" if column.is_struct else column.name
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[name]):
        values = column_in(batch, column.name)
        yield from values.flatten()[0] if column.is_struct else values


def _lists(file: Any, column: ImageColumn, group: int) -> Iterator[list[tuple[Any, str | None]]]:  # noqa: ANN401
    """The bytes, as pyarrow's scalars, and the paths of the images in each row of a row group."""
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column.name]):
        for row in column_in(batch, column.name):
            values = (row.values or []) if row.is_valid else []
            if not column.is_struct:
                yield [(value, None) for value in values]
            else:
                yield [
                    (value["bytes"], value["path"].as_py() if column.has_path else None)
                    if value.is_valid
                    else (None, None)
                    for value in values
                ]


def _image_bytes(buffer: Any, max_bytes: int) -> bytes:  # noqa: ANN401  # pyarrow's
    if buffer.size > max_bytes:
        raise InputError(f"has {buffer.size:,} bytes, more than {max_bytes:,}")
    return bytes(buffer)


def _place(path: str, root: str) -> Key:
    """Where the image of a row without bytes lies: a relative path is below the file's folder or the current one.

    Raises:
        InputError: it lies nowhere.
    """
    beside = split(root)[0] if is_remote(root) else os.path.dirname(root)  # noqa: PTH120  # may be no UTF-8
    try:
        place = key_of(path, beside)
        if is_remote(place[0]) or Path(*place).exists():
            return place
        if not path.startswith("/") and Path(*(place := key_of(path, resolved(".")))).exists():
            return place
    except (InputError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"holds no bytes (null), and its path leads nowhere ({printable(one_line(error))})") from error
    raise InputError(f"holds no bytes (null), and there is no file {printable(path)[:200]}")
