"""Images from sources into a store by Ray Data: any number of machines read, decode, embed and write parts.

This process lists the images and takes the parts into the store, one after the other, so that each part is in it whole
or not at all. The rest is in `distributed_stages`. All machines see the model, the images and the store under the same
paths.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import uses_gpu
from runtime.backends.session import chosen_batch
from runtime.contract.atomic import work_folder
from runtime.contract.errors import BackendError, CheckError
from runtime.contract.keys import Keys
from runtime.contract.manifest import Manifest, read_manifest
from runtime.contract.progress import Progress
from runtime.contract.ray_cluster import connected, ray_data
from runtime.embedding.distributed_stages import (
    Chunk,
    Embed,
    Part,
    as_table,
    chunk_size,
    cut,
    decode,
    parts_of,
    read_source,
    write,
)
from runtime.embedding.embedder import Outcome, Run
from runtime.embedding.workers import WorkerOptions
from runtime.sources import Sources
from runtime.store.growing_parts import PART_ROWS
from runtime.store.moved import Moved
from runtime.store.parquet_parts import open_part
from runtime.store.records import FILE_NAMES
from runtime.store.writer import FLUSH_ROWS, StoreWriter

_PARTS_OF_A_RUN = 64
"""A run writes so many parts, or more, so that little is lost with it; fewer where they would be too small."""
_READS = 10_000
"""Tasks of Ray that list images, at most: it plans them all beforehand."""
_LISTED = 64
"""Chunks of a task that hands on what this process listed, at least: each process that Ray starts takes a second."""
_SMALL = FLUSH_ROWS // 2
"""A part of fewer rows is none of its own: thousands of those would read slowly."""
_LITTLE = 0.25
"""Share of a core that reading and writing take: they wait for the disk most of the time."""


@dataclass(frozen=True)
class RayRun:
    """The machines and processes that Ray used."""

    nodes: int
    """Number of machines on which images were embedded."""
    actors: int
    """Number of processes that embedded images."""
    start_seconds: float
    """Seconds until Ray was started, or connected, and imported."""


def embed_by_ray(
    address: str,
    options: WorkerOptions,
    sources: Sources,
    writer: StoreWriter,
    folder: Path,
    progress: Progress,
    *,
    max_failures: float | None = None,
    moved: Moved | None = None,
) -> tuple[Outcome, RayRun]:
    """Embed the images of `sources` that the store of `writer` does not hold, by Ray.

    Args:
        address: as `ray_cluster.connected`.
        options: how each actor loads the model, and how images are decoded; `workers` is not used.
        sources: from `open_sources`.
        writer: from `open_writer`.
        folder: of the store.
        progress: shows the counts after each part.
        max_failures: largest share of images that may fail; above it the run ends.
        moved: the names in the store of folders that were moved.

    Raises:
        CheckError: more than `max_failures` failed, or Ray lost images.
        BackendError: there is no such cluster, it lacks GPUs, or it failed.
        ItaeError: the model, a source or the store failed; parts that were written before are in the store.
    """
    moved = moved or Moved(())
    run = Run(sources, writer, progress, max_failures, moved)
    manifest = read_manifest(options.model)
    size = _chunk_size(manifest, options.batch)
    listing, holders = sources.split()
    listed = [as_table(chunk) for chunk in cut(listing.items(run.is_wanted), 0, size) if chunk.items or chunk.failures]
    skipped = Counter(listing.skipped)
    if not listed and not holders:
        return run.outcome(skipped), RayRun(0, 0, 0.0)
    reads = [
        functools.partial(_read, one, number, size, stored, moved)
        for number, (one, stored) in enumerate(zip(holders, _stored_in(holders, writer, moved), strict=True), 1)
    ]
    began = time.monotonic()
    with connected(address) as ray, work_folder(folder / FILE_NAMES.record) as work:
        started = time.monotonic() - began
        data = _dataset(ray, [*_few(listed), *reads], manifest, options)
        rows = _part_rows(sources.total)
        data = data.map_batches(
            write,
            batch_size=max(1, rows // size),
            batch_format="pyarrow",
            num_cpus=_LITTLE,
            fn_kwargs={"folder": work.resolve(), "origin": writer.origin, "moved": moved},
        )
        taken = _Taken(run, writer, work)
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for part in parts_of(table):
                taken.take(part)
        taken.check(len(listed), len(holders))
    return run.outcome(skipped + taken.skipped), RayRun(len(taken.nodes), len(taken.actors), started)


class _Taken:
    """The parts that are in the store, and the chunks that their rows were in."""

    def __init__(self, run: Run, writer: StoreWriter, work: Path) -> None:
        self.skipped: Counter[str] = Counter()
        self.nodes: set[str] = set()
        self.actors: set[tuple[str, str]] = set()
        self._run, self._writer, self._work = run, writer, work
        self._chunks: set[tuple[int, int]] = set()
        self._last: dict[int, int] = {}

    def take(self, part: Part) -> None:
        """Take a part into the store; raises ItaeError."""
        if part.error is not None:
            raise part.error
        for chunk in part.chunks:
            if (chunk.source, chunk.number) in self._chunks:
                raise CheckError("Ray gave images twice, they were not taken: the same command goes on from here")
            self._chunks.add((chunk.source, chunk.number))
        if part.file is not None:
            self._add(self._work / part.file, part)
        for chunk in part.chunks:
            self._count(chunk)
        self._run.embed(part.rows, {})

    def _add(self, file: Path, part: Part) -> None:
        """Move a part into the store, or append its rows if it is a small one; raises ItaeError."""
        if part.rows >= _SMALL:
            self._writer.add_part(file, part.rows, part.width)
            return
        with open_part(file) as opened:
            rows = opened.read()
        self._writer.add(rows.roots, rows.paths, rows.vectors)
        file.unlink()

    def _count(self, chunk: Chunk) -> None:
        self._run.listed_elsewhere(chunk.images, chunk.present)
        self._run.notes.update(chunk.notes)
        self.skipped.update(chunk.skipped)
        if chunk.is_last:
            self._last[chunk.source] = chunk.number
        if chunk.actor is not None:
            self.nodes.add(chunk.actor[0])
            self.actors.add(chunk.actor)
        for failure in chunk.failures:
            self._run.fail(failure)

    def check(self, listed: int, holders: int) -> None:
        """Check that every chunk has come: those that were listed, and each up to the last of each other source.

        Raises:
            CheckError: one has not.
        """
        expected = {(0, number) for number in range(listed)}
        expected |= {
            (source, number) for source in range(1, holders + 1) for number in range(self._last.get(source, 0) + 1)
        }
        if missing := len(expected - self._chunks):
            raise CheckError(f"Ray lost {missing} pieces of the work: the same command embeds what is missing")


def _dataset(ray: Any, reads: Sequence[Any], manifest: Manifest, options: WorkerOptions) -> Any:  # noqa: ANN401
    """The images of all reads, embedded: a Ray Dataset of chunks."""
    on_gpu = uses_gpu(options.provider)
    # A model on the CPU takes all cores of its machine, as it does without Ray; one on a GPU leaves them to decoding.
    needs = {"num_cpus": 0, "num_gpus": int(on_gpu)}
    one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    with ray_data(target_max_block_size=1) as data:  # byte: each chunk is a block, however large
        pool = data.ActorPoolStrategy(min_size=1, max_size=_devices(ray, on_gpu))
        chunks = data.read_datasource(_datasource(reads), override_num_blocks=len(reads), num_cpus=_LITTLE)
        if on_gpu:
            how = {"how": manifest.preprocessing, "options": options}
            chunks = chunks.map_batches(decode, **one, num_cpus=1, fn_kwargs=how)
        return chunks.map_batches(Embed, **one, **needs, fn_constructor_args=(options, on_gpu), compute=pool)


def _devices(ray: Any, on_gpu: bool) -> int:  # noqa: ANN401
    """Number of actors at most: one for each GPU, or one for each machine.

    Raises:
        BackendError: there is no GPU.
    """
    if not on_gpu:
        return max(1, sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")))
    count = int(ray.cluster_resources().get("GPU", 0))
    if not count:
        raise BackendError("the Ray cluster has no GPU, and the model needs one: add a machine that has")
    return count


def _datasource(reads: Sequence[Any]) -> Any:  # noqa: ANN401  # Ray's
    """The source for Ray Data: each read is a function that returns tables."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    class Images(Datasource):  # type: ignore[misc, unused-ignore]  # a base that is imported with its first use
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: object, **__: object) -> list[Any]:
            return [ReadTask(read, unknown) for read in reads]

    return Images()


def _read(sources: Sources, number: int, size: int, stored: Keys, moved: Moved) -> Iterator[Any]:
    return (as_table(chunk) for chunk in read_source(sources, number, size, stored, moved))


def _few(tables: Sequence[Any]) -> Iterator[Any]:
    """Functions that return the tables, one or more of them each."""
    step = max(_LISTED, -(-len(tables) // _READS))
    for start in range(0, len(tables), step):
        yield functools.partial(list, tables[start : start + step])


def _stored_in(holders: Sequence[Sources], writer: StoreWriter, moved: Moved) -> list[Keys]:
    """Keys of the images in the store that each source may have."""
    everything = Keys()
    by_root = {moved.recorded(root): Keys() for one in holders for root in one.roots}
    has_any_root = any(len(one.roots) != 1 for one in holders)
    for root, path in writer.stored_images() if holders else ():
        if root in by_root:
            by_root[root].add(root, path)
        if has_any_root:
            everything.add(root, path)
    return [everything if len(one.roots) != 1 else by_root[moved.recorded(one.roots[0])] for one in holders]


def _chunk_size(manifest: Manifest, batch: int | None) -> int:
    return chunk_size(manifest.preprocessing, chosen_batch(manifest, batch))


def _part_rows(total: int | None) -> int:
    """Rows of a part: fewer where there are few images."""
    return PART_ROWS if total is None else max(FLUSH_ROWS, min(PART_ROWS, total // _PARTS_OF_A_RUN))
