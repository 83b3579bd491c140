"""Reading a store, of either kind, a part at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.errors import InputError
from runtime.store.npy_file import NpyFiles
from runtime.store.origin import fingerprint
from runtime.store.parquet_parts import PartFile, open_part, part_files, release_memory
from runtime.store.records import AGAIN, Embeddings, Float32, Kind, read_record


class Store:
    """A folder of embeddings, read lazily.

        store = Store("embeddings/")
        print(len(store), store.width, store.origin["model"])
        for part in store.parts():      # a few megabytes at a time
            print(part.paths[0], part.vectors.mean())

    It shows the rows that there were when it was opened; a run that goes on meanwhile does no harm.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder that `embed` wrote, or another program in its format.

        Raises:
            InputError: there are no embeddings, they can't be read, or they are not one whole set.
        """
        self.folder = Path(folder)
        record = read_record(self.folder)
        self.kind: Kind = "parquet" if record is None else record.kind
        self.complete: bool = record is None or record.complete
        """Whether the run that wrote it came to its end."""
        self.origin: dict[str, Any] = {} if record is None else record.origin
        """What made the embeddings: `model`, `model_sha256`, `options`, ...; empty where another program wrote them."""
        self._npy: NpyFiles | None = None
        self._parts: list[tuple[Path, int]] = []
        if record is not None and record.kind == "npy":
            self._npy, self._rows, self.width = NpyFiles(self.folder, record), record.rows, record.width
            return
        expected = None if record is None else fingerprint(record.origin)
        self._parts, self.width = _checked_parts(self.folder, expected)
        self._rows = sum(rows for _, rows in self._parts)
        if record is not None and record.complete and record.rows != self._rows:
            raise InputError(f"{self.folder} holds {self._rows} of {record.rows} rows, a part is missing: {AGAIN}")

    def __len__(self) -> int:
        return self._rows

    @property
    def part_count(self) -> int:
        """How many parts there are; 0 of npy."""
        return len(self._parts)

    def images(self) -> Iterator[tuple[str, str]]:
        """Root and path of each row, without reading a vector; raises InputError."""
        if self._npy is not None:
            yield from self._npy.keys()
        for path, count in self._parts:
            with open_part(path) as part:
                self._check_unchanged(part, count)
                yield from itertools.islice(zip(*part.keys(), strict=True), count)

    def parts(self) -> Iterator[Embeddings]:
        """All rows, some thousand at a time; raises InputError."""
        if self._npy is not None:
            vectors, keys = self._npy.vectors(), self._npy.keys()
            for start in range(0, self._rows, _NPY_ROWS):
                rows = list(itertools.islice(keys, _NPY_ROWS))
                piece = vectors[start : start + _NPY_ROWS]
                if not np.isfinite(piece).all():
                    raise InputError(f"{self.folder} holds NaN or infinity: {AGAIN}")
                yield Embeddings([root for root, _ in rows], [path for _, path in rows], piece)
        for path, count in self._parts:
            with open_part(path) as part:
                self._check_unchanged(part, count)
                yield part.read().first(count)
            release_memory()

    def vectors(self) -> Float32:
        """All embeddings, (n, C) float32: mapped into memory from npy, read from parquet; raises InputError."""
        return self._npy.vectors() if self._npy is not None else self.read().vectors

    def load(self, tell: Callable[[str], None] = lambda line: None) -> Float32:
        """All embeddings in memory, (n, C) float32, and hardly more than that while they are read; raises InputError.

        The same rows as those of `vectors`, but always an array of its own, which may be written to. `tell` is told
        how far it is, after each thousand.
        """
        vectors = np.empty((self._rows, self.width), np.float32)
        first = 0
        for block in self._blocks():
            vectors[first : first + len(block)] = block
            first += len(block)
            tell(f"{first:,} of {self._rows:,} embeddings read")
        return vectors

    def _blocks(self) -> Iterator[Float32]:
        if self._npy is not None:
            yield from self._npy.blocks(_BLOCK_ROWS)
            return
        for path, left in self._parts:
            with open_part(path) as part:
                self._check_unchanged(part, left)
                for block in part.vectors(_BLOCK_ROWS):
                    yield block[:left]  # the part may have grown since it was counted
                    left -= min(left, len(block))
            release_memory()

    def read(self) -> Embeddings:
        """All rows in memory; raises InputError."""
        roots: list[str] = []
        paths: list[str] = []
        vectors = np.empty((self._rows, self.width), np.float32)
        for part in self.parts():
            vectors[len(paths) : len(paths) + len(part)] = part.vectors
            roots += part.roots
            paths += part.paths
        return Embeddings(roots, paths, vectors)

    def _check_unchanged(self, part: PartFile, rows: int) -> None:
        """Check that a part still begins with what it held: a run that goes on only makes the last one longer."""
        if part.rows < rows or part.width != self.width:
            raise InputError(
                f"{part.path} held {rows} rows of {self.width} when it was opened, now {part.rows} of {part.width}: "
                "something else writes there; read it again when that is done"
            )


_NPY_ROWS = 8192
_BLOCK_ROWS = 1024


def _checked_parts(folder: Path, expected: str | None) -> tuple[list[tuple[Path, int]], int]:
    """The parts of a folder with their rows, and the width, after their schemas and origins were compared."""
    files = part_files(folder)
    if not files:
        raise InputError(f"{folder} holds no part-00000.parquet: {AGAIN}")
    parts, stores, widths = [], [], set()
    for path in files:
        with open_part(path) as part:
            parts.append((path, part.rows))
            stores.append(part.store)
            widths.add(part.width)
    for path, store in zip(files, stores, strict=True):
        if store != (stores[0] if expected is None else expected):
            raise InputError(f"{path} is not of the same run as the parts before it, or store.json: {AGAIN}")
    if len(widths) > 1:
        raise InputError(f"{folder}: parts with embeddings of widths {sorted(widths)}: {AGAIN}")
    return parts, widths.pop()
