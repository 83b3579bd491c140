"""Uses the models that `exporter` makes: embeds images, clusters the embeddings, verifies the models.

from runtime import load

with load("itae.onnx") as model:
    vectors = model.embed(["cat.jpg", "dog.png"])  # (2, C) float32

`Model.embed` takes paths, files' content, Pillow images and arrays; every error is an `ItaeError`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime.contract.errors import ItaeError

if TYPE_CHECKING:
    from runtime.embedding.model import Model

__all__ = ["ItaeError", "Model", "load"]


def load(
    path: str | os.PathLike[str],
    provider: str = "auto",
    *,
    compute: str | None = None,
    device: int = 0,
    threads: int | None = None,
    verify_hash: bool = True,
) -> Model:
    """Load a model after checking its files; close it, or use it as a context manager.

    Args:
        path: `X.onnx` or `X.engine`, with its manifest beside it.
        provider: what runs an ONNX model: `auto` (ONNX Runtime on the CPU), `cpu` (the same), `cuda`, `openvino`, or
            `tuned`: what `bench --tune` found to be the fastest here, compute type included.
        compute: what matrix products run in: None for the precision that the model was exported in, or `bf16` for an
            fp32 model on `openvino`.
        device: the number of the GPU, for `cuda` and engines.
        threads: how many the CPU computes with; None: the library's own choice, or a container's quota.
        verify_hash: whether the files are compared with the manifest's SHA-256. Without, a file that was swapped
            runs as it is, and an engine is executable code.

    Raises:
        ItaeError: the model is missing, altered or too new, or can't run here; see `runtime.contract.errors`.
    """
    from runtime.backends import open_session
    from runtime.contract.argument_types import as_path
    from runtime.contract.machine import require_supported_platform
    from runtime.embedding.model import Model  # here, so that `--help` and the exporter pay for none of it

    require_supported_platform()
    session = open_session(
        as_path(path, "path"), provider, compute=compute, device=device, threads=threads, verify_hash=verify_hash
    )
    return Model(session)


def __getattr__(name: str) -> type[Model]:
    """`Model`, imported when it is asked for: it brings numpy and Pillow, which `--help` can do without."""
    if name == "Model":
        from runtime.embedding.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
