"""Backends: what runs a model. One file each, all behind `session.Session`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.contract.errors import UsageError

if TYPE_CHECKING:
    from runtime.backends.session import Session

PROVIDERS = ("auto", "cpu", "cuda", "openvino")
"""What runs an ONNX model: ONNX Runtime on the CPU (`auto` and `cpu`) or on CUDA, or OpenVINO on the CPU."""


def open_session(
    model: Path,
    provider: str = "auto",
    *,
    device: int = 0,
    threads: int | None = None,
    verify_hash: bool = True,
) -> Session:
    """Load a model, after its files were checked against its manifest, on the backend that serves it.

    Args:
        model: `X.onnx`, `X.engine` or `X.plan`, with its manifest beside it.
        provider: one of `PROVIDERS`; engines take `auto` only, they run where they were built for.
        device: the GPU's number, as the driver counts; 0 on a CPU.
        threads: how many one run on a CPU uses; the library's own choice where None, as on a GPU.
        verify_hash: whether the files' SHA-256 are checked; see `verified_manifest` for what it risks not to.

    Raises:
        UsageError: there is no such provider, or not for this kind of model; or it knows no `device` or `threads`.
        ManifestError: the model, its external data or its manifest is missing, altered or too new.
        BackendError: this machine lacks the library, driver or GPU that the model needs.
    """
    from runtime.backends.checked_model import CheckedModel  # here, so that `--help` pays for nothing of it

    if provider not in PROVIDERS:
        raise UsageError(f"no provider {provider!r}: choose from {', '.join(PROVIDERS)}")
    checked = CheckedModel(model, check_hash=verify_hash)
    if checked.is_engine and provider != "auto":
        built_by = checked.manifest.builder.name
        raise UsageError(f"{model} is an engine of {built_by}: it takes no provider {provider!r}")
    on_gpu = checked.is_engine or provider == "cuda"
    if device < 0 or (device and not on_gpu):
        raise UsageError(f"device {device}: must be {'0 or more' if on_gpu else '0 on a CPU'}")
    if threads is not None and (on_gpu or threads < 1):
        raise UsageError(f"threads {threads}: {'a GPU takes no number of threads' if on_gpu else 'must be 1 or more'}")
    if checked.is_engine:
        from runtime.backends.trt import open_engine

        return open_engine(checked, device)
    if provider == "openvino":
        from runtime.backends.openvino import OpenVinoSession

        return OpenVinoSession(checked, threads)
    if provider == "cuda":
        from runtime.backends.ort_cuda import open_on_cuda

        return open_on_cuda(checked, device)
    from runtime.backends.ort import OrtSession

    return OrtSession(checked, threads)
