"""A model on a GPU: batches go in, are computed and come out on three streams, one copied while another is computed.

What computes is a `Program`: an engine of TensorRT, or ONNX Runtime's CUDA provider.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from runtime.backends.gpu import ALIGNMENT, DlpackTensor, Gpu
from runtime.backends.gpu_slot import Slot
from runtime.backends.session import (
    Array,
    Arrays,
    check_batch,
    check_names,
    check_outputs,
    chosen_batch,
    failed,
    image_bytes,
    image_shape,
    padded_size,
    translated,
)
from runtime.backends.tensors import check_tensor, taken
from runtime.contract.errors import UsageError
from runtime.contract.manifest import Manifest, TensorInfo

_KEPT = 2
"""Slots kept for the next batch: as many as one stream uses."""


class Program(Protocol):
    """A model that a GPU computes on a stream. One thread at a time calls it, with the GPU current."""

    name: str

    def enqueue(self, samples: int, addresses: Mapping[str, int], stream: int) -> None:
        """Put the model's run on `stream`.

        Args:
            samples: B, within the model's limits.
            addresses: of the input and of every output, on the GPU, by name.
            stream: as CUDA's libraries take it.

        Raises:
            BackendError: the library refuses.
        """

    def close(self) -> None:
        """Release the model; nothing of it runs any more."""


class GpuSession:
    """A `Session` on a GPU.

    Threads share one program and its stream: a GPU computes one batch after another in any case, and a second
    execution context would take as much memory again. They wait for each other while they put work on the streams, not
    while it is done.
    """

    def __init__(self, manifest: Manifest, gpu: Gpu, load: Callable[[int], Program]) -> None:
        """Load a model on `gpu`.

        Args:
            manifest: the model's, against which its files were checked.
            gpu: where it runs.
            load: makes the program, given the stream that it will run on; called with the GPU current.

        Raises:
            ItaeError: whatever `load` raises.
        """
        self.manifest = manifest
        self.compute = manifest.options.precision  # engines and graphs are strongly typed
        self.device = gpu.number
        self._gpu = gpu
        self._using = threading.Lock()
        self._idle: list[Slot] = []
        with translated(f"{gpu.name} (GPU {gpu.number}) fails"), gpu.current():
            self._streams = [gpu.stream() for _ in range(3)]
            self._copying_in, self._computing, self._copying_out = self._streams
            try:
                self._program: Program | None = load(gpu.address(self._computing))
            except BaseException:
                self._close_streams()
                raise
            self.name = f"{self._program.name} ({gpu.name})"

    def run(self, batch: Array, outputs: Sequence[str] | None = None) -> Arrays:
        """Run a batch; see `Session.run`."""
        return self._finish(self._start(batch, check_names(self.manifest, outputs)), finite=True)

    def stream(self, batches: Iterable[Array], outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Run batches, one being copied while another is computed; see `Session.stream`.

        A batch is asked for before the one before it is done; what an error in it interrupts is given first.
        """
        names = check_names(self.manifest, outputs)
        source = iter(batches)
        pending: deque[Slot] = deque()
        error: Exception | None = None
        try:
            while error is None:
                try:
                    pending.append(self._start(next(source), names))
                except StopIteration:
                    break
                except Exception as raised:  # raised again below
                    error = raised
                if len(pending) == _KEPT:
                    yield self._finish(pending.popleft(), finite=False)
            while pending:
                yield self._finish(pending.popleft(), finite=False)
            if error is not None:
                raise error
        finally:
            for slot in pending:  # the caller asks for no more
                self._settle(slot)

    def run_tensor(self, tensor: DlpackTensor, batch: int | None = None, output: str = "embedding") -> DlpackTensor:
        """Run images that are on this GPU, from where they lie; give `output` (n, ...) there, ready for any stream.

        They are copied, on the GPU, only where a batch begins at an address that TensorRT doesn't take, or where there
        are fewer left than the smallest batch: the last is repeated. NaN and infinity are not looked for.

        Args:
            tensor: (n, ...) as the manifest's input.
            batch: how many to run at a time; the model's preferred number if None.
            output: which one is wanted.

        Raises:
            InputError, UsageError, BackendError: as `run`, and for a tensor of another device.
        """
        (output,) = check_names(self.manifest, [output])
        size = chosen_batch(self.manifest, batch)
        info = next(one for one in self.manifest.outputs if one.name == output)
        with translated(failed(self.name, size)), self._gpu.current():
            slot = self._take(size)
            result = None
            try:
                with self._opened() as program:
                    with taken(self.manifest):
                        view = self._gpu.view(tensor, self._computing)
                    check_tensor(self.manifest, view.shape, view.dtype, contiguous=view.contiguous)
                    samples = view.shape[0]
                    result = self._gpu.device_memory(samples * image_bytes(info), self._computing)
                    for start in range(0, samples, size):
                        count = min(size, samples - start)
                        self._run_piece(program, slot, view.address, result.address, info, start, count)
                    done = self._gpu.mark(self._computing)
                self._gpu.wait(done)
            except BaseException:
                self._settle(slot)
                if result is not None:
                    self._gpu.free(result)
                raise
            self._give(slot)
            return self._gpu.export(result, (samples, *image_shape(info)), info.dtype)

    def _run_piece(
        self, program: Program, slot: Slot, source: int, target: int, info: TensorInfo, start: int, count: int
    ) -> None:
        """Put on the stream: run `count` images from `start` on, from memory at `source` into that at `target`."""
        gpu, stream = self._gpu, self._computing
        name, row, result_row = self.manifest.input.name, image_bytes(self.manifest.input), image_bytes(info)
        samples = padded_size(self.manifest, count)
        addresses = slot.addresses()
        here, there = source + start * row, target + start * result_row
        if samples == count and here % ALIGNMENT == 0:
            addresses[name] = here
        else:
            gpu.copy(addresses[name], here, count * row, stream)
            for missing in range(count, samples):
                gpu.copy(addresses[name] + missing * row, here + (count - 1) * row, row, stream)
        in_place = samples == count and there % ALIGNMENT == 0
        if in_place:
            addresses[info.name] = there
        program.enqueue(samples, addresses, gpu.address(stream))
        if not in_place:
            gpu.copy(there, addresses[info.name], count * result_row, stream)

    def close(self) -> None:
        """Release the model and its memory, after what runs; a second call does nothing."""
        with self._using:
            if self._program is None:
                return
            program, self._program = self._program, None
            with translated(f"{self.name} fails to close"), self._gpu.current():
                self._wait_for_all()
                program.close()
                for slot in self._idle:
                    slot.free()
                self._idle.clear()
                self._close_streams()

    def _start(self, batch: Array, names: tuple[str, ...]) -> Slot:
        """Put a batch's way on the streams: in, through the program, out."""
        check_batch(self.manifest, batch)
        gpu = self._gpu
        with translated(failed(self.name, len(batch))), gpu.current():
            slot = self._take(len(batch))
            try:
                source = slot.tensors[self.manifest.input.name]
                np.copyto(source.array(len(batch)), batch)
                with self._opened() as program:
                    source.copy_in(len(batch), self._copying_in)
                    gpu.after(self._computing, gpu.mark(self._copying_in))
                    program.enqueue(len(batch), slot.addresses(), gpu.address(self._computing))
                    gpu.after(self._copying_out, gpu.mark(self._computing))
                    for name in names:
                        slot.tensors[name].copy_out(len(batch), self._copying_out)
                    slot.done = gpu.mark(self._copying_out)
                slot.samples, slot.names = len(batch), names
            except BaseException:
                self._settle(slot)
                raise
        return slot

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Program]:
        """A block that puts work on the streams, alone, and during which the session can't be closed."""
        with self._using:
            if self._program is None:
                raise UsageError("the session is closed")
            yield self._program

    def _finish(self, slot: Slot, *, finite: bool) -> Arrays:
        """Wait for a batch, and give what came out."""
        samples = slot.samples  # once it is given back, another thread's batch may be in the slot
        with translated(failed(self.name, samples)), self._gpu.current():
            try:
                self._gpu.wait(slot.done)
                # Copies: the next batch overwrites the slot.
                results = {name: slot.tensors[name].array(samples).copy() for name in slot.names}
            except BaseException:
                self._settle(slot)
                raise
            self._give(slot)
        check_outputs(self.manifest, samples, results, finite=finite)
        return results

    def _take(self, samples: int) -> Slot:
        """A slot that no batch is in, with room for `samples` images."""
        with self._opened():
            slot = self._idle.pop() if self._idle else Slot(self._gpu, self.manifest)
            try:
                if slot.grow(samples, self._copying_in):
                    self._gpu.wait(self._gpu.mark(self._copying_in))  # the other streams may use it then
            except BaseException:
                slot.free()
                raise
        return slot

    def _give(self, slot: Slot) -> None:
        """Take back a slot whose batch is done."""
        with self._using:
            if self._program is not None and len(self._idle) < _KEPT:
                self._idle.append(slot)
                return
        slot.free()

    def _settle(self, slot: Slot) -> None:
        """Give back a slot whose batch nobody waits for any more, once nothing touches it."""
        with contextlib.suppress(Exception), self._gpu.current():  # the error that led here is the one to tell
            with self._using:
                if self._program is not None:  # else `close` waited
                    self._wait_for_all()
            self._give(slot)

    def _wait_for_all(self) -> None:
        for stream in self._streams:
            self._gpu.wait(self._gpu.mark(stream))

    def _close_streams(self) -> None:
        for stream in self._streams:
            self._gpu.close_stream(stream)
