"""What is only used on a machine with an NVIDIA GPU. Never run yet: written by the libraries' documentation."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.architecture import PATCH, Architecture
from runtime.errors import BackendError
from runtime.manifest import verified_manifest
from scripts.benchmark.prepare import IMAGE_SIZE
from scripts.benchmark.runners import Job

Float32 = npt.NDArray[np.float32]

PEAK_TFLOPS = {
    "V100": 125.0, "T4": 65.0, "A10": 125.0, "A30": 165.0, "A40": 149.7, "A100": 312.0, "L4": 121.0, "L40S": 362.0,
    "L40": 181.0, "H100 PCIe": 756.0, "H100": 989.0, "GH200": 989.0, "H200": 989.0, "B200": 2250.0, "RTX 3090": 71.0,
    "RTX 4090": 165.2, "RTX 5090": 209.5,
}  # fmt: skip
"""Dense float16 with float32 sums, from NVIDIA's data sheets, by a part of the GPU's name."""


def peak_tflops(gpu: str) -> float | None:
    """The dense peak of a GPU by its name, of the longest name that fits; none where it is not in the table."""
    words = gpu.replace("-", " ").split()
    fits = [name for name in PEAK_TFLOPS if all(part in words for part in name.split())]
    return PEAK_TFLOPS[max(fits, key=len)] if fits else None


def flops_per_image(arch: Architecture) -> float:
    """Floating-point operations of plain DINOv2 on one image, two for a multiply-add, without norms and GELU."""
    P = (IMAGE_SIZE // PATCH) ** 2
    N, C = arch.prefix + P, arch.width
    mlp = (3 if arch.swiglu else 2) * C * arch.mlp_width
    block = 2 * N * (4 * C * C + mlp) + 4 * N * N * C
    return float(2 * P * 3 * PATCH * PATCH * C + arch.depth * block)


def gpu_name() -> str:
    """The name of the first GPU."""
    import torch

    return str(torch.cuda.get_device_name(0))


class OnnxRuntimeCuda:
    """An ONNX file of ours on ONNX Runtime's CUDA provider, input and output on the GPU."""

    def __init__(self, job: Job) -> None:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise BackendError("this onnxruntime has no CUDA provider: pip install 'itae[gpu]' in place of 'itae[cpu]'")
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries from torch's wheels
        self._session = onnxruntime.InferenceSession(str(job.path), providers=["CUDAExecutionProvider"])
        if "CUDAExecutionProvider" not in self._session.get_providers():  # only warned of
            raise BackendError("the CUDA provider does not start here")
        self._ort = onnxruntime
        self._binding: Any = self._session.io_binding()
        self.version = f"ONNX Runtime {onnxruntime.__version__} (CUDA)"

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._binding.bind_ortvalue_input("pixel_values", self._ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
        self._binding.bind_output("embedding", "cuda", 0)

    def run(self) -> None:  # noqa: D102
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def get(self) -> Float32:  # noqa: D102
        return np.asarray(self._binding.copy_outputs_to_cpu()[0], np.float32)


class TensorRt:
    """An engine of ours on TensorRT or TensorRT-RTX; torch holds input and output on the GPU."""

    def __init__(self, job: Job) -> None:
        import torch

        assert job.path is not None
        builder = verified_manifest(job.path).builder
        trt = importlib.import_module(builder.name.replace("-", "_"))
        self._torch, self._width = torch, job.arch.width
        self._logger = _quiet_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(job.path.read_bytes())
        if self._engine is None:
            raise BackendError(f"{builder.name} can't load the engine here")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self.version = f"{builder.name} {builder.version}"

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._batch = self._torch.from_numpy(batch).cuda()
        self._embedding = self._torch.empty(len(batch), self._width, dtype=self._torch.float32, device="cuda")
        self._torch.cuda.synchronize()
        if not self._context.set_input_shape("pixel_values", tuple(batch.shape)):
            raise BackendError(f"the engine takes no batch of {len(batch)}")
        self._context.set_tensor_address("pixel_values", self._batch.data_ptr())
        self._context.set_tensor_address("embedding", self._embedding.data_ptr())

    def run(self) -> None:  # noqa: D102
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError("the engine failed")
        self._stream.synchronize()

    def get(self) -> Float32:  # noqa: D102
        return np.asarray(self._embedding.cpu().numpy())


def _quiet_logger(trt: Any) -> Any:  # noqa: ANN401  # TensorRT ships no types
    """TensorRT's own logger prints to stdout."""

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            del severity, message

    return Quiet()
