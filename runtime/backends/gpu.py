"""The GPU as a session needs it: memory, streams, events, copies. `Gpu` is the protocol, `CudaGpu` NVIDIA's.

Everything that is CUDA is in this file, by NVIDIA's `cuda-core`; the rest knows addresses and opaque handles.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.backends.session import translated
from runtime.contract.driver import require_gpu
from runtime.contract.errors import BackendError

Handle = Any
"""A stream, an event or memory of the GPU's library; only a `Gpu` looks inside."""

ALIGNMENT = 256
"""Alignment of the addresses that TensorRT takes, in bytes."""


class DlpackTensor(Protocol):
    """A tensor that others take without a copy, by `from_dlpack`."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # noqa: ANN401  # numpy's type asks for no other
        """A capsule with its memory, ready on `stream`."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device."""


@dataclass(frozen=True)
class Memory:
    """A piece of memory that a `Gpu` gave."""

    address: int
    size: int
    """In bytes."""
    handle: Handle
    host: npt.NDArray[np.uint8] | None = None
    """The same memory for the CPU, where it is pinned."""


@dataclass(frozen=True)
class View:
    """Somebody else's tensor on the GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    """numpy's name of it."""
    contiguous: bool
    owner: object
    """Keeps the memory alive."""


class Gpu(Protocol):
    """One GPU. Its methods are called inside `current()`, and raise whatever its library raises."""

    number: int
    name: str

    def current(self) -> AbstractContextManager[None]:
        """A block in which this thread's calls go to this GPU; the thread's own GPU comes back after it."""

    def stream(self) -> Handle:
        """A new stream: what is put on it is done in order, beside what other streams do."""

    def address(self, stream: Handle) -> int:
        """The stream as other libraries take it."""

    def device_memory(self, size: int, stream: Handle) -> Memory:
        """Memory of the GPU, aligned to `ALIGNMENT`, to use from `stream` on."""

    def pinned_memory(self, size: int) -> Memory:
        """Memory of the host that the GPU copies from and to while the CPU does something else."""

    def copy(self, to: int, source: int, size: int, stream: Handle) -> None:
        """Put on `stream`: copy `size` bytes between two addresses, each on the GPU or pinned."""

    def mark(self, stream: Handle) -> Handle:
        """An event that happens when the stream has done what was put on it so far."""

    def after(self, stream: Handle, event: Handle) -> None:
        """Put on `stream`: wait for an event of another."""

    def wait(self, event: Handle) -> None:
        """Let this thread wait for an event."""

    def free(self, memory: Memory) -> None:
        """Give memory back; nothing may use it any more."""

    def close_stream(self, stream: Handle) -> None:
        """Give a stream back."""

    def view(self, tensor: DlpackTensor, stream: Handle) -> View:
        """Look at a tensor of this GPU without a copy; `stream` waits until it is computed."""

    def export(self, memory: Memory, shape: tuple[int, ...], dtype: str) -> DlpackTensor:
        """Memory as a tensor, which gives it back with its last user. What computes it must be done."""


def open_gpu(number: int, what: str) -> Gpu:
    """GPU `number`, as the driver counts; `what` needs it and begins the message.

    Raises:
        BackendError: there is no driver or no such GPU, or cuda-core is not installed or fails.
    """
    count = require_gpu(what)
    if number >= count:
        raise BackendError(f"{what} was to run on GPU {number}, the driver here has {count}, numbered from 0")
    return CudaGpu(number, what)


class CudaGpu:
    """A `Gpu` by `cuda-core`. Never run yet on one: its calls are held to cuda-core's real names and signatures."""

    def __init__(self, number: int, what: str) -> None:
        """Take GPU `number`; `require_gpu` must have been asked before.

        Raises:
            BackendError: cuda-core is not installed, does not load, or finds no such GPU.
        """
        try:
            from cuda import core
            from cuda.bindings import driver
            from cuda.core.utils import StridedMemoryView
        except (ImportError, OSError, RuntimeError) as error:
            hint = "pip install 'itae[gpu]' or 'itae[rtx]'"
            raise BackendError(f"{what} needs the package cuda-core: {hint} ({error})") from error
        self._core = core
        self._driver: Any = driver
        self._strided: Any = StridedMemoryView
        self._pinned: Any = core.LegacyPinnedMemoryResource()  # the newer one needs pools that not every driver has
        self.number = number
        with translated(f"{what}: cuda-core fails on GPU {number}"), self.current():
            self.name = str(core.Device(number).name)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:  # noqa: D102  # the protocol says it
        # The context and not the device: a thread that had none must not get one on GPU 0, which takes memory there.
        driver, device = self._driver, self._core.Device(self.number)  # an object per thread
        status, before = driver.cuCtxGetCurrent()
        if int(status):
            raise BackendError(f"the driver here fails: CUDA error {int(status)} of cuCtxGetCurrent")
        device.set_current()
        try:
            yield
        finally:
            driver.cuCtxSetCurrent(before)

    def stream(self) -> Handle:  # noqa: D102
        device = self._core.Device(self.number)
        return device.create_stream()

    def address(self, stream: Handle) -> int:  # noqa: D102
        return int(stream.handle)

    def device_memory(self, size: int, stream: Handle) -> Memory:  # noqa: D102
        device = self._core.Device(self.number)
        buffer = device.allocate(size, stream=stream)
        return Memory(int(buffer.handle), size, buffer)

    def pinned_memory(self, size: int) -> Memory:  # noqa: D102
        resource = self._pinned
        buffer = resource.allocate(size)
        host = (ctypes.c_uint8 * size).from_address(int(buffer.handle))
        return Memory(int(buffer.handle), size, buffer, np.ctypeslib.as_array(host))

    def copy(self, to: int, source: int, size: int, stream: Handle) -> None:  # noqa: D102
        core = self._core
        # Views of the piece: a buffer copies itself whole.
        buffer = core.Buffer.from_handle(to, size)
        buffer.copy_from(core.Buffer.from_handle(source, size), stream=stream)

    def mark(self, stream: Handle) -> Handle:  # noqa: D102
        # Else the thread that waits keeps a core busy that could decode pictures.
        return stream.record(options=self._core.EventOptions(blocking_sync=True))

    def after(self, stream: Handle, event: Handle) -> None:  # noqa: D102
        stream.wait(event)

    def wait(self, event: Handle) -> None:  # noqa: D102
        event.sync()

    def free(self, memory: Memory) -> None:  # noqa: D102
        buffer = memory.handle
        buffer.close()

    def close_stream(self, stream: Handle) -> None:  # noqa: D102
        stream.close()

    def view(self, tensor: DlpackTensor, stream: Handle) -> View:  # noqa: D102
        view = self._strided.from_dlpack(tensor, stream_ptr=self.address(stream))
        shape = tuple(view.shape)
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        contiguous = view.strides is None or tuple(view.strides) == strides
        return View(int(view.ptr), shape, np.dtype(view.dtype).name, contiguous, view)

    def export(self, memory: Memory, shape: tuple[int, ...], dtype: str) -> DlpackTensor:  # noqa: D102
        tensor: DlpackTensor = self._strided.from_buffer(memory.handle, shape, dtype=np.dtype(dtype))
        return tensor
