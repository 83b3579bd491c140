"""TensorRT and TensorRT-RTX: so far, whether an engine could run here, and a clear no."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NoReturn

from runtime.backends.cuda import require_gpu
from runtime.errors import BackendError
from runtime.manifest import Manifest

_MODULE = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRA = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


def open_engine(model: Path, manifest: Manifest) -> NoReturn:
    """Refuse an engine, for the first of the reasons: no driver, no GPU, no library, no code to run it yet.

    Raises:
        BackendError: always.
    """
    builder = manifest.builder.name
    twin = "export the .onnx twin to run on the CPU"
    try:
        require_gpu(f"{model} ({builder})")
    except BackendError as error:
        raise BackendError(f"{error}; take it to a machine with one, or {twin}") from error
    if importlib.util.find_spec(_MODULE[builder]) is None:
        raise BackendError(f"{model} needs {builder}: pip install 'itae[{_EXTRA[builder]}]'; or {twin}")
    raise BackendError(f"{model}: running engines comes in a later version; until then {twin}")
