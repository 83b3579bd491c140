"""A parquet file as a source: images in a column, paths of images, or a part of a store, whose images are meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.contract.errors import InputError
from runtime.sources.files import Unusable
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted, Item, Source, Unreadable, reason
from runtime.sources.lists import PathList
from runtime.sources.names import printable
from runtime.sources.parquet_columns import (
    Columns,
    column_in,
    find_images,
    holds_embeddings,
    is_list,
    list_columns,
    open_columns,
    path_column,
)
from runtime.sources.parquet_images import ParquetImages


def open_parquet(root: str, base: str, max_bytes: int, columns: Columns) -> Source:
    """Open a parquet file as a source; a column of images is preferred to one of paths.

    Args:
        root: a local path or a URL.
        base: the folder that relative paths in it are below.
        max_bytes: larger images are refused.
        columns: columns that the user names.

    Raises:
        InputError: it has no column of images or paths, or not those that the user names.
    """
    try:
        with open_columns(root) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            images = find_images(file, root, columns)
    except InputError:
        raise
    except Exception as error:
        return Unusable(root, reason(error))
    if images is not None:
        return ParquetImages(root, images, rows, max_bytes)
    if columns.key is not None:
        raise InputError(
            f"{printable(root)}: --key-column names the images in a column, and this file has none: paths are keys "
            f"themselves; {list_columns(schema)}"
        )
    if columns.image is None and holds_embeddings(schema):
        return StoredKeys(root, rows)
    column = path_column(schema, root, columns.image)
    if column is None:
        raise InputError(
            f"{printable(root)}: no column of images (bytes, a struct with bytes, or lists of these) or of paths is "
            f"known by its type and name among {list_columns(schema)}; name one by --image-column"
        )
    return PathList(lambda: _paths(root, column), None if is_list(schema.field(column).type) else rows, base)


class StoredKeys:
    """A part of a store: its images, under the keys that they have there."""

    may_repeat = True
    skipped = NONE_SKIPPED
    roots: tuple[str, ...] = ()

    def __init__(self, file: str, rows: int) -> None:
        self._file = file
        self._rows = rows

    def count(self) -> int:
        """Number of rows."""
        return self._rows

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images."""
        for row in _strings(self._file, ["root", "path"]):
            if isinstance(row, Unreadable):
                yield row
            elif is_wanted(row[0], row[1]):
                yield Item(row[0], row[1])


def _paths(root: str, column: str) -> Iterator[str | Unreadable]:
    for row in _strings(root, [column]):
        if isinstance(row, Unreadable) or isinstance(row[0], str):
            yield row if isinstance(row, Unreadable) else row[0]
        else:
            yield from (
                Unreadable(root, "", "holds no path (null) in a list") if one is None else one for one in row[0]
            )


def _strings(root: str, columns: list[str]) -> Iterator[tuple[Any, ...] | Unreadable]:
    """The rows of some columns of strings, or of lists of them; `Unreadable` for a null or damage."""
    number = 0
    try:
        with open_columns(root) as file:
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for row in zip(*(column_in(batch, name).to_pylist() for name in columns), strict=True):
                    yield Unreadable(root, str(number), "holds no path (null)") if None in row else row
                    number += 1
    except Exception as error:
        yield Unreadable(root, "", f"from row {number} on: {reason(error)}")
