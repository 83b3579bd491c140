"""ONNX Runtime's CUDA provider, when asked for by name: input and outputs stay on the GPU, bound by their addresses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.backends.checked_model import CheckedModel
from runtime.backends.gpu import open_gpu
from runtime.backends.gpu_session import GpuSession
from runtime.backends.ort import import_onnxruntime, load_model
from runtime.backends.session import image_shape
from runtime.contract.errors import BackendError

_CUDA = "CUDAExecutionProvider"


def open_on_cuda(model: CheckedModel, device: int = 0) -> GpuSession:
    """Load `model` on GPU `device`.

    Raises:
        BackendError: there is no such GPU, ONNX Runtime or cuda-core is not installed, or the model can't be loaded.
        ManifestError, InputError: as `CheckedModel.take_onnx`.
    """
    onnxruntime = import_onnxruntime(str(model.path))
    if _CUDA not in onnxruntime.get_available_providers():
        raise BackendError(f"this onnxruntime has no {_CUDA}: pip uninstall onnxruntime, then pip install 'itae[gpu]'")
    gpu = open_gpu(device, f"{model.path} (--provider cuda)")
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their Python packages, where the system has none
    return GpuSession(model.manifest, gpu, lambda stream: OrtProgram(onnxruntime, model, device, stream))


class OrtProgram:
    """A `Program` by ONNX Runtime's CUDA provider. Never run yet on a GPU: written by ONNX Runtime's documentation."""

    def __init__(self, onnxruntime: Any, model: CheckedModel, device: int, stream: int) -> None:  # noqa: ANN401
        """Load a model that will run on `stream`.

        Raises:
            BackendError: the provider doesn't start here, or the model can't be loaded.
        """
        options = {
            "device_id": str(device),
            "use_tf32": "0",  # on by default, and misses the 1e-4 that an fp32 model is held to
            "user_compute_stream": str(stream),  # so that copies on other streams can wait for it, and it for them
        }
        self._session: Any = load_model(onnxruntime, model, _CUDA, options)
        self._manifest = model.manifest
        self._device = device
        self._run_options: Any = onnxruntime.RunOptions()
        # Who waits is the caller, for the stream; ONNX Runtime would wait for the whole GPU after each run.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.name = f"ONNX Runtime {onnxruntime.__version__} (CUDA)"

    def enqueue(self, samples: int, addresses: Mapping[str, int], stream: int) -> None:
        """Put a run on the stream that it was loaded for; see `Program`."""
        del stream
        session = self._session
        binding = session.io_binding()
        for tensor in (self._manifest.input, *self._manifest.outputs):
            bind = binding.bind_input if tensor is self._manifest.input else binding.bind_output
            shape = (samples, *image_shape(tensor))
            bind(
                tensor.name_in_file,
                "cuda",
                self._device,
                np.dtype(tensor.dtype).type,
                shape,
                addresses[tensor.name],
            )
        session.run_with_iobinding(binding, self._run_options)

    def close(self) -> None:
        """Release the model."""
        self._session = None
