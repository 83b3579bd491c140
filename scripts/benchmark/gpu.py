"""Code that is only used on a machine with an NVIDIA GPU. Never run yet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exporter.models.architecture import Architecture
from runtime.backends.gpu_session import GpuSession
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
    """The dense peak of a GPU, by the longest name in the table that fits; None if no name does."""
    words = gpu.replace("-", " ").split()
    fits = [name for name in PEAK_TFLOPS if all(part in words for part in name.split())]
    return PEAK_TFLOPS[max(fits, key=len)] if fits else None


def flops_per_image(arch: Architecture) -> float:
    """Floating-point operations of plain DINOv2 on one image, two for a multiply-add, without norms and GELU."""
    P = (IMAGE_SIZE // arch.patch) ** 2
    N, C = arch.prefix + P, arch.width
    mlp = (3 if arch.swiglu else 2) * C * arch.mlp_width
    block = 2 * N * (4 * C * C + mlp) + 4 * N * N * C
    return float(2 * P * 3 * arch.patch**2 * C + arch.depth * block)


def gpu_name() -> str:
    """The name of the first GPU."""
    import torch

    return str(torch.cuda.get_device_name(0))


class OnGpu:
    """Our file as `python -m runtime` runs it on a GPU, input and output there: an engine, or ONNX on CUDA."""

    def __init__(self, job: Job, provider: str = "auto") -> None:
        import torch

        from runtime.backends import open_session

        assert job.path is not None
        self._torch = torch
        session = open_session(job.path, provider)
        assert isinstance(session, GpuSession)
        self._session = session
        self.version = session.name

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._batch = self._torch.from_numpy(batch).cuda()

    def run(self) -> None:  # noqa: D102
        self._embedding = self._session.run_tensor(self._batch, len(self._batch))

    def get(self) -> Float32:  # noqa: D102
        return np.asarray(self._torch.from_dlpack(self._embedding).cpu().numpy())
