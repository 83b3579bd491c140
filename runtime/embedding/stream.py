"""From a stream of images to a stream of embeddings: threads decode ahead while the model runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.session import NOT_FINITE, Session, check_names, chosen_batch, stream_padded
from runtime.contract.errors import InputError, one_line
from runtime.contract.manifest import Preprocessing
from runtime.images.decode import MAX_PIXELS, Note, OnNote, keep_freed_memory
from runtime.images.preprocess import preprocess, resized_to
from runtime.sources import load_item
from runtime.sources.item import Entry, Item, Unreadable

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_WAITING_BYTES = 256 << 20
_PATIENCE = 0.1
"""Seconds after which a thread that waits looks whether it is still needed."""


@dataclass(frozen=True)
class Embedded:
    """A batch: n images and their embeddings."""

    roots: list[str]
    paths: list[str]
    vectors: Float32
    """(n, C) float32, every number finite."""
    notes: Mapping[Note, int] = field(default_factory=dict)
    """Number of images that were decoded since the last batch and have a remark, by remark."""


def embed_stream(
    session: Session,
    entries: Iterable[Entry],
    on_unreadable: Callable[[Unreadable], None],
    *,
    batch: int | None = None,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    sixteen_bit: str = "full",
    draft: bool = False,
) -> Iterator[Embedded]:
    """Embed images in the order in which they come, `batch` at a time; the last batch has the rest.

    Args:
        session: the session of a model with an `embedding` output.
        entries: images and unreadable entries; a thread of its own takes them, a few batches ahead.
        on_unreadable: called with images that can't be decoded, or gave NaN or infinity; its errors end the run.
        batch: number of images to run at a time; None for the model's preferred number.
        workers: number of threads that decode.
        max_pixels: larger images are not decoded.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.
        draft: whether large JPEGs may be scaled while they are decoded; see `runtime.images.decode.decode_image`.

    Raises:
        UsageError: the model has no `embedding` output, or takes no such batch.
        CheckError, BackendError: as `Session.stream`.
    """
    size = chosen_batch(session.manifest, batch)
    keep_freed_memory()
    notes: deque[Note] = deque()
    decode = functools.partial(
        decode_item,
        how=session.manifest.preprocessing,
        max_pixels=max_pixels,
        sixteen_bit=sixteen_bit,
        on_note=notes.append,
        draft=draft,
    )
    with contextlib.closing(_decoded(entries, decode, workers, ahead=2 * size + workers)) as decoded:
        for one in embed_decoded(session, decoded, on_unreadable, size):
            since = Counter(notes.popleft() for _ in range(len(notes)))  # other threads go on adding
            yield replace(one, notes=since)


def embed_decoded(
    session: Session,
    decoded: Iterable[tuple[Item, Array] | Unreadable],
    on_unreadable: Callable[[Unreadable], None],
    size: int,
) -> Iterator[Embedded]:
    """Embed images that are decoded, in their order, `size` at a time; the last batch has the rest.

    Args:
        session: the session of a model with an `embedding` output.
        decoded: images as the model takes them, and what can't be read.
        on_unreadable: called with what can't be read, or gave NaN or infinity; its errors end the run.
        size: from `chosen_batch`.

    Raises:
        UsageError: the model has no `embedding` output.
        CheckError, BackendError: as `Session.stream`.
    """
    check_names(session.manifest, ["embedding"])
    batches = _Batches(decoded, on_unreadable, size)
    for outputs in stream_padded(session, batches, ["embedding"]):
        items = batches.running.popleft()
        vectors = outputs["embedding"]
        good = np.asarray(np.isfinite(vectors).all(axis=1), np.bool_)
        for row in np.flatnonzero(~good):
            on_unreadable(Unreadable(items[row].root, items[row].path, NOT_FINITE))
        kept = [item for item, is_good in zip(items, good, strict=True) if is_good]
        yield Embedded([item.root for item in kept], [item.path for item in kept], vectors[good])


def decode_item(
    item: Item, how: Preprocessing, max_pixels: int, sixteen_bit: str, on_note: OnNote, *, draft: bool = False
) -> tuple[Item, Array] | Unreadable:
    """Decode an image as the model takes it, or return the reason why it can't be decoded.

    Args:
        item: the image; the one that is returned is without its content.
        how: of the model.
        max_pixels: larger images are not decoded.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.
        on_note: called with each remark on an image that is decoded.
        draft: whether a large JPEG may be scaled while it is decoded.
    """
    notes: list[Note] = []
    wanted = functools.partial(resized_to, how=how) if draft else None
    try:
        prepared = preprocess(load_item(item, max_pixels, sixteen_bit, notes.append, wanted), how)
    except InputError as error:
        return Unreadable(item.root, item.path, one_line(error))
    except MemoryError:
        return Unreadable(item.root, item.path, "there is not enough memory to decode it")
    for note in notes:
        on_note(note)
    return Item(item.root, item.path), prepared


def silence_pillow() -> None:
    """Keep Pillow's warnings about odd files off stderr in this process; we report unreadable files ourselves."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


class _Batches:
    """Stacks decoded images into batches; `running` holds the images of those that were taken, oldest first."""

    def __init__(
        self,
        decoded: Iterable[tuple[Item, Array] | Unreadable],
        on_unreadable: Callable[[Unreadable], None],
        size: int,
    ) -> None:
        self.running: deque[list[Item]] = deque()
        self._decoded, self._on_unreadable = decoded, on_unreadable
        self._size = size

    def __iter__(self) -> Iterator[Array]:
        items: list[Item] = []
        arrays: list[Array] = []
        for entry in self._decoded:
            if isinstance(entry, Unreadable):
                self._on_unreadable(entry)
                continue
            items.append(entry[0])
            arrays.append(entry[1])
            if len(items) == self._size:
                self.running.append(items)
                yield np.stack(arrays)
                items, arrays = [], []
        if items:
            self.running.append(items)
            yield np.stack(arrays)


_END = object()


def _decoded(
    entries: Iterable[Entry], decode: Callable[[Item], tuple[Item, Array] | Unreadable], workers: int, ahead: int
) -> Generator[tuple[Item, Array] | Unreadable]:
    """Decode images by threads, at most `ahead` of them before they are asked for; give them in their order."""
    waiting: queue.Queue[Any] = queue.Queue(ahead)
    is_over = threading.Event()
    room = _Room(_WAITING_BYTES)
    pool = ThreadPoolExecutor(workers, "decode")

    def put(what: object) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(what, timeout=_PATIENCE)
                return

    def feed() -> None:
        last: object = _END
        try:
            for entry in entries:
                if isinstance(entry, Item):
                    size = len(entry.data or b"")
                    while not room.take(size) and not is_over.is_set():
                        pass
                    future = pool.submit(decode, entry)
                    future.add_done_callback(functools.partial(room.give, size))
                    put(future)
                else:
                    put(entry)
                if is_over.is_set():
                    return
        except BaseException as error:  # of the source: raised where its images are asked for
            last = error
        put(last)

    feeder = threading.Thread(target=feed, name="source", daemon=True)  # it may hang in a read of standard input
    feeder.start()
    try:
        while (entry := waiting.get()) is not _END:
            if isinstance(entry, BaseException):
                raise entry
            yield entry.result() if isinstance(entry, Future) else entry
    finally:
        is_over.set()
        pool.shutdown(wait=False, cancel_futures=True)
        feeder.join(10 * _PATIENCE)


class _Room:
    """Bytes of files that may wait to be decoded; a larger file waits until it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> bool:
        """Take room for a file, and say whether there was some within `_PATIENCE`."""
        with self._changed:
            is_free = self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit, _PATIENCE)
            self._used += size if is_free else 0
            return is_free

    def give(self, size: int, _: object) -> None:
        """Give it back."""
        with self._changed:
            self._used -= size
            self._changed.notify()
