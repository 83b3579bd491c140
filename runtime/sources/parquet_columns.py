"""A parquet file: opened so that columns are read piece by piece, and which of them hold images or paths."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from runtime.contract.errors import InputError
from runtime.images.formats import HEAD, format_of
from runtime.sources.names import printable
from runtime.sources.picture_text import looks_like_picture
from runtime.sources.remote import open_binary

IMAGE_COLUMNS = (
    "image",
    "img",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "img_bytes",
    "image_data",
    "images",
)
"""Columns of bytes that are taken for images, the first of these first; a struct of bytes may have any name.

Here and in `PATH_COLUMNS` capitals, underscores, dots and spaces in the names of a file do not count: `ImageBytes` is
`image_bytes`.
"""
PATH_COLUMNS: tuple[str, ...] = ("path", "image_path", "file_path", "file", "filename", "file_name", "url", "image")
PATH_COLUMNS += ("image_url", "img_path", "uri", "images", "paths", "image_paths", "urls")
"""Columns of strings that are taken for paths, the first of these first."""
_SPARK = ("content", "path")
"""Columns of Spark's data source `binaryFile`: the content of a file, and its path."""
_ASIDE = re.compile(r"thumb|preview|icon|mask|depth|segment|annotation|label")
"""Names of columns that hold pictures, but not those that paths beside them lead to."""
_BUFFER = 1 << 20
"""Bytes of a column read at a time: without it pyarrow takes a whole row group's column into memory."""
_LOOKED_AT = 64
"""Rows whose content is looked at to find out whether a column of another name holds images."""
_SHOWN = 40
"""Columns that a message lists."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """Columns that the user names; None leaves the choice to us."""

    image: str | None = None
    """The column of images, or of paths of images."""
    key: str | None = None
    """The column whose values become names in the keys of images."""


NO_COLUMNS = Columns()


@dataclass(frozen=True)
class ImageColumn:
    """A column of images: a struct of `bytes`, perhaps with `path`, as Hugging Face writes it, or plain bytes."""

    name: str
    is_struct: bool
    has_path: bool
    """Whether the struct has a path: a name for the key, and where the image lies if there are no bytes."""
    is_list: bool = False
    """Whether each row holds a list of images."""
    beside: str | None = None
    """The column of paths of images that have no bytes; None: the struct's, or there is none."""
    key: str | None = None
    """The column whose values become names in the keys; None: the struct's path, or there is none."""
    is_text: bool = False
    """Whether images are written as text: data URIs or base64."""
    mark: str = ""
    """The mark after the number of the row in a key if the column is not the one taken by default."""


@contextlib.contextmanager
def open_columns(root: str) -> Iterator[Any]:
    """Open a parquet file, whose columns are read piece by piece; raises whatever pyarrow raises."""
    from pyarrow import parquet

    with open_binary(root) as source:  # not the path: it may be no UTF-8, or a URL
        options = {"buffer_size": _BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with parquet.ParquetFile(source, **options) as file:
            yield file


def column_in(table: Any, name: str) -> Any:  # noqa: ANN401
    """The first column of a name; pyarrow reads `a.b` too if asked for `a`, and finds no name that comes twice."""
    return table.column(table.schema.names.index(name))


def find_images(file: Any, root: str, columns: Columns = NO_COLUMNS) -> ImageColumn | None:  # noqa: ANN401
    """The column that holds images; None if there is none. Of several it takes one, and the log says which.

    Args:
        file: from `open_columns`.
        root: its name.
        columns: a column that the user names is taken whatever it is called.

    Raises:
        InputError: a column that the user names is not there, or can't hold what it should.
        Exception: the file is damaged: any error of pyarrow.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    found = _candidates(file)
    column = found[0] if found else None
    if columns.image is not None:
        field = _field(schema, columns.image, root, "--image-column")
        named = _as_images(field) or _as_picture_text(file, field)
        if named is None and not is_text(schema.field(columns.image).type):
            kind = f"holds {_short(schema.field(columns.image).type)}"
            raise InputError(f"{printable(root)}: column `{columns.image}` {kind}: {WHAT}; {list_columns(schema)}")
        is_default = named is not None and column is not None and named.name == column.name
        column = column if is_default else _marked(named, schema)
    elif len(found) > 1:
        _warn(root, "images", [one.name for one in found])
    elif found and _plain(found[0].name) not in map(_plain, IMAGE_COLUMNS) and found[0].beside is not None:
        _LOG.warning(
            "%s: images are taken from column `%s`, not by paths in `%s`",
            printable(root),
            found[0].name,
            found[0].beside,
        )
    if column is not None and columns.key is not None:
        kind = _field(schema, columns.key, root, "--key-column").type
        if pa.types.is_nested(kind) or is_bytes(kind):
            what = f"holds {_short(kind)}, expected text or numbers"
            raise InputError(f"{printable(root)}: column `{columns.key}` (--key-column) {what}")
        return replace(column, key=columns.key)
    return column


WHAT = "expected images (bytes, a struct with bytes, or lists of these) or paths (text)"


def column_of(file: Any, mark: str) -> ImageColumn | None:  # noqa: ANN401
    """The column that the mark in a key stands for; None if there is no such column of images."""
    if not mark:
        return next(iter(_candidates(file)), None)
    name = unquote(mark.removeprefix(":"))
    schema = file.schema_arrow
    if name not in schema.names:
        return None
    field = schema.field(name)
    text = ImageColumn(name, is_struct=False, has_path=False, is_text=True) if _is_string(field.type) else None
    return _marked(_as_images(field) or text, schema)


def path_column(schema: Any, root: str, name: str | None = None) -> str | None:  # noqa: ANN401
    """The column that holds paths of images; None if there is none. Of several it takes one, and the log says which.

    Args:
        schema: of the file.
        root: its name.
        name: a column that the user names.
    """
    if name is not None:
        return name if name in schema.names and is_text(schema.field(name).type) else None
    names = _path_columns(schema)
    if len(names) > 1:
        _warn(root, "paths", names)
    return names[0] if names else None


def key_columns(schema: Any) -> list[str]:  # noqa: ANN401
    """The columns that may have been named as --key-column."""
    import pyarrow as pa

    return [field.name for field in schema if not (pa.types.is_nested(field.type) or is_bytes(field.type))]


def holds_embeddings(schema: Any) -> bool:  # noqa: ANN401
    """Whether the file is a part of a store."""
    keys = [name for name in ("root", "path") if name in schema.names and _is_string(schema.field(name).type)]
    return len(keys) == 2 and "embedding" in schema.names


def list_columns(schema: Any) -> str:  # noqa: ANN401
    """The columns of a file with their types, for a message."""
    shown = ", ".join(f"{field.name} ({_short(field.type)})" for field in list(schema)[:_SHOWN])
    more = f" and {len(schema.names) - _SHOWN} more" if len(schema.names) > _SHOWN else ""
    return printable(f"its {len(schema.names)} column{'s' if len(schema.names) != 1 else ''}: {shown}{more}")


def _candidates(file: Any) -> list[ImageColumn]:  # noqa: ANN401
    """The columns that hold images, the one to take first.

    A struct of bytes counts whatever it is called, plain bytes by their name, then by their content, unless they are
    called as what lies beside an image and there are paths.
    """
    schema = file.schema_arrow
    columns = [one for field in schema if (one := _as_images(field)) is not None]
    rank = {_plain(name): number for number, name in reversed(list(enumerate(IMAGE_COLUMNS)))}
    found = [one for one in columns if one.is_struct or _plain(one.name) in rank]
    found.sort(key=lambda one: (one.is_list, not one.is_struct, rank.get(_plain(one.name), len(rank))))
    paths = _path_columns(schema)
    if not found:
        content, path = _SPARK
        spark = [one for one in columns if one.name == content and not one.is_list and path in paths]
        if spark and ({"length", "modificationTime"} & {*schema.names} or _looks_like_images(file, spark[0])):
            return [ImageColumn(content, is_struct=False, has_path=False, key=path)]
        if not holds_embeddings(schema):
            meant = [one for one in columns if not (paths and _ASIDE.search(one.name.lower()))]
            found = [one for one in meant if _looks_like_images(file, one)]
            if not found:
                texts = sorted(schema, key=lambda field: field.name not in paths)
                found = [one for field in texts if (one := _as_picture_text(file, field)) is not None]
    return [_with_paths(one, paths) for one in found]


def _with_paths(column: ImageColumn, paths: list[str]) -> ImageColumn:
    """A column with the column of paths for its images without bytes."""
    others = [name for name in paths if name != column.name]
    return replace(column, beside=others[0]) if others and not column.has_path else column


def _as_images(field: Any) -> ImageColumn | None:  # noqa: ANN401
    """How a column holds images, by its type; None if it can't."""
    import pyarrow as pa

    in_lists = is_list(field.type) and not is_bytes(field.type)
    kind = field.type.value_type if in_lists else field.type
    if is_bytes(kind):
        return ImageColumn(field.name, is_struct=False, has_path=False, is_list=in_lists)
    if not pa.types.is_struct(kind):
        return None
    parts = {part.name: part.type for part in kind}
    has_path = "path" in parts and _is_string(parts["path"])
    # A writer that saw no bytes at all gave them the type null.
    if "bytes" not in parts or not (is_bytes(parts["bytes"]) or (has_path and pa.types.is_null(parts["bytes"]))):
        return None
    return ImageColumn(field.name, is_struct=True, has_path=has_path, is_list=in_lists)


def _marked(column: ImageColumn | None, schema: Any) -> ImageColumn | None:  # noqa: ANN401
    """A column that is not the one taken by default: its keys say so, since two may lie in one store."""
    if column is None:
        return None
    return replace(_with_paths(column, _path_columns(schema)), mark=f":{quote(column.name, safe='')}")


def _as_picture_text(file: Any, field: Any) -> ImageColumn | None:  # noqa: ANN401
    """A column of text whose first rows hold a picture, as a data URI or as base64; None if it is another."""
    column = ImageColumn(field.name, is_struct=False, has_path=False, is_text=True)
    return column if _is_string(field.type) and _looks_like_images(file, column) else None


def _looks_like_images(file: Any, column: ImageColumn) -> bool:  # noqa: ANN401
    """Whether a column of bytes or text holds an image in its first rows."""
    looked = 0
    for batch in file.iter_batches(batch_size=16, columns=[column.name]):
        values = column_in(batch, column.name)
        for value in values.flatten() if column.is_list else values:
            if column.is_text and isinstance(text := value.as_py(), str) and looks_like_picture(text):
                return True
            if not column.is_text and value.is_valid and format_of(_start(value)) is not None:
                return True
        looked += len(values)
        if looked >= _LOOKED_AT:
            break
    return False


def _start(value: Any) -> bytes:  # noqa: ANN401
    buffer = buffer_of(value)
    return b"" if buffer is None else bytes(buffer[:HEAD])


def buffer_of(value: Any) -> Any:  # noqa: ANN401
    """The bytes of a pyarrow scalar of a type that `is_bytes` or a string, as its buffer; None for a null."""
    import pyarrow as pa

    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if value is None or not value.is_valid:
        return None
    if isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        numbers = value.values
        if numbers.null_count:
            raise InputError("is a list of numbers of which some are null")
        return pa.py_buffer(numbers.to_numpy(zero_copy_only=False).tobytes())
    return value.as_buffer()


def _path_columns(schema: Any) -> list[str]:  # noqa: ANN401
    """The columns that may hold paths, the one to take first: those spelled as ours before others."""
    texts = [field.name for field in schema if is_text(field.type)]
    exact = [known for known in PATH_COLUMNS if known in texts]
    alike = [name for known in PATH_COLUMNS for name in texts if _plain(name) == _plain(known)]
    return list(dict.fromkeys(exact + alike))


def _field(schema: Any, name: str, root: str, option: str) -> Any:  # noqa: ANN401
    """The column that an option names; raises InputError if there are none or several."""
    count = schema.names.count(name)
    if count != 1:
        what = "no column" if count == 0 else f"{count} columns"
        raise InputError(f"{printable(root)}: {what} `{printable(name)}` ({option}) among {list_columns(schema)}")
    return schema.field(name)


def _warn(root: str, what: str, names: Sequence[str]) -> None:
    _LOG.warning("%s: %s are taken from column `%s`, not from %s", printable(root), what, names[0], names[1:])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _short(kind: Any) -> str:  # noqa: ANN401
    text = str(kind)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_list(kind: Any) -> bool:  # noqa: ANN401
    """Whether a type is of lists."""
    import pyarrow as pa

    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_bytes(kind: Any) -> bool:  # noqa: ANN401
    """Whether a type is of bytes: of any length, of one length, a list of numbers of 8 bits, or numbers for these."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    if is_list(kind):
        return bool(types.is_uint8(kind.value_type) or types.is_int8(kind.value_type))
    fixed = types.is_fixed_size_binary(kind) and not types.is_decimal(kind)
    return bool(fixed or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def is_text(kind: Any) -> bool:  # noqa: ANN401
    """Whether a type is of strings, or of lists of them."""
    return _is_string(kind.value_type if is_list(kind) else kind)


def _is_string(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
