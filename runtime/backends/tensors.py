"""Tensors of other libraries, taken and given by DLPack: on the model's own device, without a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np

from runtime.backends.gpu import DlpackTensor
from runtime.backends.session import Array, Session, check_shape, chosen_batch, run_in_batches
from runtime.contract.errors import InputError, one_line
from runtime.contract.manifest import Manifest

CPU, CUDA, PINNED = 1, 2, 3
"""DLDeviceType, dlpack.h."""


@runtime_checkable
class _OnGpu(Protocol):
    """A session that takes tensors of its GPU."""

    device: int

    def run_tensor(self, tensor: DlpackTensor, batch: int | None = None, output: str = "embedding") -> DlpackTensor:
        """See `GpuSession.run_tensor`."""


@runtime_checkable
class _InPlace(Protocol):
    """A session on the CPU that reads from and writes to given memory."""

    def run_into(self, batch: Array, output: str, target: Array) -> None:
        """See `OrtSession.run_into`."""


def is_tensor(images: object) -> TypeGuard[DlpackTensor]:
    """Whether something is a tensor of another library: PyTorch's, CuPy's, JAX's. numpy's arrays are not meant."""
    return hasattr(images, "__dlpack__") and hasattr(images, "__dlpack_device__") and not isinstance(images, np.ndarray)


def embed_tensor(session: Session, tensor: DlpackTensor, batch: int | None = None) -> DlpackTensor:
    """Embed a tensor where it lies.

    On a CPU nothing is copied with ONNX Runtime; OpenVINO copies each batch. On a GPU see `GpuSession.run_tensor`.
    The result is ready when this returns. It must be kept until what was queued on it is done.

    Args:
        session: the model.
        tensor: (n, ...) as the model takes it, contiguous, on the model's device.
        batch: how many to run at a time; the model's preferred number if None.

    Returns:
        (n, C) float32 on the same device, for `torch.from_dlpack` and its like; on a CPU a numpy array.

    Raises:
        InputError: the tensor is on another device, or not as the model takes it; on a CPU also: it holds NaN.
        UsageError: the model has no `embedding` output, or takes no such batch.
        CheckError: the model gave NaN or infinity; not looked for on a GPU.
        BackendError: the backend failed.
    """
    with taken(session.manifest):
        kind, number = (int(part) for part in tensor.__dlpack_device__())
    if isinstance(session, _OnGpu):
        if (kind, number) != (CUDA, session.device):
            cure = f"move it to cuda:{session.device}, or pass a numpy array"
            raise InputError(f"the tensor is on {_device(kind, number)}, the model on cuda:{session.device}: {cure}")
        return session.run_tensor(tensor, batch)
    if kind not in (CPU, PINNED):
        cure = "call .cpu() on it, or load the model with provider='cuda', or its engine"
        raise InputError(f"the tensor is on {_device(kind, number)}, the model on the CPU: {cure}")
    with taken(session.manifest):
        view = np.from_dlpack(tensor)
    check_tensor(session.manifest, view.shape, view.dtype.name, contiguous=view.flags.c_contiguous)
    return _embed_array(session, view, batch)


def _embed_array(session: Session, images: Array, batch: int | None) -> Array:
    if not isinstance(session, _InPlace):
        return run_in_batches(session, images, batch, ["embedding"])["embedding"]
    size = chosen_batch(session.manifest, batch)
    width = next((one.shape[1] for one in session.manifest.outputs if one.name == "embedding"), 0)
    embedding = np.empty((len(images), int(width)), np.float32)
    for start in range(0, len(images), size):
        session.run_into(images[start : start + size], "embedding", embedding[start : start + size])
    return embedding


@contextlib.contextmanager
def taken(manifest: Manifest) -> Iterator[None]:
    """A block in which the tensor's library may refuse to give it.

    Raises:
        InputError: it does.
    """
    try:
        yield
    except Exception as error:
        wanted = f"a tensor of {manifest.input.dtype}, contiguous, detached"
        raise InputError(f"can't take the tensor without a copy ({one_line(error)}): pass {wanted}") from error


def check_tensor(manifest: Manifest, shape: tuple[int, ...], dtype: str, *, contiguous: bool) -> None:
    """Check a tensor of any number of images without reading its values.

    Raises:
        InputError: the tensor has another dtype or shape than the model takes, no image, or gaps.
    """
    check_shape(manifest, shape, dtype)
    if not shape[0]:
        raise InputError("a tensor of 0 images: no image to embed")
    if not contiguous:
        raise InputError("the tensor is not contiguous, which takes a copy: call .contiguous() on it")


def _device(kind: int, number: int) -> str:
    return {CPU: "the CPU", CUDA: f"cuda:{number}", PINNED: "the CPU"}.get(
        kind, f"device {number} of DLPack's kind {kind}"
    )
