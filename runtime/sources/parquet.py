"""What a parquet file holds for us: images in a column, paths, or embeddings whose images are embedded again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.contract.errors import InputError
from runtime.sources.files import Unusable
from runtime.sources.item import Entry, IsWanted, Item, Source, Unreadable
from runtime.sources.lists import PathList
from runtime.sources.names import printable
from runtime.sources.parquet_images import ImageColumn, ParquetImages, opened, reason

IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "jpeg", "png", "webp")
"""Columns of plain bytes that are taken for images, the first of these first; a struct of bytes may have any name."""
PATH_COLUMNS = ("path", "image_path", "file_path", "file", "filename", "file_name", "url", "image")
"""Columns of strings that are taken for paths, the first of these first."""
_LOG = logging.getLogger(__name__)


def open_parquet(root: str, base: str, max_bytes: int) -> Source:
    """The source that a parquet file is; images in it go before paths.

    Args:
        root: a local path or a URL.
        base: what relative paths in it are below.
        max_bytes: larger images are refused.

    Raises:
        InputError: it has no column of images or paths.
    """
    try:
        with opened(root) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except Exception as error:
        return Unusable(root, reason(error))
    if (images := image_column(schema, root)) is not None:
        return ParquetImages(root, images, rows, max_bytes)
    strings = [field.name for field in schema if _is_string(field.type)]
    if {"root", "path"} <= set(strings) and "embedding" in schema.names:
        return StoredKeys(root, rows)
    column = _choose([name for name in PATH_COLUMNS if name in strings], root, "paths")
    if column is None:
        names = ", ".join(schema.names)
        raise InputError(
            f"{printable(root)}: no column of images (bytes, or a struct with bytes) or of paths "
            f"({', '.join(PATH_COLUMNS)}) among its {len(schema.names)} columns: {printable(names)[:200]}"
        )
    return PathList(lambda: _paths(root, column), rows, base)


def image_column(schema: Any, root: str) -> ImageColumn | None:  # noqa: ANN401  # pyarrow ships no types
    """The column that holds images, if one does."""
    import pyarrow as pa

    structs = {
        field.name: {part.name: part.type for part in field.type} for field in schema if pa.types.is_struct(field.type)
    }
    found = [name for name, parts in structs.items() if "bytes" in parts and _is_binary(parts["bytes"])]
    found.sort(key=lambda name: name not in IMAGE_COLUMNS)
    found += [name for name in IMAGE_COLUMNS if name in schema.names and _is_binary(schema.field(name).type)]
    name = _choose(found, root, "images")
    if name is None:
        return None
    parts = structs.get(name, {})
    return ImageColumn(name, name in structs, "path" in parts and _is_string(parts["path"]))


class StoredKeys:
    """A part of a folder of embeddings: its images under the keys that they have there."""

    may_repeat = True
    roots: tuple[str, ...] = ()

    def __init__(self, file: str, rows: int) -> None:
        self._file = file
        self._rows = rows

    def count(self) -> int:
        """Its rows."""
        return self._rows

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """Its images."""
        for row in _strings(self._file, ["root", "path"]):
            if isinstance(row, Unreadable):
                yield row
            elif is_wanted(row[0], row[1]):
                yield Item(row[0], row[1])


def _choose(names: Sequence[str], root: str, what: str) -> str | None:
    """The first of the columns that would do; says so where there are several."""
    if len(names) > 1:
        _LOG.warning("%s: %s are taken from column `%s`, not from %s", printable(root), what, names[0], names[1:])
    return names[0] if names else None


def _paths(root: str, column: str) -> Iterator[str | Unreadable]:
    for row in _strings(root, [column]):
        yield row if isinstance(row, Unreadable) else row[0]


def _strings(root: str, columns: list[str]) -> Iterator[tuple[str, ...] | Unreadable]:
    """The rows of columns of strings; a null, and what is damaged, as unreadable."""
    number = 0
    try:
        with opened(root) as file:
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    yield Unreadable(root, str(number), "holds no path (null)") if None in row else row
                    number += 1
    except Exception as error:
        yield Unreadable(root, "", f"from row {number} on: {reason(error)}")


def _is_binary(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_string(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
