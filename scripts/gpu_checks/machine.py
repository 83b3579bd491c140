"""The libraries and GPUs of this machine, and the target of the checks that follows from them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any, Literal

from exporter.models.architecture import Architecture, architecture
from runtime.contract.driver import Driver
from runtime.contract.errors import BackendError
from runtime.contract.manifest import HardwareCompatibility
from runtime.contract.tensorrt import AMPERE, RTX_CAPABILITIES, LibraryName, import_library, version_pair

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "bf16")
"""The most valuable first: fp16 is the default of engines."""
TINY = Architecture("tiny", width=128, heads=2, depth=3)
"""The model of the dry run."""


@dataclass(frozen=True)
class Road:
    """One way to run exported models."""

    name: str
    """`tensorrt`, `tensorrt-rtx`, `cuda` or `cpu`; the last two are ONNX Runtime."""
    library: LibraryName | None = None
    """The builder of its engines; None if it runs ONNX files."""
    problem: str | None = None
    """Why it can't be run here; None if it can."""
    lacks: dict[str, str] = field(default_factory=dict)
    """By precision that it does not have: why."""

    @property
    def suffix(self) -> str:
        """The ending of its models."""
        return ".onnx" if self.library is None else ".engine"

    @property
    def provider(self) -> str:
        """The provider of `open_session`."""
        return self.name if self.library is None else "auto"


@dataclass(frozen=True)
class Target:
    """Devices, sizes and limits of the checks: all that a dry run has otherwise is here."""

    dry: bool
    device: Literal["cuda", "cpu"]
    """The device of PyTorch."""
    gpu: str
    """Its name, or what stands in for it."""
    roads: tuple[Road, ...]
    no_torch: str | None
    """Why PyTorch can't compute on the device; None if it can."""
    sizes: tuple[Architecture, ...]
    """The smallest first."""
    image_size: int
    batch: tuple[int, int, int]
    bench_batches: tuple[int, ...]
    bench_rounds: int
    pictures: int
    """On which models are compared."""
    points: int
    """That k-means clusters."""
    longest: float
    """Seconds that one check may last."""
    weights: str = "random:0"
    travels: HardwareCompatibility = "none"
    """The widest range of GPUs that an engine built here can be for; `none` where none is built."""


def survey() -> dict[str, Any]:
    """Look around, in a process of its own: the machine as `doctor` has it, and PyTorch's view of the GPU."""
    from dataclasses import asdict

    from runtime.checks.doctor import look_around

    found = asdict(look_around())
    found["torch"] = _torch()
    found["libraries"] = {name: _library(name) for name in ("tensorrt", "tensorrt-rtx")}
    return found


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"version": None, "cuda": None, "problem": f"PyTorch does not load: {error}"}
    problem = None
    if torch.version.cuda is None:
        problem = f"PyTorch {torch.__version__} is built without CUDA"
    elif not torch.cuda.is_available():
        problem = f"PyTorch {torch.__version__}, for CUDA {torch.version.cuda}, sees no GPU"
    return {"version": torch.__version__, "cuda": torch.version.cuda, "problem": problem}


def _library(name: LibraryName) -> str | None:
    """The reason why a library of TensorRT can't be used; None if it can."""
    try:
        import_library(name, "this check")
    except BackendError as error:
        return str(error)
    return None


def gpu_target(found: dict[str, Any], driver: Driver) -> Target:
    """The target on a machine with a GPU."""
    gpu = driver.gpus[0]
    rtx = found["libraries"]["tensorrt-rtx"]
    if gpu.compute_capability not in RTX_CAPABILITIES:
        rtx = f"TensorRT-RTX does not support {gpu}: only {', '.join(RTX_CAPABILITIES)}"
    providers = found["onnxruntime_providers"]
    no_cuda = None if "CUDAExecutionProvider" in providers else "onnxruntime-gpu is not installed"
    return Target(
        dry=False,
        device="cuda",
        gpu=str(gpu),
        roads=(
            Road("tensorrt", "tensorrt", found["libraries"]["tensorrt"]),
            Road("tensorrt-rtx", "tensorrt-rtx", rtx),
            Road("cuda", None, no_cuda),
        ),
        no_torch=found["torch"]["problem"],
        sizes=tuple(architecture(name) for name in ("vits14", "vitb14", "vitl14")),
        image_size=224,
        batch=(1, 8, 64),
        bench_batches=(1, 8, 32),
        bench_rounds=24,
        pictures=100,
        points=200_000,
        longest=1800,
        travels="ampere-plus" if version_pair(gpu.compute_capability) >= AMPERE else "same-compute-capability",
    )


def dry_target() -> Target:
    """The target of a dry run: ONNX Runtime on the CPU in place of the GPU, and a small model."""
    no_bf16 = {"bf16": "ONNX Runtime's CPU has no bf16"}
    return Target(
        dry=True,
        device="cpu",
        gpu="none: a dry run on the CPU",
        roads=(Road("cpu", None, None, no_bf16),),
        no_torch=None,
        sizes=(TINY,),
        image_size=56,
        batch=(1, 2, 4),
        bench_batches=(1,),
        bench_rounds=3,
        pictures=100,
        points=4000,
        longest=300,
    )


def builds_rtx_here() -> bool:
    """Whether TensorRT-RTX is installed, which builds without a GPU."""
    return importlib.util.find_spec("tensorrt_rtx") is not None
