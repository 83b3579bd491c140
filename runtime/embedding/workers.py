"""One worker process per device: each asks for images when it needs some, and sends embeddings back."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from runtime.backends import open_session
from runtime.backends.session import Session
from runtime.contract.errors import BackendError, ItaeError, one_line
from runtime.embedding.stream import Embedded, embed_stream, silence_pillow
from runtime.sources.item import Entry, Item, Unreadable

_log = logging.getLogger(__name__)
_CHUNK = 8
"""Images handed out at a time: few, so that at the end no device waits for another."""
_JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class WorkerOptions:
    """The options with which a worker loads the model and embeds; they are sent to its process."""

    model: Path
    provider: str
    compute: str | None
    verify_hash: bool
    batch: int | None
    workers: int
    """Number of threads that decode for one device."""
    threads: int | None
    """Threads of the model on a CPU, of one device; the backend's own choice if None."""
    max_pixels: int
    sixteen_bit: str
    draft: bool = False

    def open_session(self, device: int = 0) -> Session:
        """Load the model; raises as `runtime.backends.open_session`."""
        return open_session(
            self.model,
            self.provider,
            compute=self.compute,
            device=device,
            threads=self.threads,
            verify_hash=self.verify_hash,
        )


@dataclass(frozen=True)
class _More:
    """A worker asks for images."""


@dataclass(frozen=True)
class _Warning:
    """A warning in a worker's log."""

    text: str


@contextlib.contextmanager
def device_workers(devices: Sequence[int | None], options: WorkerOptions) -> Iterator[Workers]:
    """Start a worker for each device (None: the CPU) and end them all at the end.

    Raises:
        BackendError: a worker can't be started.
        ItaeError: a worker can't load the model; the same as in one process.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the threads and the CUDA of this process
    members: list[tuple[SpawnProcess, Connection]] = []
    try:
        resource_tracker.ensure_running()  # which unblocks signals after its own start
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, device, options), daemon=True)
            with _blocked(signal.SIGINT):  # which it inherits: Ctrl-C while it imports would print a traceback
                try:
                    process.start()
                except OSError as error:
                    place = "cpu" if device is None else str(device)
                    reason = error.strerror or one_line(error)
                    raise BackendError(f"the worker of device {place} can't be started ({reason})") from error
            theirs.close()  # so that its end is seen here
            members.append((process, ours))
        yield Workers(members, devices)
    finally:
        for _, connection in members:
            connection.close()  # a worker that reads or writes ends by that
        for process, _ in members:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Let a signal of this thread wait until the block's end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """Running workers; an `embedder.Embedder`, to be called once."""

    def __init__(self, members: Sequence[tuple[SpawnProcess, Connection]], devices: Sequence[int | None]) -> None:
        self._warned: set[str] = set()
        """Warnings that were shown: what is true of a model every worker finds."""
        self._processes = {connection: process for process, connection in members}
        self._names = {
            connection: "cpu" if device is None else str(device)
            for (_, connection), device in zip(members, devices, strict=True)
        }

    def __call__(self, entries: Iterator[Entry], on_unreadable: Callable[[Unreadable], None]) -> Iterator[Embedded]:
        """Hand out images as workers ask for them; give batches as they come, of any device.

        Raises:
            BackendError: a worker died.
            ItaeError: what a worker raised.
        """
        busy = set(self._processes)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                message = self._receive(ready)
                if isinstance(message, _More):
                    chunk = _chunk(entries, on_unreadable)
                    with contextlib.suppress(OSError):  # it died: the next read tells
                        ready.send(chunk)
                elif isinstance(message, Embedded):
                    yield message
                elif isinstance(message, _Warning):
                    if message.text not in self._warned:
                        self._warned.add(message.text)
                        _log.warning("%s", message.text)
                elif isinstance(message, Unreadable):
                    on_unreadable(message)
                elif isinstance(message, ItaeError):
                    raise message
                else:
                    busy.remove(ready)

    def _receive(self, connection: Connection) -> Any:  # noqa: ANN401  # one of six
        try:
            return connection.recv()
        except (EOFError, OSError):
            process = self._processes[connection]
            process.join(_JOIN_SECONDS)
            code = process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise BackendError(
                f"the worker of device {self._names[connection]} died ({how}): the same command goes on from here; "
                "if that is SIGKILL, memory ran out: take a smaller --batch or fewer devices"
            ) from None


def _chunk(entries: Iterator[Entry], on_unreadable: Callable[[Unreadable], None]) -> list[Item]:
    """The next images; none at the end."""
    items: list[Item] = []
    for entry in entries:
        if isinstance(entry, Unreadable):
            on_unreadable(entry)
            continue
        items.append(entry)
        if len(items) == _CHUNK:
            break
    return items


def _work(connection: Connection, device: int | None, options: WorkerOptions) -> None:
    """A worker's process: from images asked for to embeddings sent; ends when the other side does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends the work
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            connection.send(message)

    hearing = logging.Handler(logging.WARNING)
    hearing.emit = lambda record: send(_Warning(record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger("runtime").addHandler(hearing)

    def entries() -> Iterator[Entry]:
        while True:
            send(_More())
            chunk: list[Item] = connection.recv()
            if not chunk:
                return
            yield from chunk

    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        try:
            silence_pillow()
            with contextlib.closing(options.open_session(device or 0)) as session:
                for batch in embed_stream(
                    session,
                    entries(),
                    send,
                    batch=options.batch,
                    workers=options.workers,
                    max_pixels=options.max_pixels,
                    sixteen_bit=options.sixteen_bit,
                    draft=options.draft,
                ):
                    send(batch)
            send(None)
        except ItaeError as error:
            send(error)
