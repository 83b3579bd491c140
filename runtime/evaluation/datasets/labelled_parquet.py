"""Parquet with a column of images and one of labels, as the Hugging Face hub has it.

Source: the hub's parquet of uoft-cs/cifar10: `img` or `image`, a struct of bytes and path; `label`, int64, whose names
lie in the schema's metadata under `huggingface`: info.features.label.names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.errors import InputError
from runtime.contract.keys import Key, location
from runtime.evaluation.datasets.dataset import (
    Dataset,
    check_labels,
    identity_of_content,
    identity_of_file,
    identity_of_files,
)
from runtime.images.decode import MAX_PIXELS, max_bytes
from runtime.sources.item import Entry, IsWanted, Unreadable, reason
from runtime.sources.names import printable
from runtime.sources.parquet_columns import ImageColumn, find_images, list_columns, open_columns
from runtime.sources.parquet_images import ParquetImages

MAX_ROWS = 10_000_000
"""A file of kilobytes can claim billions of equal labels."""
_MAX_METADATA = 1 << 22


@dataclass(frozen=True)
class Expected:
    """The required content of a parquet file; a field that is None allows anything."""

    kind: str
    column: str | None
    classes: int | None
    images: int | None
    split: str
    """Files of a folder that begin so are taken."""


def is_parquet(path: Path) -> bool:
    """Whether a path is a parquet file, or a folder of such."""
    if path.is_dir():
        return any(path.glob("[!.]*.parquet"))
    return path.name.lower().endswith(".parquet")


def load(path: Path) -> Dataset:
    """Load any labelled parquet file; raises as `load_parquet`."""
    return load_parquet(path, Expected("parquet", None, None, None, "test"))


def load_parquet(path: Path, expected: Expected) -> Dataset:
    """Load a parquet file, or the files of a split in a folder (`test-00000-of-00001.parquet`).

    Raises:
        InputError: there is none, a column is missing, labels are out of range, or there are more or fewer rows.
    """
    shards = [_Shard(file, expected) for file in _files(path, expected.split)]
    where = printable(str(path))
    rows = sum(len(shard.labels) for shard in shards)
    if expected.images is not None and rows != expected.images:
        raise InputError(
            f"{where}: has {rows:,} rows, the {expected.split} split has {expected.images:,}: is it another?"
        )
    column, names = shards[0].column, shards[0].names
    if any((one.column, one.names, one.has_words) != (column, names, shards[0].has_words) for one in shards):
        raise InputError(f"{where}: its files have different labels: name the ones of a split")
    values: list[Any] = [value for shard in shards for value in shard.labels]
    where_column = f"{where}, column `{column}`"
    names, numbers = _numbered(values, names, expected.classes, where_column)
    if expected.classes is not None and len(names) != expected.classes:
        raise InputError(f"{where}: column `{column}` has {len(names)} classes, expected {expected.classes}")
    labels = check_labels(np.array(numbers, object), len(names), where_column)
    if not np.any(labels != labels[0]):
        raise InputError(f"{where_column}: all images are of the class {names[labels[0]]!r}, expected two at least")
    keys = _keys(shards)
    return Dataset(
        kind=expected.kind,
        name=expected.kind if expected.kind != "parquet" else printable(path.stem),
        path=path,
        classes=names,
        labels=labels,
        keys=keys,
        images=_Shards(shards),
        identity=_identity(shards),
    )


def _identity(shards: Sequence[_Shard]) -> str:
    """The identity of the files, and of the images that lie beside them since they have no bytes."""
    contents = [identity_of_file(shard.file).encode() for shard in shards]
    places = [location(*place) for shard in shards for place in shard.images.places()]
    return identity_of_content(*contents, *([identity_of_files("", places).encode()] if places else []))


class _Shard:
    """A file: its images, its labels, the names of its classes."""

    def __init__(self, file: Path, expected: Expected) -> None:
        self.file = file
        where = printable(str(file))
        try:
            with open_columns(str(file)) as parquet:
                rows = _checked_rows(parquet.metadata.num_rows, expected, where)
                images = _images(parquet, where)
                self.column = _label_column(parquet.schema_arrow, expected.column, where)
                self.labels = _labels(parquet, self.column, where)
                metadata = parquet.schema_arrow.metadata
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{where}: {reason(error)}") from error
        self.has_words = isinstance(self.labels[0], str)
        self.names = _class_names(metadata, self.column, where)
        self.images = ParquetImages(str(file), images, rows, max_bytes(MAX_PIXELS))


class _Shards:
    """The images of all files."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = shards

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images."""
        for shard in self._shards:
            yield from shard.images.items(is_wanted)


def _files(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob(f"{split}*.parquet"))
    if not files:
        raise InputError(f"{printable(str(path))}: no parquet file there begins with {split}: name the file itself")
    return files


def _checked_rows(rows: int, expected: Expected, where: str) -> int:
    """The number of rows that a file claims, before anything is read by it."""
    most = MAX_ROWS if expected.images is None else expected.images
    if not 0 < rows <= most:
        raise InputError(f"{where}: has {rows:,} rows, expected 1 to {most:,}: is it another split?")
    return rows


def _images(parquet: Any, where: str) -> ImageColumn:  # noqa: ANN401  # pyarrow ships no types
    column = find_images(parquet, where)
    if column is None or column.is_list:
        what = "no column of images" if column is None else f"column `{column.name}` holds lists of images, not images"
        found = list_columns(parquet.schema_arrow)
        raise InputError(f"{where}: {what} (bytes, or a struct with bytes), as img or image; {found}")
    return column


def _label_column(schema: Any, wanted: str | None, where: str) -> str:  # noqa: ANN401  # pyarrow ships no types
    import pyarrow as pa

    names = [wanted] if wanted else ["label", "labels", "fine_label", "class"]
    for name in names:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_dictionary(kind):  # as pandas writes its categories
                kind = kind.value_type
            if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
                return str(name)
            raise InputError(f"{where}: column `{name}` holds {kind}, expected whole numbers or names of classes")
    found = printable(", ".join(schema.names))[:200]
    raise InputError(f"{where}: no column {' or '.join(names)}, only {found}")


def _labels(parquet: Any, column: str, where: str) -> list[int] | list[str]:  # noqa: ANN401
    found: list[Any] = []
    for batch in parquet.iter_batches(batch_size=4096, columns=[column]):
        values = batch.column(0).to_pylist()
        if None in values:
            raise InputError(f"{where}: row {len(found) + values.index(None)} has no `{column}` (null)")
        found += values
    return found


def _class_names(metadata: dict[bytes, bytes] | None, column: str, where: str) -> tuple[str, ...] | None:
    """The names that the Hugging Face hub's metadata give the numbers of a column; None if there are none."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    if len(text) > _MAX_METADATA:
        raise InputError(f"{where}: its metadata `huggingface` have {len(text):,} bytes: not those of the hub")
    try:
        names = json.loads(text)["info"]["features"][column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: its metadata `huggingface` say nothing of `{column}` ({error!r:.80})") from error
    if names is None:
        return None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len({*names}) == len(names)):
        raise InputError(f"{where}: its metadata `huggingface` give no names for `{column}`, each once")
    return tuple(names)


def _numbered(
    values: Sequence[Any], names: tuple[str, ...] | None, classes: int | None, where: str
) -> tuple[tuple[str, ...], Sequence[int]]:
    """Names of the classes, and the number of each image's among them.

    Args:
        values: numbers, or names.
        names: the names that the file gives the numbers, if it does.
        classes: the required number of classes; None takes those that occur, whose numbers may have gaps.
        where: the name of the column in an error.
    """
    if isinstance(values[0], int) and (names or classes):
        return names or tuple(map(str, range(classes or 0))), values
    known = names or sorted(set(values))
    number = {name: label for label, name in enumerate(known)}
    if (odd := next((row for row, value in enumerate(values) if value not in number), None)) is not None:
        raise InputError(f"{where}: image {odd} is of {printable(values[odd])[:80]!r}, which its metadata don't name")
    if isinstance(known[0], int) and known[0] < 0:
        raise InputError(f"{where}: image {values.index(known[0])} has the label {known[0]}: a split without labels?")
    return tuple(map(str, known)), [number[value] for value in values]


def _keys(shards: Sequence[_Shard]) -> tuple[Key, ...]:
    """Keys of all images, in the order of the labels; raises InputError where a file is damaged."""
    keys: list[Key] = []

    def take_name(root: str, path: str) -> bool:
        keys.append((root, path))
        return False

    for shard in shards:
        for one in shard.images.items(take_name):
            if isinstance(one, Unreadable):
                raise InputError(f"{printable(str(shard.file))}: {one.error}")
    return tuple(keys)
