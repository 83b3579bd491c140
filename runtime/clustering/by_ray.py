"""Clusters of a store by Ray: centroids from a sample, then the nearest one of each row, on all machines."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.clustering import kmeans
from runtime.clustering.clusters import Clustering, arranged
from runtime.clustering.points import Float32, Float64, Int32, StoreReader, distances_to, nearest, normalize_rows
from runtime.contract.errors import InputError, ItaeError, UsageError
from runtime.contract.keys import Key, location
from runtime.contract.machine import limited_threads
from runtime.contract.ray_cluster import connected, ray_data
from runtime.store import Store
from runtime.store.parquet_parts import open_part

SAMPLE = 131_072
"""Rows that the centroids are learned on, at least; of fewer, all."""
SAMPLE_PER_CLUSTER = 256
"""Rows for each centroid, at least: it then errs by a 256th of its cluster's variance."""
_KEPT = 64
"""Parts whose roots and paths are in memory at a time, where those of some rows are asked for."""


def cluster(
    reader: StoreReader,
    k: int,
    seed: int,
    address: str,
    *,
    tell: Callable[[str], None] = lambda line: None,
    **given: Any,  # noqa: ANN401  # as `kmeans.cluster`
) -> Clustering:
    """Cluster a store by k-means on a sample of its rows, and assign all rows to the centroids.

    Where the sample is the whole store, the clusters are those of `kmeans.cluster`.

    Args:
        reader: a store in a folder that all machines of the cluster see under the same path.
        k: number of clusters.
        seed: seed of the sample and of the starts.
        address: as `ray_cluster.connected`.
        tell: called with the progress in words.
        given: further arguments of `kmeans.cluster`.

    Raises:
        UsageError: as `kmeans.check_k`, of the sample; the store is an array.
        InputError: the store can't be read.
        BackendError: there is no such cluster, or it failed.
    """
    rows = sample_rows(len(reader.store), k, seed)
    with _assigner(reader, address) as assigner:
        tell(f"reading a sample of {len(rows):,} embeddings")
        sample = assigner.rows(rows)
        found = kmeans.cluster(sample, k, seed, **given, tell=tell)
        del sample
        tell(f"assigning {len(reader.store):,} embeddings")
        centroids = found.centroids.astype(np.float64)
        labels, distances = assigner.labelled(centroids)
    return arranged(labels, distances, centroids, found.iterations)


def labelled(reader: StoreReader, centroids: Float64, address: str) -> tuple[Int32, Float64]:
    """Return what `reader.labelled` returns, computed by Ray; raises as `cluster`."""
    with _assigner(reader, address) as assigner:
        return assigner.labelled(centroids)


class KeysByPart:
    """Roots and paths of the images of each part of a store in a folder; those of some parts are in memory."""

    def __init__(self, store: Store) -> None:
        self._parts = _parts_of(store)
        self._ends = list(itertools.accumulate(rows for _, rows in self._parts))
        self._kept = functools.lru_cache(maxsize=_KEPT)(self._read)

    def __iter__(self) -> Iterator[tuple[list[str], list[str]]]:
        """Roots and paths of each part; raises InputError."""
        return map(self._read, range(len(self._parts)))

    def at(self, row: int) -> Key:
        """Root and path of a row; raises InputError."""
        number = bisect.bisect_right(self._ends, row)
        roots, paths = self._kept(number)
        place = row - self._ends[number]  # from the part's end, below 0
        return roots[place], paths[place]

    def _read(self, number: int) -> tuple[list[str], list[str]]:
        path, rows = self._parts[number]
        with open_part(path) as part:
            roots, paths = part.keys()
        _check_length(path, len(paths), rows)
        return roots[:rows], paths[:rows]


def sample_rows(n: int, k: int, seed: int) -> np.ndarray:
    """The rows of n to learn k centroids on, drawn without replacement, in order."""
    count = min(n, max(SAMPLE, SAMPLE_PER_CLUSTER * k))
    if count == n:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, n]).choice(n, count, replace=False))


@contextlib.contextmanager
def _assigner(reader: StoreReader, address: str) -> Iterator[_Assigner]:
    folder = reader.store.path
    if not folder.is_dir():
        raise UsageError(f"--ray is for the folder of a store, and {folder} is an array: leave it out")
    with connected(address):
        yield _Assigner(reader)


class _Assigner:
    """A store whose parts tasks of Ray read."""

    def __init__(self, reader: StoreReader) -> None:
        self._metric, self._width = reader.metric, reader.store.width
        self._parts = _parts_of(reader.store)
        ends = np.cumsum([rows for _, rows in self._parts])
        self._starts: list[int] = [0, *ends.tolist()[:-1]]

    def rows(self, rows: np.ndarray) -> Float32:
        """The points of `rows`, which are in order; raises InputError."""
        wanted = []
        for first, (_, count) in zip(self._starts, self._parts, strict=True):
            low, high = np.searchsorted(rows, [first, first + count])
            wanted.append((rows[low:high] - first).astype(np.int64).tobytes())
        chosen = np.empty((len(rows), self._width), np.float32)
        places = np.cumsum([0, *(len(one) // 8 for one in wanted)])
        for number, points in self._map(_chosen, wanted):
            chosen[places[number] : places[number + 1]] = np.frombuffer(points, np.float32).reshape(-1, self._width)
        return chosen

    def labelled(self, centroids: Float64) -> tuple[Int32, Float64]:
        """The nearest centroid (k, C) of each point, and the distance to it: (n,), (n,); raises InputError."""
        n = sum(rows for _, rows in self._parts)
        labels, distances = np.empty(n, np.int32), np.empty(n)
        for number, found in self._map(_nearest, centroids=centroids):
            first, count = self._starts[number], self._parts[number][1]
            labels[first : first + count] = np.frombuffer(found[: 4 * count], np.int32)
            distances[first : first + count] = np.frombuffer(found[4 * count :], np.float64)
        return labels, distances

    def _map(
        self, task: Callable[..., bytes], extra: list[bytes] | None = None, **given: object
    ) -> Iterator[tuple[int, Any]]:
        """The number of each part, as they come, and what a task makes of it."""
        items = [
            {
                "number": number,
                "path": str(path),
                "rows": rows,
                "first": first,
                "extra": extra[number] if extra else b"",
            }
            for number, ((path, rows), first) in enumerate(zip(self._parts, self._starts, strict=True))
            if extra is None or extra[number]
        ]
        with ray_data() as data:
            parts = data.from_items(items, override_num_blocks=len(items))
            how = {"task": task, "metric": self._metric, "given": given}
            made = parts.map_batches(_each_part, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs=how)
        for table in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for number, found, error in zip(*(table.column(name) for name in _COLUMNS), strict=True):
                if error.is_valid:
                    raise InputError(error.as_py())
                yield number.as_py(), found.as_buffer()


_COLUMNS = ("number", "found", "error")


def _each_part(table: Any, task: Callable[..., bytes], metric: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run a task on the part in a table's row; an error is data, so that it reads as on one machine."""
    import pyarrow as pa

    ((part,), found, error) = table.to_pylist(), b"", None
    try:
        points = _points(Path(part["path"]), part["rows"], part["first"], metric)
        with limited_threads(1):
            found = task(points, part["extra"], **given)
    except ItaeError as problem:
        error = str(problem)
    made = {
        "number": [part["number"]],
        "found": pa.array([found], pa.large_binary()),
        "error": pa.array([error], pa.string()),
    }
    return pa.table(made)


def _points(path: Path, rows: int, first: int, metric: str) -> Float32:
    """The points of a part, as a `StoreReader` gives them; raises InputError."""
    with open_part(path) as opened:
        part = opened.read()[:rows]
    _check_length(path, len(part), rows)
    if metric != "cosine":
        return part.vectors
    return normalize_rows(part.vectors, lambda row: location(part.roots[row], part.paths[row]), first=first)


def _check_length(path: Path, rows: int, expected: int) -> None:
    if rows < expected:
        raise InputError(f"{path} held {expected} rows when it was opened, now {rows}: something else writes there")


def _parts_of(store: Store) -> list[tuple[Path, int]]:
    """Path and number of rows of each part of a store in a folder."""
    folder = store.path.resolve()
    return [(folder / str(name), int(rows)) for name, *_, rows in store.state()]


def _chosen(points: Float32, rows: bytes) -> bytes:
    return points[np.frombuffer(rows, np.int64)].tobytes()


def _nearest(points: Float32, _: bytes, centroids: Float64) -> bytes:
    labels = nearest(points, centroids)
    return labels.astype(np.int32).tobytes() + distances_to(points, centroids, labels).tobytes()
