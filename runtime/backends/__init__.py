"""Backends: what runs a model. One file each, all behind `session.Session`."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.session import Session
from runtime.errors import UsageError
from runtime.manifest import verified_manifest

PROVIDERS = ("auto", "cpu", "cuda", "openvino")
"""What runs an ONNX model: ONNX Runtime on the CPU (`auto` and `cpu`) or on CUDA, or OpenVINO on the CPU."""


def open_session(
    model: Path, provider: str = "auto", *, device: int = 0, threads: int | None = None, verify_hash: bool = True
) -> Session:
    """Load a model, after its files were checked against its manifest, on the backend that serves it.

    Args:
        model: `X.onnx`, `X.engine` or `X.plan`, with its manifest beside it.
        provider: one of `PROVIDERS`; engines take `auto` only, they run where they were built for.

    Raises:
        UsageError: there is no such provider, or not for this kind of model.
        ManifestError: the model, its external data or its manifest is missing, altered or too new.
        BackendError: this machine lacks the library, driver or GPU that the model needs.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"no provider {provider!r}: choose from {', '.join(PROVIDERS)}")
    manifest = verified_manifest(model)
    if manifest.builder.name == "onnx" and provider == "openvino":
        from runtime.backends.openvino import OpenVinoSession

        return OpenVinoSession(model, manifest)
    if manifest.builder.name == "onnx":
        from runtime.backends.ort import OrtSession

        return OrtSession(model, manifest, provider)
    if provider != "auto":
        raise UsageError(f"{model} is an engine of {manifest.builder.name}: it takes no provider {provider!r}")
    from runtime.backends.trt import open_engine

    return open_engine(model, manifest)
