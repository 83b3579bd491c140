"""A parquet file: opened so that columns are read piece by piece, and which of them hold images or paths."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.sources.names import printable
from runtime.sources.remote import open_binary

IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "jpeg", "png", "webp")
"""Columns of plain bytes that are taken for images, the first of these first; a struct of bytes may have any name."""
PATH_COLUMNS = ("path", "image_path", "file_path", "file", "filename", "file_name", "url", "image")
"""Columns of strings that are taken for paths, the first of these first."""
_BUFFER = 1 << 20
"""Bytes of a column read at a time: without it pyarrow takes a whole row group's column into memory."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageColumn:
    """A column of images: a struct of `bytes`, perhaps with `path`, as Hugging Face writes it, or plain bytes."""

    name: str
    is_struct: bool
    has_path: bool


@contextlib.contextmanager
def open_columns(root: str) -> Iterator[Any]:
    """Open a parquet file, whose columns are read piece by piece; raises whatever pyarrow raises."""
    from pyarrow import parquet

    with open_binary(root) as source:  # not the path: it may be no UTF-8, or a URL
        options = {"buffer_size": _BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with parquet.ParquetFile(source, **options) as file:
            yield file


def image_column(schema: Any, root: str) -> ImageColumn | None:  # noqa: ANN401  # pyarrow ships no types
    """The column that holds images; None if there is none. Of several it takes one, and the log says which."""
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


def path_column(schema: Any, root: str) -> str | None:  # noqa: ANN401
    """The column that holds paths of images; None if there is none. Of several it takes one, and the log says which."""
    names = [name for name in PATH_COLUMNS if name in schema.names and _is_string(schema.field(name).type)]
    return _choose(names, root, "paths")


def holds_embeddings(schema: Any) -> bool:  # noqa: ANN401
    """Whether the file is a part of a store."""
    keys = [name for name in ("root", "path") if name in schema.names and _is_string(schema.field(name).type)]
    return len(keys) == 2 and "embedding" in schema.names


def _choose(names: Sequence[str], root: str, what: str) -> str | None:
    """The first of the columns that could be meant; None if there is none."""
    if len(names) > 1:
        _LOG.warning("%s: %s are taken from column `%s`, not from %s", printable(root), what, names[0], names[1:])
    return names[0] if names else None


def _is_binary(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_string(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
