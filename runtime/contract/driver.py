"""NVIDIA's driver and its GPUs, asked of the driver's own libraries before any library that crashes without them."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any

from runtime.contract.errors import BackendError

_DRIVER = "libcuda.so.1"
_MANAGEMENT = "libnvidia-ml.so.1"
_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""
_NAME_BYTES = 256
_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, cuda.h."""


@dataclass(frozen=True)
class GpuInfo:
    """A GPU as the driver describes it."""

    number: int
    name: str
    compute_capability: str
    """`9.0`."""
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs, at least one."""

    version: str | None
    """`580.82.07`; None if its management library is missing."""
    cuda: str
    """The newest CUDA that it runs: `13.0`."""
    gpus: tuple[GpuInfo, ...]


def require_gpu(what: str) -> int:
    """Return the number of GPUs, at least one.

    TensorRT segfaults where there is none, so nothing of it may be touched before this.

    Args:
        what: what needs a GPU; the message begins with it.

    Raises:
        BackendError: there is no driver, it does not start, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
        start, count_devices = driver.cuInit, driver.cuDeviceGetCount
    except (OSError, AttributeError) as error:
        raise BackendError(f"{what} needs an NVIDIA GPU, and there is no driver here ({_DRIVER})") from error
    count = ctypes.c_int(0)
    status = int(start(0)) or int(count_devices(ctypes.byref(count)))
    if status not in (0, _NO_DEVICE):
        raise BackendError(f"{what} needs an NVIDIA GPU, and the driver here fails: CUDA error {status}")
    if status == _NO_DEVICE or count.value < 1:
        raise BackendError(f"{what} needs an NVIDIA GPU, and the driver here finds none")
    return count.value


def read_driver() -> Driver:
    """Return the driver of this machine and its GPUs.

    Raises:
        BackendError: there is none, or no GPU, or it fails.
    """
    count = require_gpu("CUDA")
    library = ctypes.CDLL(_DRIVER)
    cuda = ctypes.c_int(0)
    _call(library, "cuDriverGetVersion", ctypes.byref(cuda))
    gpus = tuple(_read_gpu(library, number) for number in range(count))
    return Driver(_driver_version(), f"{cuda.value // 1000}.{cuda.value % 1000 // 10}", gpus)


def _read_gpu(library: Any, number: int) -> GpuInfo:  # noqa: ANN401  # a library of C
    device = ctypes.c_int(0)
    _call(library, "cuDeviceGet", ctypes.byref(device), number)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    memory = ctypes.c_size_t(0)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    parts = [ctypes.c_int(0) for _ in _CAPABILITY]
    for part, attribute in zip(parts, _CAPABILITY, strict=True):
        _call(library, "cuDeviceGetAttribute", ctypes.byref(part), attribute, device)
    capability = ".".join(str(part.value) for part in parts)
    return GpuInfo(number, name.value.decode(errors="replace"), capability, memory.value)


def _call(library: Any, function: str, *arguments: object) -> None:  # noqa: ANN401
    status = int(getattr(library, function)(*arguments))
    if status:
        raise BackendError(f"the driver here fails: CUDA error {status} of {function}")


def _driver_version() -> str | None:
    text = ctypes.create_string_buffer(_NAME_BYTES)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_MANAGEMENT)
        if library.nvmlInit_v2() == 0:
            status = library.nvmlSystemGetDriverVersion(text, _NAME_BYTES)
            library.nvmlShutdown()
            if status == 0:
                return text.value.decode(errors="replace")
    return None
