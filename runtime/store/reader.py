"""Reading embeddings part by part, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.argument_types import as_path, shown
from runtime.contract.errors import InputError, UsageError
from runtime.contract.keys import Key
from runtime.store.array_pair import ArrayPair, is_array
from runtime.store.origin import fingerprint
from runtime.store.parquet_parts import Parts, has_parts
from runtime.store.records import AGAIN, Embeddings, Float32, file_names, read_record
from runtime.store.search import Neighbour, search

_BLOCK_ROWS = 1024


class Store:
    """Embeddings on disk, read lazily.

        store = Store("embeddings/")
        print(len(store), store.width, store.origin["model"])
        for part in store.parts():      # a few megabytes at a time
            print(part.paths[0], part.vectors.mean())

    It shows the rows that existed when it was opened; a run that adds rows meanwhile does no harm.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder that `embed` wrote, or an array `X.npy` that `export` wrote, or what another program wrote so.

        Raises:
            InputError: there are no embeddings, they can't be read, or they are not one whole set.
        """
        self.path = as_path(path, "path")
        """The folder, or `X.npy`."""
        self.complete = True
        """Whether the run that wrote it has ended."""
        self.origin: dict[str, Any] = {}
        """The origin of the embeddings: `model`, `model_sha256`, `options`, ...; empty if it is not known."""
        self._rows: Parts | ArrayPair
        if is_array(self.path):
            self._rows = ArrayPair(self.path)
            return
        record = read_record(self.path)
        if (record is None or not record.complete) and _is_begun(self.path):
            raise InputError(
                f"{self.path} holds no embedding yet: `embed` was stopped before it wrote the first rows, or no image "
                "could be embedded; run `embed` again"
            )
        self._rows = Parts(self.path, None if record is None else fingerprint(record.origin))
        if record is not None:
            self.complete, self.origin = record.complete, record.origin
            if record.complete and record.rows != len(self):
                raise InputError(f"{self.path} holds {len(self)} of {record.rows} rows, a part is missing: {AGAIN}")

    def __len__(self) -> int:
        return self._rows.rows

    @property
    def width(self) -> int:
        """C: elements of an embedding."""
        return self._rows.width

    def images(self) -> Iterator[Key]:
        """Root and path of each row, without reading a vector; raises InputError."""
        return self._rows.images()

    def parts(self) -> Iterator[Embeddings]:
        """All rows, some thousand at a time; raises InputError."""
        return self._rows.parts()

    def blocks(self, rows: int) -> Iterator[Float32]:
        """All embeddings, at most `rows` of them at a time and in memory: (`rows`, C); raises InputError."""
        return self._rows.blocks(rows)

    def state(self) -> list[list[str | int]]:
        """Name, bytes, time of the last change (ns) and rows of each file, which differ if the rows have changed."""
        return self._rows.state()

    def search(
        self,
        queries: object,
        top: int = 10,
        *,
        method: str = "auto",
        tell: Callable[[str], None] = lambda line: None,
    ) -> list[list[Neighbour]]:
        """The nearest rows of each of q queries by cosine, the nearest first.

            for hit in store.search(model.embed("cat.jpg"))[0]:
                print(hit.similarity, hit.root, hit.path)
            store.search([0, 17])           # neighbours of rows 0 and 17

        Args:
            queries: embeddings (q, C) or one (C,), of floats; or numbers of rows (q,) or one, which are not among their
                own neighbours.
            top: number of neighbours; all if there are fewer.
            method: `exact` compares each query with each row; `index` builds an index beside the store, unless the one
                that lies there is of the same rows, and finds nearly all; `auto` is `exact` below 1,000,000 rows.
            tell: called now and then with how far it is, in words.

        Raises:
            UsageError: an argument is of another type, or there is no such row or method.
            InputError: the store can't be read, or the queries have another width or hold NaN or infinity.
            BackendError: faiss is not installed, which an index needs.
            OutputFileError: the index can't be written.
        """
        if not callable(tell):
            raise UsageError(f"Store.search reports to a function of one text, not to {shown(tell)}")
        return search(self, queries, top, method, tell)

    def load(self, tell: Callable[[str], None] = lambda line: None) -> Float32:
        """All embeddings in memory, (n, C) float32, and hardly more than that while they are read.

        The array is new and may be written to. `tell` is called after each thousand rows with how far it is.

        Raises:
            UsageError: `tell` is no function.
            InputError: the store can't be read.
        """
        if not callable(tell):
            raise UsageError(f"Store.load reports to a function of one text, not to {shown(tell)}")
        vectors = np.empty((len(self), self.width), np.float32)
        first = 0
        for block in self._rows.blocks(_BLOCK_ROWS):
            vectors[first : first + len(block)] = block
            first += len(block)
            tell(f"{first:,} of {len(self):,} embeddings read")
        return vectors

    def read(self) -> Embeddings:
        """All rows in memory; raises InputError."""
        roots: list[str] = []
        paths: list[str] = []
        vectors = np.empty((len(self), self.width), np.float32)
        for part in self.parts():
            vectors[len(paths) : len(paths) + len(part)] = part.vectors
            roots += part.roots
            paths += part.paths
        return Embeddings(roots, paths, vectors)


def _is_begun(folder: Path) -> bool:
    """Whether a folder holds at most what `embed` writes before the first rows."""
    own = {*vars(file_names(folder)).values()}
    try:
        return not has_parts(folder) and all(one.name in own or one.name.startswith(".") for one in folder.iterdir())
    except OSError:
        return False
