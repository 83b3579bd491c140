"""Where a batch lives on its way through a GPU."""

from __future__ import annotations

from runtime.backends.gpu import Gpu, Handle, Memory
from runtime.backends.session import Array, image_bytes, image_shape
from runtime.contract.manifest import Manifest, TensorInfo


class Slot:
    """Memory for one batch on its way: the model's input and every output, pinned and on the GPU."""

    def __init__(self, gpu: Gpu, manifest: Manifest) -> None:
        self.tensors = {one.name: _Tensor(gpu, one) for one in (manifest.input, *manifest.outputs)}
        self.samples = 0
        """Number of images in the batch that the slot holds."""
        self.names: tuple[str, ...] = ()
        """Names of the outputs that are wanted."""
        self.done: Handle = None
        """An event that happens when these outputs are in pinned memory."""

    def grow(self, samples: int, stream: Handle) -> bool:
        """Make room for `samples` images; returns whether the GPU's memory is new on `stream`, since there was none."""
        grown = [tensor.grow(samples, stream) for tensor in self.tensors.values()]
        return any(grown)

    def addresses(self) -> dict[str, int]:
        """The GPU's memory, by name."""
        return {name: tensor.device.address for name, tensor in self.tensors.items() if tensor.device is not None}

    def free(self) -> None:
        """Give all of it back."""
        for tensor in self.tensors.values():
            tensor.free()


class _Tensor:
    """An input or output of a slot."""

    def __init__(self, gpu: Gpu, info: TensorInfo) -> None:
        self._gpu = gpu
        self._info = info
        self._row = image_bytes(info)
        self.device: Memory | None = None
        self._pinned: Memory | None = None

    def grow(self, samples: int, stream: Handle) -> bool:
        size = samples * self._row
        if self.device is not None and self.device.size >= size:
            return False
        self.free()
        self.device = self._gpu.device_memory(size, stream)
        self._pinned = self._gpu.pinned_memory(size)
        return True

    def array(self, samples: int) -> Array:
        """The pinned memory of the first `samples` images."""
        assert self._pinned is not None
        assert self._pinned.host is not None
        shape = (samples, *image_shape(self._info))
        return self._pinned.host[: samples * self._row].view(self._info.dtype).reshape(shape)

    def copy_in(self, samples: int, stream: Handle) -> None:
        assert self.device is not None
        assert self._pinned is not None
        self._gpu.copy(self.device.address, self._pinned.address, samples * self._row, stream)

    def copy_out(self, samples: int, stream: Handle) -> None:
        assert self.device is not None
        assert self._pinned is not None
        self._gpu.copy(self._pinned.address, self.device.address, samples * self._row, stream)

    def free(self) -> None:
        for memory in (self.device, self._pinned):
            if memory is not None:
                self._gpu.free(memory)
        self.device = self._pinned = None
