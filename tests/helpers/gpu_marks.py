"""The engines that a machine with a GPU can run, and why others are skipped there."""

from __future__ import annotations

import importlib.util

import pytest

from runtime.contract.driver import read_driver
from runtime.contract.errors import BackendError
from runtime.contract.tensorrt import RTX_CAPABILITIES

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None, reason="pip install tensorrt, beside everything else, to try it"
)


def rtx_refuses() -> str | None:
    """The reason why the first GPU can't run engines of TensorRT-RTX; None if it can, or if there is no GPU."""
    try:
        gpu = read_driver().gpus[0]
    except BackendError:
        return None  # then the tests fail: they were asked for
    if gpu.compute_capability in RTX_CAPABILITIES:
        return None
    return f"TensorRT-RTX does not support {gpu}: only {', '.join(RTX_CAPABILITIES)}"


needs_rtx = pytest.mark.skipif(rtx_refuses() is not None, reason=rtx_refuses() or "")
ENGINES = [pytest.param("tensorrt", marks=needs_tensorrt), pytest.param("tensorrt-rtx", marks=needs_rtx)]
