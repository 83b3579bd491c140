"""Embeddings on disk: `DIR/part-00000.parquet` and so on, with columns `root`, `path` and `embedding`.

A part's file metadata holds, under `itae`, what the embeddings were made with, and a chain: the digest of the
part before it, and whether it is the last. So parts of two runs are never taken for one set, even after a
crash between two renames.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.atomic import cannot_write, publish, work_folder
from runtime.errors import InputError, OutputFileError, one_line

Float32 = npt.NDArray[np.float32]

FORMAT = 1
PART_ROWS = 16_384
"""Rows of a part: 50 MB of ViT-B's embeddings, which is what a writer holds in memory."""
ERRORS = "errors.jsonl"
_METADATA_KEY = b"itae"
_PART = re.compile(r"part-(\d{5,})\.parquet")
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
        match = _PART.fullmatch(path.name)
        if match is None:
            raise InputError(
                f"{path} is not a part of embeddings (part-00000.parquet ...): move it elsewhere"
            )
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
        # Not read_table: that takes names like `k=v` on the way for columns.
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
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
    return _Part(
        Embeddings(table.column("root").to_pylist(), table.column("path").to_pylist(), vectors), metadata
    )


def _parse_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """The `itae` entry of a file's metadata; raises ValueError where it is not one."""
    text = (metadata or {}).get(_METADATA_KEY)
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
            what = (
                "is not the last part, but no more are there"
                if not metadata["last"]
                else "ends the set early"
            )
            raise InputError(f"{path} {what}: {_AGAIN}")
        previous = _digest(previous, part.embeddings)


def _digest(previous: str, part: Embeddings) -> str:
    """SHA-256 of a part's rows and of the parts before it."""
    names = json.dumps([previous, part.roots, part.paths], ensure_ascii=True)
    return hashlib.sha256(names.encode() + np.ascontiguousarray(part.vectors, "<f4").tobytes()).hexdigest()


@contextlib.contextmanager
def new_store(folder: Path, origin: Mapping[str, Any]) -> Iterator[StoreWriter]:
    """Write a new set of embeddings into `folder`, made where it is missing, in place of the one there.

    Parts are written into a hidden folder in `folder` and moved when the block has ended well, so that an
    older set stays as it was until then. It also stays where the block added no row.

    Args:
        folder: a folder whose parent exists.
        origin: what made the embeddings, as JSON; goes into each part's metadata.

    Raises:
        OutputFileError: `folder` can't be made or written, or holds another program's `.parquet` file.
    """
    made = _prepare(folder)
    try:
        old = list(folder.glob("*.parquet"))
        with work_folder(beside=folder / "embeddings") as work:
            writer = StoreWriter(work, origin)
            yield writer
            writer.finish()
            if writer.parts or not old:
                _publish(writer, folder, old)
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                folder.rmdir()


class StoreWriter:
    """Takes rows and writes them as parts; made by `new_store`, which publishes them."""

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.parts: list[Path] = []
        self.errors = work / ERRORS
        self._work = work
        self._origin = dict(origin)
        self._previous = ""
        self._roots: list[str] = []
        self._paths: list[str] = []
        self._vectors: list[Float32] = []
        self._log: list[str] = []

    def add(self, roots: Sequence[str], paths: Sequence[str], vectors: Float32) -> None:
        """Add n rows, `vectors` (n, C) float32; raises OutputFileError where a part can't be written."""
        self._roots += roots
        self._paths += paths
        self._vectors.append(vectors)
        while len(self._paths) > PART_ROWS:  # not >=: the last part is marked, and it may be a full one
            self._write_part(PART_ROWS, last=False)

    def add_error(self, root: str, path: str, error: str) -> None:
        """Record a picture that can't be read, for `errors.jsonl`."""
        # ASCII: some names hold U+2028, where Python's splitlines would break a line.
        self._log.append(json.dumps({"root": root, "path": path, "error": error}, ensure_ascii=True))

    def finish(self) -> None:
        """Write what is left; raises OutputFileError."""
        if self._paths:
            self._write_part(len(self._paths), last=True)
        try:
            self.errors.write_text("".join(line + "\n" for line in self._log), "utf-8")
        except OSError as error:
            raise cannot_write(self.errors, error) from error

    def _write_part(self, rows: int, *, last: bool) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        vectors = np.concatenate(self._vectors)
        part = Embeddings(self._roots[:rows], self._paths[:rows], vectors[:rows])
        self._roots, self._paths, self._vectors = self._roots[rows:], self._paths[rows:], [vectors[rows:]]
        number = len(self.parts)
        metadata = {
            "format": FORMAT,
            "part": number,
            "previous": self._previous,
            "last": last,
            **self._origin,
        }
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.vectors.ravel()), part.vectors.shape[1])
        table = pa.table(
            {
                "root": pa.array(part.roots, pa.string()),
                "path": pa.array(part.paths, pa.string()),
                "embedding": column,
            }
        ).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
        path = self._work / f"{number}.part"  # no .parquet yet: nothing half-written may look like a part
        try:
            parquet.write_table(table, path, use_dictionary=["root"], write_page_checksum=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        self.parts.append(path)
        self._previous = _digest(self._previous, part)


def _prepare(folder: Path) -> bool:
    """Make `folder` where it is missing, and say whether; check that what it holds may be replaced."""
    made = False
    try:
        if not folder.is_dir():
            folder.mkdir()
            made = True
    except OSError as error:
        raise cannot_write(folder, error) from error
    for path in sorted(folder.glob("*.parquet")):
        if not (_PART.fullmatch(path.name) and _is_ours(path)):
            raise OutputFileError(
                f"{folder} holds {path.name}, which `embed` did not write, or not whole; "
                "give an --out of its own"
            )
    return made


def _is_ours(path: Path) -> bool:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _METADATA_KEY in (parquet.read_schema(path).metadata or {})
    except (OSError, ValueError, pa.ArrowException):
        return False


def _publish(writer: StoreWriter, folder: Path, old: Sequence[Path]) -> None:
    """Move the new parts over the old ones and drop the rest; the chain tells if that is cut short."""
    new = [folder / f"part-{number:05d}.parquet" for number in range(len(writer.parts))]
    for source, target in zip(writer.parts, new, strict=True):
        publish(source, target)
    try:
        for path in set(old) - set(new):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    publish(writer.errors, folder / ERRORS)
