"""How much memory of a GPU is in use, asked of NVIDIA's management library, which needs no context on the GPU."""

from __future__ import annotations

import contextlib
import ctypes

_LIBRARY = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_device_memory(device: int = 0) -> int | None:
    """Bytes in use on a GPU, by whichever program; None if there is no GPU, driver or management library.

    `device` counts as the management library does: by the bus, whatever CUDA_VISIBLE_DEVICES says.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
        if library.nvmlInit_v2() != 0:
            return None
    except (OSError, AttributeError):
        return None
    handle, memory = ctypes.c_void_p(), _Memory()
    with contextlib.ExitStack() as stack:
        stack.callback(library.nvmlShutdown)
        if library.nvmlDeviceGetHandleByIndex_v2(device, ctypes.byref(handle)) != 0:
            return None
        if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
            return None
    return int(memory.used)
