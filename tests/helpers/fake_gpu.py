"""A stand-in for a GPU: memory, streams and events in numpy, as strict as a real one.

Work on a stream happens late, and in any order that streams and events allow (seeded). New memory holds random
numbers, and using it after it was freed is an error. So a missing event, or a buffer that is used too early, gives
wrong results.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from runtime.backends.gpu import ALIGNMENT, Memory, View
from runtime.backends.session import image_bytes, image_shape
from runtime.contract.manifest import Manifest


@dataclass(eq=False)
class FakeEvent:
    happened: bool = False


@dataclass(eq=False)
class FakeStream:
    number: int
    waiting: deque = field(default_factory=deque)
    """What it will do: a function, or an event to wait for."""
    closed: bool = False
    favour: float = 1.0
    """How much more often it gets on than others."""


@dataclass
class FakeTensor:
    """A tensor on the fake GPU, by DLPack as far as the fake looks at it."""

    address: int
    array: np.ndarray
    device: tuple[int, int] = (2, 0)
    ready: Callable[[], None] = lambda: None
    """Called when a consumer asks for it, as a producer orders its own stream."""

    def __dlpack__(self, *, stream=None):
        self.ready()
        return self

    def __dlpack_device__(self):
        return self.device


class FakeGpu:
    name = "Fake GPU"

    def __init__(self, seed: int = 0, number: int = 0) -> None:
        self.number = number
        self.log: list[str] = []
        """Who was given back, and who computed, in order."""
        self.streams: list[FakeStream] = []
        self._memory: dict[int, np.ndarray] = {}
        self._next = 1 << 20
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._current = threading.local()

    @contextlib.contextmanager
    def current(self):
        depth = getattr(self._current, "depth", 0)
        self._current.depth = depth + 1
        try:
            yield
        finally:
            self._current.depth = depth

    def _check_current(self) -> None:
        assert getattr(self._current, "depth", 0), "the GPU is not current"

    def stream(self) -> FakeStream:
        self._check_current()
        self.streams.append(FakeStream(len(self.streams), favour=10 ** self._rng.uniform(-2, 2)))
        return self.streams[-1]

    def address(self, stream: FakeStream) -> int:
        return stream.number

    def device_memory(self, size: int, stream: FakeStream) -> Memory:
        memory = self._allocate(size, pinned=False)
        if stream is not None:  # whoever uses it on another stream before this one got here reads rubbish

            def job() -> None:
                memory.handle[:] = 0xCD

            self.put(stream, job)
        return memory

    def pinned_memory(self, size: int) -> Memory:
        return self._allocate(size, pinned=True)

    def _allocate(self, size: int, *, pinned: bool) -> Memory:
        self._check_current()
        with self._lock:
            address = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
            array = self._memory[address] = np.full(size, 0xAB, np.uint8)
        return Memory(address, size, array, array if pinned else None)

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        for start, array in self._memory.items():
            if start <= address and address + size <= start + len(array):
                return array[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are nobody's: freed, or beyond the end")

    def put(self, stream: FakeStream, job) -> None:
        self._check_current()
        assert not stream.closed
        with self._lock:
            stream.waiting.append(job)
            if self._rng.random() < 0.15:  # mostly it only piles up
                self._work(int(self._rng.integers(1, 10)))

    def copy(self, to: int, source: int, size: int, stream: FakeStream) -> None:
        def job() -> None:
            self.bytes_at(to, size)[:] = self.bytes_at(source, size)

        self.put(stream, job)

    def mark(self, stream: FakeStream) -> FakeEvent:
        event = FakeEvent()
        self.put(stream, lambda: setattr(event, "happened", True))
        return event

    def after(self, stream: FakeStream, event: FakeEvent) -> None:
        self.put(stream, event)

    def wait(self, event: FakeEvent) -> None:
        self._check_current()
        with self._lock:
            while not event.happened:
                assert self._work(1), "a thread waits for what nobody will do"

    def _work(self, steps: int) -> int:
        """Do up to `steps` things that streams may do now, each of any of them."""
        done = 0
        for _ in range(steps):
            able = [one for one in self.streams if one.waiting and getattr(one.waiting[0], "happened", True)]
            if not able:
                break
            favour = np.array([one.favour for one in able])
            job = self._rng.choice(able, p=favour / favour.sum()).waiting.popleft()
            if not isinstance(job, FakeEvent):
                job()
            done += 1
        return done

    def free(self, memory: Memory) -> None:
        with self._lock:
            del self._memory[memory.address]
            self.log.append("free memory")

    def close_stream(self, stream: FakeStream) -> None:
        assert not stream.waiting
        stream.closed = True
        self.log.append("close stream")

    def view(self, tensor: FakeTensor, stream: FakeStream) -> View:
        tensor.__dlpack__(stream=stream.number)
        array = tensor.array
        return View(tensor.address, array.shape, array.dtype.name, array.flags.c_contiguous, tensor)

    def export(self, memory: Memory, shape: tuple[int, ...], dtype: str) -> FakeTensor:
        return FakeTensor(memory.address, memory.handle.view(dtype).reshape(shape), (2, self.number))

    def upload(self, array: np.ndarray, offset: int = 0) -> FakeTensor:
        """A caller's own tensor, `offset` bytes into an allocation."""
        with self.current():
            memory = self.device_memory(array.nbytes + offset, None)
        memory.handle[offset:] = np.ascontiguousarray(array).view(np.uint8).ravel()
        return FakeTensor(memory.address + offset, array, (2, self.number))

    @property
    def held(self) -> int:
        """How many pieces of memory were not given back."""
        return len(self._memory)


class FakeProgram:
    """A `Program` that computes by a function of arrays: `compute(batch)` gives every output by name."""

    name = "Fake 1.0"

    def __init__(
        self, gpu: FakeGpu, manifest: Manifest, compute: Callable[[np.ndarray], dict[str, np.ndarray]]
    ) -> None:
        self.gpu, self.manifest, self.compute = gpu, manifest, compute
        self.batches: list[int] = []
        self.inputs: list[int] = []
        """Addresses that the model read from."""
        self.outputs: list[int] = []
        """Addresses that it wrote `embedding` to."""
        self.error: Exception | None = None
        """What the next run fails with."""
        self._busy = threading.Lock()

    def enqueue(self, samples: int, addresses: Mapping[str, int], stream: int) -> None:
        assert self._busy.acquire(blocking=False), "two threads in one execution context"
        try:
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            assert all(address % ALIGNMENT == 0 for address in addresses.values())
            addresses = dict(addresses)
            self.batches.append(samples)
            self.inputs.append(addresses[self.manifest.input.name])
            self.outputs.append(addresses.get("embedding", 0))
            self.gpu.put(self.gpu.streams[stream], lambda: self._compute(samples, addresses))
        finally:
            self._busy.release()

    def _compute(self, samples: int, addresses: Mapping[str, int]) -> None:
        source = self.manifest.input
        raw = self.gpu.bytes_at(addresses[source.name], samples * image_bytes(source))
        results = self.compute(raw.view(source.dtype).reshape(samples, *image_shape(source)).copy())
        for output in self.manifest.outputs:
            target = self.gpu.bytes_at(addresses[output.name], samples * image_bytes(output))
            target[:] = np.ascontiguousarray(results[output.name]).view(np.uint8).ravel()

    def close(self) -> None:
        self.gpu.log.append("close program")
