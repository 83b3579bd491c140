"""Whether there is an NVIDIA GPU, asked of the driver itself, before any library that crashes without one."""

from __future__ import annotations

import ctypes

from runtime.contract.errors import BackendError

DRIVER_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""


def require_gpu(what: str) -> int:
    """The number of GPUs, at least one; `what` needs them and begins the message.

    TensorRT segfaults where there is none, so nothing of it may be touched before this.

    Raises:
        BackendError: there is no driver, it does not start, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
        start, count_devices = driver.cuInit, driver.cuDeviceGetCount
    except (OSError, AttributeError) as error:
        raise BackendError(f"{what} needs an NVIDIA GPU, and there is no driver here ({DRIVER_LIBRARY})") from error
    count = ctypes.c_int(0)
    status = int(start(0)) or int(count_devices(ctypes.byref(count)))
    if status not in (0, _NO_DEVICE):
        raise BackendError(f"{what} needs an NVIDIA GPU, and the driver here fails: CUDA error {status}")
    if status == _NO_DEVICE or count.value < 1:
        raise BackendError(f"{what} needs an NVIDIA GPU, and the driver here finds none")
    return count.value
