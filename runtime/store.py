"""Embeddings on disk: `DIR/part-00000.parquet` and so on, with columns `root`, `path` and `embedding`.

A part's file metadata holds, under `itae`, what the embeddings were made with, and a chain: the digest of the
part before it, and whether it is the last. So parts of two runs are never taken for one set, even after a
crash between two renames.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, one_line

Float32 = npt.NDArray[np.float32]

FORMAT = 1
METADATA_KEY = b"itae"
PART = re.compile(r"part-(\d{5,})\.parquet")
_AGAIN = "make them again with `python -m runtime embed`"


@dataclass(frozen=True)
class Embeddings:
    """n embeddings and where their images lie; C is the model's width."""

    roots: list[str]
    """n folders, as `embed` was given them, resolved."""
    paths: list[str]
    """n paths, each relative to its root, with slashes."""
    vectors: Float32
    """(n, C) float32, every number finite."""


def read_embeddings(folder: Path) -> Embeddings:
    """Read every part in `folder`, in order.

    Raises:
        InputError: there are none, they can't be read, or they are not one whole set.
    """
    parts = part_files(folder)
    if not parts:
        raise InputError(f"{folder} holds no part-00000.parquet: {_AGAIN}")
    read = [_read_part(path) for path in parts]
    _check_chain(parts, read)
    widths = {part.embeddings.vectors.shape[1] for part in read}
    if len(widths) > 1:
        raise InputError(f"{folder}: parts with embeddings of widths {sorted(widths)}: {_AGAIN}")
    return Embeddings(
        [root for part in read for root in part.embeddings.roots],
        [path for part in read for path in part.embeddings.paths],
        np.concatenate([part.embeddings.vectors for part in read]),
    )


def part_files(folder: Path) -> list[Path]:
    """The parts in `folder`, by number.

    Raises:
        InputError: there is no such folder, a number is left out, or another file there ends in `.parquet`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of embeddings")
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = PART.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path} is not a part of embeddings (part-00000.parquet ...): move it elsewhere")
        found[int(match[1])] = path
    if sorted(found) != list(range(len(found))):
        raise InputError(f"{folder}: parts {sorted(found)} are not numbered from 0 on: {_AGAIN}")
    return [found[number] for number in sorted(found)]


@dataclass(frozen=True)
class _Part:
    embeddings: Embeddings
    metadata: dict[str, Any] | None
    """What `itae` in the file's metadata holds; none where another program wrote the file."""


def _read_part(path: Path) -> _Part:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Not read_table: that takes names like `k=v` on the way for columns. Not the path: it may be no UTF-8.
        with path.open("rb") as source, parquet.ParquetFile(source, page_checksum_verification=True) as file:
            metadata = _parse_metadata(file.schema_arrow.metadata)
            _check_schema(file.schema_arrow, path)
            table = file.read(columns=["root", "path", "embedding"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read ({one_line(error)}): {_AGAIN}") from error
    column = table.column("embedding").combine_chunks()
    if any(table.column(name).null_count for name in table.column_names) or column.flatten().null_count:
        raise InputError(f"{path} holds nulls: {_AGAIN}")
    vectors = column.flatten().to_numpy().reshape(len(table), table.schema.field("embedding").type.list_size)
    if not np.isfinite(vectors).all():
        raise InputError(f"{path} holds NaN or infinity: {_AGAIN}")
    return _Part(Embeddings(table.column("root").to_pylist(), table.column("path").to_pylist(), vectors), metadata)


def _parse_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """The `itae` entry of a file's metadata; raises ValueError where it is not one."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    fields = json.loads(text)
    if not isinstance(fields, dict) or not {"format", "part", "previous", "last"} <= fields.keys():
        raise ValueError("its metadata is damaged")
    if fields["format"] != FORMAT:
        raise ValueError(f"it has format {fields['format']}, this version reads {FORMAT}")
    return fields


def _check_schema(schema: Any, path: Path) -> None:  # noqa: ANN401  # pyarrow ships no types
    import pyarrow as pa

    for name in ("root", "path", "embedding"):
        if name not in schema.names:
            raise InputError(f"{path} has no column `{name}`: not embeddings")
        kind = schema.field(name).type
        if name != "embedding" and kind not in (pa.string(), pa.large_string()):
            raise InputError(f"{path}: column `{name}` is {kind}, expected string")
        if name == "embedding" and not (
            pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32() and kind.list_size > 0
        ):
            raise InputError(f"{path}: column `embedding` is {kind}, expected a fixed-size list of float32")


def _check_chain(parts: Sequence[Path], read: Sequence[_Part]) -> None:
    """Check that the parts are one run's, all of them. Parts that another program wrote carry no chain."""
    if all(part.metadata is None for part in read):
        return
    previous = ""
    for number, (path, part) in enumerate(zip(parts, read, strict=True)):
        metadata = part.metadata or {}
        if metadata.get("part") != number or metadata.get("previous") != previous:
            raise InputError(f"{path} is not of the same run as the parts before it: {_AGAIN}")
        if metadata["last"] != (number == len(parts) - 1):
            what = "is not the last part, but no more are there" if not metadata["last"] else "ends the set early"
            raise InputError(f"{path} {what}: {_AGAIN}")
        previous = digest(previous, part.embeddings)


def digest(previous: str, part: Embeddings) -> str:
    """SHA-256 of a part's rows and of the parts before it."""
    names = json.dumps([previous, part.roots, part.paths], ensure_ascii=True)
    return hashlib.sha256(names.encode() + np.ascontiguousarray(part.vectors, "<f4").tobytes()).hexdigest()
