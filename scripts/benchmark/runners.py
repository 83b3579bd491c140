"""Runners of a contestant inside its worker: `put` a batch, `run` it as often as wanted, `get` the embeddings.

`run` alone is timed. On a CPU the batch is an array, as a user has it; on a GPU it lies there already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from exporter.models.architecture import Architecture
from scripts.benchmark.contestants import WEIGHTS, Contestant
from scripts.benchmark.prepare import OUTPUTS

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """The work of a worker: what to load, and on which device."""

    contestant: Contestant
    arch: Architecture
    path: Path | None
    threads: int


class Runner(Protocol):
    """A loaded model."""

    version: str
    """The library that runs the contestant, with its version."""

    def put(self, batch: Float32) -> None:
        """Take a batch (B, 3, H, W), normalised."""

    def run(self) -> None:
        """Compute the batch's embeddings; done when it returns."""

    def get(self) -> Float32:
        """The embeddings (B, C) of the last run."""


class Ours:
    """Our file as `python -m runtime` runs it, with its checks of every batch."""

    def __init__(self, job: Job, provider: str = "auto") -> None:
        from runtime.backends import open_session

        assert job.path is not None
        self._session = open_session(job.path, provider)
        self.version = self._session.name

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._batch = batch

    def run(self) -> None:  # noqa: D102
        self._embedding = self._session.run(self._batch, ("embedding",))["embedding"]

    def get(self) -> Float32:  # noqa: D102
        return self._embedding


class OnnxRuntime:
    """transformers' export on ONNX Runtime with everything by default, which is one thread per core."""

    def __init__(self, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(job.path), options, providers=["CPUExecutionProvider"])
        self.version = f"ONNX Runtime {onnxruntime.__version__} (CPU)"

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._feed = {"pixel_values": batch}

    def run(self) -> None:  # noqa: D102
        (self._tokens,) = self._session.run([OUTPUTS[0]], self._feed)

    def get(self) -> Float32:  # noqa: D102
        return np.asarray(self._tokens[:, 0])


class OpenVino:
    """transformers' export on OpenVINO, with the settings that our files get there; in bf16 by its own default."""

    def __init__(self, job: Job) -> None:
        from runtime.backends.openvino import SETTINGS, compute_of, import_openvino
        from scripts.benchmark.worker import Refused

        openvino = import_openvino()
        precision = job.contestant.precision
        own_default = {name: value for name, value in SETTINGS.items() if name != "INFERENCE_PRECISION_HINT"}
        compiled = openvino.Core().compile_model(str(job.path), "CPU", SETTINGS if precision == "fp32" else own_default)
        if (found := compute_of(compiled)) != precision:
            raise Refused(f"OpenVINO computes in {found} here, not in {precision}")
        self._request = compiled.create_infer_request()
        self.version = f"OpenVINO {openvino.get_version().partition('-')[0]}"

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._batch = batch

    def run(self) -> None:  # noqa: D102
        self._request.infer({0: self._batch}, share_inputs=True)

    def get(self) -> Float32:  # noqa: D102
        return np.array(self._request.get_tensor(OUTPUTS[0]).data[:, 0])


class Torch:
    """transformers' model with SDPA attention, as it comes or compiled, on the CPU or a GPU."""

    def __init__(self, job: Job) -> None:
        import torch

        from exporter.models import weights

        self._torch = torch
        torch.set_num_threads(job.threads)
        weights.quiet_libraries()
        model: Any = weights.load(job.arch, WEIGHTS).model
        model.set_attn_implementation("sdpa")
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        self._device, self._dtype = job.contestant.device, dtypes[job.contestant.precision]
        model = model.to(self._device, self._dtype)
        compiled = job.contestant.engine == "torch-compile"
        self._model = torch.compile(model, dynamic=False) if compiled else model
        self.version = f"PyTorch {torch.__version__}"

    def put(self, batch: Float32) -> None:  # noqa: D102
        self._batch = self._torch.from_numpy(batch).to(self._device, self._dtype)

    def run(self) -> None:  # noqa: D102
        with self._torch.inference_mode():
            self._embedding = self._model(self._batch).last_hidden_state[:, 0]
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def get(self) -> Float32:  # noqa: D102
        return np.asarray(self._embedding.float().cpu().numpy())


def load(job: Job) -> Runner:
    """Load a contestant.

    Raises:
        Exception: whatever its library raises; a contestant that can't be loaded is left out.
    """
    return RUNNERS[job.contestant.engine](job)


def _openvino(job: Job) -> Runner:
    return Ours(job, "openvino") if job.contestant.ours else OpenVino(job)


def _tensorrt(job: Job) -> Runner:
    from scripts.benchmark.gpu import OnGpu

    return OnGpu(job)


def _onnxruntime_cuda(job: Job) -> Runner:
    from scripts.benchmark.gpu import OnGpu

    return OnGpu(job, "cuda")


def _products(job: Job) -> Runner:
    from scripts.benchmark.products import Products

    return Products(job.arch, job.contestant.precision)


RUNNERS: dict[str, Callable[[Job], Runner]] = {
    "ours": Ours,
    "onnxruntime": OnnxRuntime,
    "openvino": _openvino,
    "torch": Torch,
    "torch-compile": Torch,
    "tensorrt": _tensorrt,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "products": _products,
}
