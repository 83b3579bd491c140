"""The parts that a store is made of: rows in memory, and `_store.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from runtime.contract.atomic import write_atomically
from runtime.contract.errors import InputError, first_fault, one_line
from runtime.contract.hashed_json import parse_strictly, read_at_most
from runtime.contract.keys import Key

Float32 = npt.NDArray[np.float32]

FORMAT = 2
"""Format of `_store.json` and of the parts' metadata. No release wrote format 1."""
AGAIN = "make them again with `python -m runtime embed`"
_MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class FileNames:
    """Names of the files of a store besides its parts."""

    record: str
    errors: str


FILE_NAMES = FileNames("_store.json", "_errors.jsonl")
"""Names in new stores: pandas, pyarrow and Spark pass over files that begin with `_` where they read a folder."""
FORMER_FILE_NAMES = FileNames("store.json", "errors.jsonl")
"""Names in stores of earlier versions, which keep them."""


@dataclass(frozen=True)
class Embeddings:
    """n embeddings and the keys of their images; C is the width of an embedding."""

    roots: list[str]
    """(n,) folders, tars, parquet files or URLs, as `embed` found them."""
    paths: list[str]
    """(n,) paths, each relative to its root, with slashes."""
    vectors: Float32
    """(n, C) float32, every number finite."""

    def __len__(self) -> int:
        return len(self.paths)

    def images(self) -> Iterator[Key]:
        """Root and path of each row."""
        return zip(self.roots, self.paths, strict=True)

    def __getitem__(self, rows: slice) -> Embeddings:
        """Some of the rows; their vectors are a view."""
        return Embeddings(self.roots[rows], self.paths[rows], self.vectors[rows])


class StoreRecord(pydantic.BaseModel):
    """`_store.json`: what made the rows, and whether the run that wrote them came to its end."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[2] = 2
    kind: Literal["parquet"] = "parquet"
    complete: bool
    """Whether the last run ended: every image that it found is a row or a line of `_errors.jsonl`."""
    rows: Annotated[int, Field(ge=0)]
    """Number of rows, if the run is complete."""
    width: Annotated[int, Field(gt=0)]
    origin: dict[str, Any]
    """The origin of the embeddings: see `runtime.store.origin`."""


def file_names(folder: Path) -> FileNames:
    """Return the names in the store in `folder`: those of earlier versions if only they are there."""
    if os.path.lexists(folder / FILE_NAMES.record):
        return FILE_NAMES
    former = (FORMER_FILE_NAMES.record, FORMER_FILE_NAMES.errors)
    return FORMER_FILE_NAMES if any(os.path.lexists(folder / name) for name in former) else FILE_NAMES


def read_record(folder: Path) -> StoreRecord | None:
    """Read `_store.json` of a folder, or `store.json` of an earlier version; returns None if there is none.

    Raises:
        InputError: it can't be read, is damaged, or is of another version or of the former kind `npy`; both are there.
    """
    path = folder / file_names(folder).record
    if path.name != FORMER_FILE_NAMES.record and os.path.lexists(folder / FORMER_FILE_NAMES.record):
        raise InputError(
            f"{folder} holds {path.name} and {FORMER_FILE_NAMES.record}, which versions before wrote: remove the one "
            "that does not belong to its parts"
        )
    try:
        text = read_at_most(path, _MAX_RECORD_BYTES)
        fields = parse_strictly(text)
        found = fields["format"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}): {AGAIN}") from error
    if type(found) is not int or found != FORMAT:
        raise InputError(f"{path} has format {found}, this version reads {FORMAT}: {AGAIN}")
    if fields.get("kind") == "npy":
        raise InputError(
            f"{folder} is a store of --format npy, which this version does not read: embed the images again into a "
            "new folder, and `python -m runtime export` makes an array of it"
        )
    try:
        return StoreRecord.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}: {AGAIN}") from error


def write_record(folder: Path, record: StoreRecord) -> None:
    """Write `_store.json`, whole or not at all; raises OutputFileError."""
    text = json.dumps(record.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    write_atomically(folder / file_names(folder).record, text.encode())
