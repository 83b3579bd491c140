"""Nearest neighbours in a store by cosine: exact, or by an index of faiss that is built once beside the store."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtime.contract.argument_types import as_whole_number, shown
from runtime.contract.atomic import atomic_file
from runtime.contract.errors import BackendError, InputError, UsageError
from runtime.store.origin import fingerprint
from runtime.store.records import Float32

if TYPE_CHECKING:
    from runtime.store.reader import Store

Int64 = npt.NDArray[np.int64]
Say = Callable[[str], None]

METHODS = ("auto", "exact", "index")
INDEX_FROM = 1_000_000
"""Rows from which `auto` is `index`."""
_BLOCK_ROWS = 1024
"""Rows that are read and compared at a time."""
_QUERIES = 1024
"""Queries that are compared with a block at a time."""
_FORMAT = 1
"""Part of an index's name: another way to build one gets another number."""
_NAME = 24
"""Digits of the hash in an index's name."""
_SAMPLE = 40
"""Rows for each list of the index that its k-means looks at; faiss warns below 39."""
_PROBED = 16
"""One list in so many is searched for a query."""


@dataclass(frozen=True)
class Neighbour:
    """A row that is near a query."""

    root: str
    path: str
    row: int
    """Its number in the store, from 0."""
    similarity: float
    """Cosine of the angle between the two embeddings, 1 for the same direction; 0 if one of them is all zeros."""


def search(store: Store, queries: object, top: object, method: object, tell: Say) -> list[list[Neighbour]]:
    """Return what `Store.search` returns.

    Raises:
        UsageError, InputError, BackendError, OutputFileError: see there.
    """
    most = as_whole_number(top, "top")
    if most < 1:
        raise UsageError(f"top={most}: must be 1 or more")
    chosen = chosen_method(method, len(store))
    rows, vectors = _queries(store, queries)
    units = unit_vectors(vectors)
    own = np.full(len(units), -1, np.int64) if rows is None else rows
    kept = min(most, len(store) - (rows is not None))
    if not len(units) or not kept:
        return [[] for _ in units]
    by = _exact if chosen == "exact" else _by_index
    found, similarities = by(store, units, own, kept, tell)
    keys = dict.fromkeys(found[found >= 0].tolist(), ("", ""))
    for row, key in enumerate(store.images()):
        if row in keys:
            keys[row] = key
    return [
        [Neighbour(*keys[row], row, similarity) for row, similarity in zip(*both, strict=True) if row >= 0]
        for both in zip(found.tolist(), similarities.tolist(), strict=True)
    ]


def chosen_method(method: object, rows: int) -> str:
    """Return `exact` or `index` for a store of so many rows; raises UsageError if `method` is not of `METHODS`."""
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(f"method={shown(method)}: give {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    return ("index" if rows >= INDEX_FROM else "exact") if method == "auto" else method


def _queries(store: Store, queries: object) -> tuple[Int64 | None, Float32]:
    """The queries' rows, if they are rows, and their embeddings (q, C)."""
    try:
        given: npt.NDArray[Any] = np.asarray(queries)
    except ValueError as error:  # lists of several lengths
        raise UsageError(f"queries {shown(queries)}: give embeddings or numbers of rows") from error
    if given.dtype.kind in "iu" and given.ndim <= 1:
        rows = given.reshape(-1)
        if (wrong := rows[(rows < 0) | (rows >= len(store))]).size:
            raise UsageError(f"there is no row {wrong[0]}: {store.path} has the {len(store)} rows from 0 on")
        rows = rows.astype(np.int64)
        return rows, read_rows(store, rows)
    if given.dtype.kind != "f" or given.ndim not in (1, 2):
        raise UsageError(
            f"queries {shown(queries)}: give embeddings (q, C) or (C,) of floats, or rows (q,) of whole numbers"
        )
    if not given.size:
        return None, np.empty((0, store.width), np.float32)
    with np.errstate(over="ignore"):  # infinity, which is refused below
        vectors = given.reshape(-1, given.shape[-1]).astype(np.float32)
    if vectors.shape[1] != store.width:
        raise InputError(
            f"queries of width {vectors.shape[1]}, embeddings of width {store.width}: embed both with one model"
        )
    if not np.isfinite(vectors).all():
        raise InputError("the queries hold NaN or infinity")
    return None, vectors


def read_rows(store: Store, rows: Int64) -> Float32:
    """The embeddings of some rows, in any order: (q, C)."""
    vectors = np.empty((len(rows), store.width), np.float32)
    order = np.argsort(rows, kind="stable")
    first = 0
    for block in store.blocks(_BLOCK_ROWS):
        low, high = np.searchsorted(rows[order], [first, first + len(block)])
        vectors[order[low:high]] = block[rows[order[low:high]] - first]
        first += len(block)
    return vectors


def unit_vectors(vectors: Float32) -> Float32:
    """Embeddings divided by their L2 norm; one that is all zeros stays so."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(norms, norms, 1)[:, None]).astype(np.float32)


def _exact(store: Store, queries: Float32, own: Int64, top: int, tell: Say) -> tuple[Int64, Float32]:
    """Rows and similarities (q, top), the best first; of equals the row that comes first. A query's `own` is left out.

    Each block of the store is read once and compared with all queries.
    """
    found = np.full((len(queries), top), -1, np.int64)
    best = np.full((len(queries), top), -np.inf, np.float32)
    first = 0
    for block in store.blocks(_BLOCK_ROWS):
        units = unit_vectors(block)
        rows = np.arange(first, first + len(units))
        for start in range(0, len(queries), _QUERIES):
            some = slice(start, start + _QUERIES)
            scores = queries[some] @ units.T
            scores[own[some, None] == rows] = -np.inf
            (better,) = np.nonzero((scores > best[some, -1:]).any(axis=1))  # few, after the first blocks
            both = np.concatenate([best[some][better], scores[better]], axis=1)
            names = np.concatenate([found[some][better], np.broadcast_to(rows, (len(better), len(rows)))], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :top]
            best[start + better] = np.take_along_axis(both, order, axis=1)
            found[start + better] = np.take_along_axis(names, order, axis=1)
        first += len(units)
        tell(f"{first:,} of {len(store):,} embeddings compared")
    return found, np.clip(best, -1, 1)


def _by_index(store: Store, queries: Float32, own: Int64, top: int, tell: Say) -> tuple[Int64, Float32]:
    """As `_exact`, with the rows that an index of faiss finds; -1 for what it does not find."""
    index = _index(store, tell)
    index.nprobe = -(-index.nlist // _PROBED)
    similarities, rows = index.search(queries, min(top + 1, len(store)))
    found = np.full((len(queries), top), -1, np.int64)
    best = np.zeros((len(queries), top), np.float32)
    for query in range(len(queries)):
        kept = np.flatnonzero((rows[query] >= 0) & (rows[query] != own[query]))[:top]
        found[query, : len(kept)], best[query, : len(kept)] = rows[query, kept], similarities[query, kept]
    return found, np.clip(best, -1, 1)


def index_path(store: Store) -> Path:
    """Return where the index of a store lies; another content of the store has another name."""
    state = json.dumps([_FORMAT, fingerprint(store.origin), store.width, store.state()])
    folder, start = _index_place(store)
    return folder / f"{start}{hashlib.sha256(state.encode()).hexdigest()[:_NAME]}.faiss"


def _index_place(store: Store) -> tuple[Path, str]:
    """The folder of a store's indexes, and how their names begin; in a folder, readers pass over what begins so."""
    is_folder = store.path.is_dir()
    return (store.path, "_search-") if is_folder else (store.path.parent, f"{store.path.stem}.search-")


def _older(store: Store) -> Iterator[Path]:
    """Indexes of what the store held before."""
    folder, start = _index_place(store)
    found = folder.glob(f"{glob.escape(start)}{'[0-9a-f]' * _NAME}.faiss")
    return (one for one in found if one != index_path(store))


def _index(store: Store, tell: Say) -> Any:  # noqa: ANN401  # faiss' classes
    """The index of the store, read where it lies or built anew."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise BackendError(
            f"an index, which `auto` is from {INDEX_FROM:,} rows on, needs faiss: pip install 'itae[search]', or "
            "search exactly (method `exact`)"
        ) from error
    path = index_path(store)
    if path.is_file():
        with contextlib.suppress(RuntimeError):  # damaged: it is built again
            found = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            if (found.ntotal, found.d) == (len(store), store.width):
                return found
    library: Any = faiss  # its stubs lack what its classes inherit
    index = _built(store, library, tell)
    with atomic_file(path) as file:
        library.write_index(index, library.PyCallbackIOWriter(file.write))
    for one in _older(store):
        with contextlib.suppress(OSError):
            one.unlink()
    return index


def _built(store: Store, faiss: Any, tell: Say) -> Any:  # noqa: ANN401  # as above
    """Inverted lists of float16 embeddings; memory is that of the index, half of the embeddings'."""
    n = len(store)
    lists = max(1, min(round(4 * math.sqrt(n)), n // _SAMPLE))
    index = faiss.index_factory(store.width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(n, min(n, _SAMPLE * lists), replace=False)
    tell(f"building an index of {lists:,} lists from {len(sample):,} embeddings")
    index.train(unit_vectors(read_rows(store, np.sort(sample))))
    for block in store.blocks(8 * _BLOCK_ROWS):
        index.add(unit_vectors(block))
        tell(f"{index.ntotal:,} of {n:,} embeddings indexed")
    return index
