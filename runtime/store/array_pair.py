"""Embeddings as an array for other programs: `X.npy`, (n, C) float32, and `X.jsonl`, which says what each row is of.

`X.jsonl` is UTF-8 with a line `{"row": i, "root": ..., "path": ...}` for each row, in order. Lines between them, as
`{"root": ..., "path": ..., "error": ...}`, are of images that have no row: `itae-embed` writes them, and they are
passed over. The two files lie side by side, and one without the other means nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from runtime.contract.atomic import cannot_write, work_folder
from runtime.contract.errors import InputError, OutputFileError, UsageError, one_line
from runtime.contract.file_set import FileSet, is_interrupted, publish_sets, recover
from runtime.contract.keys import Key
from runtime.store.npy_header import npy_header, read_npy_header
from runtime.store.records import Embeddings, Float32

if TYPE_CHECKING:
    from runtime.store.reader import Store

_FIELDS = {"row", "root", "path"}
_FIELDS_OF_ERRORS = {"root", "path", "error"}
_MAX_LINE = 1 << 20
"""Bytes; longer lines are damage, since a path has 4,096 bytes at most."""
_PART_ROWS = 4096
_ESCAPED = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""Characters that some readers take for the end of a line, and JSON does not escape."""
_AGAIN = "make both again with `python -m runtime export`"


def is_array(path: Path) -> bool:
    """Whether `path` is of an array of embeddings, there or not, rather than a folder."""
    return path.suffix == ".npy" and not path.is_dir()


def lines_path(array: Path) -> Path:
    """Where the lines of an array lie: `X.npy` -> `X.jsonl`."""
    return array.with_suffix(".jsonl")


class ArrayPair:
    """An array with its lines, for reading."""

    def __init__(self, path: Path) -> None:
        """Check `path`, which is `X.npy`, and every line of `X.jsonl`.

        Raises:
            InputError: a file is missing, is none, or can't be read; the array is not what its header says; the lines
                are not one for each row, in order.
        """
        self._path, self._lines = path, lines_path(path)
        self._seen: dict[Path, tuple[int, int, int]] = {}
        with self._opened(path) as file:
            header = read_npy_header(file, path)
            held = os.fstat(file.fileno()).st_size - header.offset
        if header.is_fortran:
            raise InputError(f"{path} holds its numbers column by column, expected row by row: write it in C order")
        if held != header.data_bytes:
            raise InputError(
                f"{path} holds {held} bytes of numbers, its header speaks of {header.data_bytes}: {_AGAIN}"
            )
        self.rows, self.width, self._offset = header.rows, header.width, header.offset
        for _ in self.images():
            pass

    def state(self) -> list[list[str | int]]:
        """Name, bytes, time of the last change (ns) and rows of both files, which must stay as they are."""
        return [[path.name, size, changed, self.rows] for path, (_, size, changed) in sorted(self._seen.items())]

    def images(self) -> Iterator[Key]:
        """Root and path of each row; raises InputError."""
        row = number = 0
        with self._opened(self._lines) as file:
            while line := file.readline(_MAX_LINE):
                number += 1
                try:
                    fields = json.loads(line.decode())  # bytes might be UTF-16
                    if not _has_no_row(fields):
                        if row == self.rows:
                            raise InputError(f"{self._lines} has more than the {row} lines of {self._path}: {_AGAIN}")
                        yield _key(fields, row)
                        row += 1
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{self._lines}, line {number}: {one_line(error)}: {_AGAIN}") from error
        if row < self.rows:
            raise InputError(f"{self._lines} has {row} lines, {self._path} has {self.rows} rows: {_AGAIN}")

    def blocks(self, rows: int) -> Iterator[Float32]:
        """All rows, at most `rows` of them at a time and in memory: (`rows`, C) float32; raises InputError."""
        with self._opened(self._path) as file:
            file.seek(self._offset)
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                block = np.fromfile(file, "<f4", count * self.width)
                if len(block) < count * self.width:
                    raise InputError(f"{self._path} ends before row {start + count}: {_AGAIN}")
                if not np.isfinite(block).all():
                    raise InputError(f"{self._path} holds NaN or infinity: {_AGAIN}")
                yield block.reshape(count, self.width)

    def parts(self) -> Iterator[Embeddings]:
        """All rows, some thousand at a time; raises InputError."""
        images = self.images()
        for block in self.blocks(_PART_ROWS):
            keys = [next(images) for _ in range(len(block))]
            yield Embeddings([root for root, _ in keys], [path for _, path in keys], block)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        """Open one of the two, which must be the file that it was."""
        try:
            if not path.is_file():  # a pipe or a device may have no end
                if not path.exists() and is_interrupted(self._path):
                    raise InputError(f"{self._path}: an export into it was interrupted; run the same `export` again")
                what = "is no file" if path.exists() else "does not exist"
                raise InputError(f"{path} {what}: embeddings as an array are X.npy and X.jsonl beside it")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                found = status.st_ino, status.st_size, status.st_mtime_ns
                if self._seen.setdefault(path, found) != found:
                    raise InputError(f"{path} has changed since it was opened: read it again when its writer is done")
                yield file
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from error


def export_array(store: Store, out: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """Write a store as `out` and the lines beside it; both appear when both are whole.

    Args:
        store: with at least one row; read part by part.
        out: `X.npy`; a pair that lies there is replaced.
        tell: called after each part, with how far it is, in words.

    Raises:
        UsageError: `out` does not end in `.npy`.
        InputError: the store can't be read.
        OutputFileError: a file can't be written, or what lies in its place is no such pair.
    """
    lines = lines_path(out)
    recover(out.parent)
    _check_place(out)
    with work_folder(beside=out) as work:
        new_array, new_lines = work / out.name, work / lines.name
        try:
            with new_array.open("wb") as numbers, new_lines.open("wb") as text:
                numbers.write(npy_header(len(store), store.width))
                done = 0
                for part in store.parts():
                    numbers.write(np.ascontiguousarray(part.vectors, "<f4").data)
                    text.writelines(_line(done + row, *key) for row, key in enumerate(part.images()))
                    done += len(part)
                    tell(f"{done:,} of {len(store):,} embeddings written")
        except OSError as error:
            raise cannot_write(out, error) from error
        publish_sets([FileSet(out, {lines.name: new_lines, out.name: new_array})], work)


def _check_place(out: Path) -> None:
    """Check that nothing but an older pair would be replaced."""
    lines = lines_path(out)
    if out.suffix != ".npy":
        raise UsageError(f"{out}: the file to write must end in .npy")
    for path in (out, lines):
        try:
            if path.exists() and not path.is_file():
                raise OutputFileError(f"can't write {path}: it is no file; move it away")
        except OSError as error:
            raise cannot_write(path, error) from error
    is_ours = _is_ours(lines)
    if is_ours is False:
        raise OutputFileError(f"{lines} does not begin as `export` writes it: give another name, or move it away")
    if is_ours is None and out.exists():
        raise OutputFileError(f"{out} is there without {lines.name}: give another name, or move it away")


def _is_ours(lines: Path) -> bool | None:
    """Whether a file begins as the lines of a pair do; None if it does not exist."""
    try:
        with lines.open("rb") as file:
            fields = json.loads(file.readline(_MAX_LINE).decode())
            if not _has_no_row(fields):
                _key(fields, 0)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _line(row: int, root: str, path: str) -> bytes:
    text = json.dumps({"row": row, "root": root, "path": path}, ensure_ascii=False)
    return text.translate(_ESCAPED).encode() + b"\n"


def _has_no_row(fields: object) -> bool:
    """Whether a line is of an image that could not be embedded."""
    return isinstance(fields, dict) and "row" not in fields and fields.keys() >= _FIELDS_OF_ERRORS


def _key(fields: object, row: int) -> Key:
    """Root and path of the line of a row; raises ValueError."""
    if not isinstance(fields, dict) or not fields.keys() >= _FIELDS:
        raise ValueError('expected {"row": ..., "root": ..., "path": ...}')
    root, path = fields["root"], fields["path"]
    if type(fields["row"]) is not int or fields["row"] != row:
        raise ValueError(f"it is of row {str(fields['row'])[:20]}, expected {row}")
    if not (isinstance(root, str) and isinstance(path, str)):
        raise ValueError("root and path must be strings")  # noqa: TRY004  # of data, not of an argument
    (root + path).encode()  # raises for half of a surrogate pair
    return root, path
