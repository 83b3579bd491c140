"""The steps that processes of Ray do: read, decode, embed, write a part. They pass on chunks, each a row of Ray Data.

For a GPU, tasks on any machine decode, and pass on pixels. On a CPU the model decides the time, and the process that
runs it decodes too, as without Ray: no decoded image passes between processes.

A chunk is some images that stay together. It is never split, and how it is cut does not depend on its bytes, so that
what Ray does again after a process or a machine has died is the same chunks: none is lost, none comes twice. What
fails is data too: an error in a chunk ends the run where it arrives.
"""

from __future__ import annotations

import functools
import os
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.session import chosen_batch
from runtime.contract.errors import ItaeError
from runtime.contract.keys import Keys
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Preprocessing
from runtime.embedding.stream import Array, Embedded, decode_item, embed_decoded, embed_stream, silence_pillow
from runtime.embedding.workers import WorkerOptions
from runtime.images.decode import Note, keep_freed_memory
from runtime.images.preprocess import as_input
from runtime.sources import Sources
from runtime.sources.item import Entry, Item, Unreadable
from runtime.store.moved import Moved
from runtime.store.parquet_parts import write_part
from runtime.store.records import Embeddings

CHUNK_BYTES = 32 << 20
"""Bytes of the files of a chunk that are read, and of its pixels."""
MOST_IMAGES = 256
"""Images of a chunk: a machine that dies has so many decoded for nothing."""
_NORMALIZERS = 4
"""Threads that normalise pixels while a GPU computes."""
_CHUNK, _ARRAY = "chunk", "array"


@dataclass(frozen=True)
class Chunk:
    """Some images on their way from a source to a part of the store."""

    source: int
    """Number of the source, of those of a run."""
    number: int
    """Number of the chunk in its source, from 0 on."""
    is_last: bool
    items: tuple[Item, ...] = ()
    """Those of them for which there are pixels or an embedding, or that are yet to be decoded."""
    failures: tuple[Unreadable, ...] = ()
    images: int = 0
    """Number of images that the source had, whatever became of them; 0 where they are counted elsewhere."""
    present: Keys = field(default_factory=Keys)
    """Keys of those that the store has already."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of files that were passed over, by reason, of the whole source; with its last chunk."""
    notes: Mapping[Note, int] = field(default_factory=dict)
    """Number of images that were decoded and have a remark, by remark."""
    error: ItaeError | None = None
    """Ends the run."""
    actor: tuple[str, str] | None = None
    """The machine, and the process there, that embedded the images."""


@dataclass(frozen=True)
class Part:
    """A part of the store that was written, and the chunks that its rows were in."""

    file: str | None
    """Name of the file; None if the chunks have no row."""
    rows: int
    width: int
    chunks: tuple[Chunk, ...]
    """Without their images."""
    error: ItaeError | None = None
    """Ends the run; there is no file then."""


def chunk_size(how: Preprocessing, batch: int) -> int:
    """Return the number of images of a chunk, a multiple of the batch: `CHUNK_BYTES` and `MOST_IMAGES` at most."""
    most = min(MOST_IMAGES, max(1, CHUNK_BYTES // (3 * how.crop[0] * how.crop[1])))
    return max(1, most // batch) * batch


def cut(entries: Iterable[Entry], source: int, size: int) -> Iterator[Chunk]:
    """Cut the entries of a source into chunks; the last one, which may be empty, says so."""
    items: list[Item] = []
    failures: list[Unreadable] = []
    number = held = 0
    for entry in entries:
        if len(items) + len(failures) == size or held > CHUNK_BYTES:
            yield Chunk(source, number, False, tuple(items), tuple(failures))
            items, failures, number, held = [], [], number + 1, 0
        if isinstance(entry, Item):
            items.append(entry)
            held += len(entry.data or b"")
        else:
            failures.append(entry)
    yield Chunk(source, number, True, tuple(items), tuple(failures))


def read_source(sources: Sources, source: int, size: int, stored: Keys, moved: Moved) -> Iterator[Chunk]:
    """Read the images of a source that a store lacks, in chunks; what fails is in the last one.

    Args:
        sources: what to read.
        source: its number.
        size: from `chunk_size`.
        stored: keys of the images that the store has.
        moved: the names in the store of folders that were moved.
    """
    images, present = 0, Keys()

    def is_wanted(root: str, path: str) -> bool:
        nonlocal images
        images += 1
        key = moved.recorded(root), path
        if key in stored:
            present.add(*key)
            return False
        return True

    number = 0
    try:
        for chunk in cut(sources.items(is_wanted), source, size):
            number = chunk.number
            skipped = sources.skipped if chunk.is_last else {}
            yield replace(chunk, images=images, present=present, skipped=skipped)
            images, present, number = 0, Keys(), number + 1
    except ItaeError as error:
        yield Chunk(source, number, True, error=error)


def decode(table: Any, how: Preprocessing, options: WorkerOptions) -> Any:  # noqa: ANN401  # pyarrow's
    """Decode the images of the chunk in a table of one row; returns such a table, with their pixels.

    They have the model's size, and are a quarter of the bytes of its float32 input: `Embed` normalises them.
    """
    _prepare_pillow()
    how = how.model_copy(update={"dtype": "uint8", "layout": "NHWC"})
    ((chunk, _),) = chunks_of(table)
    notes: list[Note] = []
    items: list[Item] = []
    arrays: list[Array] = []
    failures = list(chunk.failures)
    for item in chunk.items:
        one = decode_item(item, how, options.max_pixels, options.sixteen_bit, notes.append, draft=options.draft)
        if isinstance(one, Unreadable):
            failures.append(one)
        else:
            items.append(one[0])
            arrays.append(one[1])
    made = replace(chunk, items=tuple(items), failures=tuple(failures), notes=Counter(notes))
    return as_table(made, np.stack(arrays) if arrays else None)


class Embed:
    """The actor: it holds the model, and embeds the images of a chunk at a time; on a CPU it decodes them before."""

    def __init__(self, options: WorkerOptions, are_decoded: bool) -> None:
        """Load the model; what fails is in the first chunk that it gives.

        Args:
            options: how the model is loaded, and images are decoded.
            are_decoded: whether the chunks come from `decode`.
        """
        import ray

        context = ray.get_runtime_context()
        self._place = context.get_node_id(), context.get_actor_id() or str(os.getpid())
        self._options, self._are_decoded = options, are_decoded
        self._error: ItaeError | None = None
        self._normalizers = ThreadPoolExecutor(_NORMALIZERS, "normalize")
        _prepare_pillow()
        try:
            self._session = options.open_session()
        except ItaeError as error:
            self._error = error

    def __call__(self, table: Any) -> Any:  # noqa: ANN401  # pyarrow's
        """Embed the images of the chunk in a table of one row; returns such a table with the embeddings."""
        ((chunk, data),) = chunks_of(table)
        error = chunk.error or self._error
        if error is not None:
            return as_table(replace(chunk, items=(), error=error))
        if not chunk.items:
            return as_table(chunk)
        failures = list(chunk.failures)
        notes = Counter(chunk.notes)
        items: list[Item] = []
        vectors: list[Array] = []
        how = self._embed_pixels if self._are_decoded else self._embed_files
        try:
            for one in how(chunk.items, data, failures.append):
                items += [Item(root, path) for root, path in zip(one.roots, one.paths, strict=True)]
                vectors.append(one.vectors)
                notes.update(one.notes)
        except ItaeError as error:
            return as_table(replace(chunk, items=(), error=error))
        made = replace(chunk, items=tuple(items), failures=tuple(failures), notes=notes, actor=self._place)
        return as_table(made, np.concatenate(vectors) if vectors else None)

    def _embed_files(
        self,
        items: tuple[Item, ...],
        _: object,
        on_unreadable: Callable[[Unreadable], None],
    ) -> Iterator[Embedded]:
        options = self._options
        return embed_stream(
            self._session,
            items,
            on_unreadable,
            batch=options.batch,
            workers=options.threads or usable_cores(),
            max_pixels=options.max_pixels,
            sixteen_bit=options.sixteen_bit,
            draft=options.draft,
        )

    def _embed_pixels(
        self,
        items: tuple[Item, ...],
        data: Any,  # noqa: ANN401  # pyarrow's
        on_unreadable: Callable[[Unreadable], None],
    ) -> Iterator[Embedded]:
        manifest = self._session.manifest
        how = manifest.preprocessing
        pixels = np.frombuffer(data, np.uint8).reshape(len(items), *how.crop, 3)
        inputs = self._normalizers.map(functools.partial(as_input, how=how), pixels)
        size = chosen_batch(manifest, self._options.batch)
        return embed_decoded(self._session, zip(items, inputs, strict=True), on_unreadable, size)


def write(table: Any, folder: Path, origin: Mapping[str, Any], moved: Moved) -> Any:  # noqa: ANN401  # pyarrow's
    """Write the embeddings of the chunks in a table's rows as a part, in `folder`; returns a table with the `Part`."""
    import pyarrow as pa

    return pa.table({_CHUNK: pa.array([pickle.dumps(_written(table, folder, origin, moved))], pa.large_binary())})


def _written(table: Any, folder: Path, origin: Mapping[str, Any], moved: Moved) -> Part:  # noqa: ANN401
    found = [(chunk, data) for chunk, data in chunks_of(table)]
    done = tuple(replace(chunk, items=()) for chunk, _ in found)
    items = [item for chunk, _ in found for item in chunk.items]
    error = next((chunk.error for chunk in done if chunk.error is not None), None)
    if error is not None or not items:
        return Part(None, 0, 0, done, error)
    values = np.concatenate([np.frombuffer(data, np.float32) for chunk, data in found if chunk.items])
    vectors = values.reshape(len(items), -1)
    name = f"{secrets.token_hex(8)}.parquet"  # another one if Ray does it again
    try:
        roots = [moved.recorded(item.root) for item in items]
        write_part(folder / name, Embeddings(roots, [item.path for item in items], vectors), origin)
    except ItaeError as problem:
        return Part(None, 0, 0, done, problem)
    return Part(name, len(items), vectors.shape[1], done)


def as_table(chunk: Chunk, array: Array | None = None) -> Any:  # noqa: ANN401  # pyarrow's
    """A table of one row: the chunk, and the numbers of its images or embeddings, which are not copied."""
    import pyarrow as pa

    numbers = np.zeros(0) if array is None else np.ascontiguousarray(array)
    ends = pa.py_buffer(np.array([0, numbers.nbytes], np.int64))
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(numbers)])
    return pa.table({_CHUNK: pa.array([pickle.dumps(chunk)], pa.large_binary()), _ARRAY: column})


def chunks_of(table: Any) -> Iterator[tuple[Chunk, Any]]:  # noqa: ANN401  # pyarrow's
    """The chunks of a table's rows, and the bytes of their numbers, which are not copied."""
    for chunk, numbers in zip(table.column(_CHUNK), table.column(_ARRAY), strict=True):
        yield pickle.loads(chunk.as_buffer()), numbers.as_buffer()


def parts_of(table: Any) -> Iterator[Part]:  # noqa: ANN401  # pyarrow's
    """The parts of a table's rows."""
    for part in table.column(_CHUNK):
        yield pickle.loads(part.as_buffer())


@functools.cache
def _prepare_pillow() -> None:
    """Prepare a process that decodes, once."""
    silence_pillow()
    keep_freed_memory()
