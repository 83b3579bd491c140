"""Backends: the libraries that run a model, one file each, all behind the protocol `session.Session`.

Imports `contract` alone. `open_session` checks a model's files and loads it on the backend that serves it,
`resolve_provider` gives the name of the one that does, `compute.resolve_compute` what it computes in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends.compute import resolve_compute
from runtime.contract.argument_types import as_flag, as_text, as_whole_number
from runtime.contract.errors import UsageError
from runtime.contract.machine import MAX_THREADS, thread_limit

if TYPE_CHECKING:
    from runtime.backends.session import Session
    from runtime.contract.manifest import Manifest

PROVIDERS = ("auto", "cpu", "cuda", "openvino")
"""Providers of an ONNX model: ONNX Runtime on the CPU (`auto` and `cpu`) or on CUDA, or OpenVINO on the CPU."""


def resolve_provider(manifest: Manifest, provider: str) -> str:
    """Return what runs a model, by the name that a store gives it: `cpu`, `cuda`, `openvino`, or an engine's builder.

    Args:
        manifest: of the model.
        provider: one of `PROVIDERS`, or what this function returned.

    Raises:
        UsageError: there is no such provider, or not for this kind of model.
    """
    builder = manifest.builder.name
    provider = as_text(provider, "provider")
    known = PROVIDERS if builder == "onnx" else (*PROVIDERS, builder)
    if provider not in known:
        raise UsageError(f"no provider {provider!r}: choose from {', '.join(known)}, tuned")
    if builder == "onnx":
        return "cpu" if provider == "auto" else provider
    if provider not in ("auto", builder):
        raise UsageError(f"{manifest.files.model.name} is an engine of {builder}: it takes no provider {provider!r}")
    return builder


def uses_gpu(provider: str) -> bool:
    """Whether a provider that `resolve_provider` returned computes on a GPU."""
    return provider not in ("cpu", "openvino")


def open_session(
    model: Path,
    provider: str = "auto",
    *,
    compute: str | None = None,
    device: int = 0,
    threads: int | None = None,
    verify_hash: bool = True,
) -> Session:
    """Load a model, after its files were checked against its manifest, on the backend that serves it.

    Args:
        model: `X.onnx`, `X.engine` or `X.plan`, with its manifest beside it.
        provider: one of `PROVIDERS`, `tuned`, or what `resolve_provider` returned; engines run where they were built
            for.
        compute: what the matrix products run in, one of `compute.COMPUTES`; None for the precision of the file.
        device: the GPU's number, as the driver counts; 0 on a CPU.
        threads: how many one run on a CPU uses. If None, what this process is held to (a container's quota), or the
            library's own choice; a GPU takes none.
        verify_hash: whether the files' SHA-256 are checked; see `verified_manifest` for what it risks not to.

    Raises:
        UsageError: there is no such provider, or not for this kind of model; it knows no such `compute`, `device` or
            `threads`; or nothing is tuned for this model and machine.
        ManifestError: the model, its external data or its manifest is missing, altered or too new.
        BackendError: this machine lacks the library, driver, GPU or instructions of a CPU that the model needs.
    """
    from runtime.backends.checked_model import CheckedModel  # here, so that `--help` pays for nothing of it
    from runtime.backends.tuned import settled

    device = as_whole_number(device, "device")
    threads = None if threads is None else as_whole_number(threads, "threads")
    checked = CheckedModel(model, check_hash=as_flag(verify_hash, "verify_hash"))
    provider, compute, _ = settled(model, checked.manifest, provider, compute)
    provider = resolve_provider(checked.manifest, provider)
    compute = resolve_compute(checked.manifest, provider, compute)
    on_gpu = uses_gpu(provider)
    if device < 0 or (device and not on_gpu):
        raise UsageError(f"device {device}: must be {'0 or more' if on_gpu else '0 on a CPU'}")
    if threads is not None and (on_gpu or not 1 <= threads <= MAX_THREADS):
        wanted = "a GPU takes no number of threads" if on_gpu else f"must be from 1 to {MAX_THREADS}"
        raise UsageError(f"threads {threads}: {wanted}")
    if threads is None and not on_gpu:
        threads = thread_limit()
    if checked.is_engine:
        from runtime.backends.trt import open_engine

        return open_engine(checked, device)
    if provider == "openvino":
        from runtime.backends.openvino import OpenVinoSession

        return OpenVinoSession(checked, compute, threads)
    if provider == "cuda":
        from runtime.backends.ort_cuda import open_on_cuda

        return open_on_cuda(checked, device)
    from runtime.backends.ort import OrtSession

    return OrtSession(checked, threads)
