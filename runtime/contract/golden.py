"""The golden sample: a model's fixed inputs and their eager float32 results, so a check needs no PyTorch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import ManifestError, one_line
from runtime.contract.manifest import Manifest, read_checked

MAX_GOLDEN_BYTES = 2 << 30
"""A golden sample above this is refused before it is read."""

Float32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Golden:
    """N inputs and what eager PyTorch makes of them: P patches, C width, K chosen layers (0 without ITAE)."""

    input: npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    """As the model takes it: (N, 3, H, W) float32, normalised, or (N, H, W, 3) uint8."""
    embedding: Float32 | None
    """(N, C), or (N, 2 C) with the mean patch token; None if the outputs are the model's own."""
    flags: Flags
    """(N, K, P): which patches are artifacts."""
    flag_distance: Float32
    """(N, K, P): how far each norm is from its threshold, as a share of itself."""
    patch_tokens: Float32 | None = None
    """(N, P, C), stored where the model outputs it."""
    artifact_norm: Float32 | None = None
    """(N, K, P), stored where the model outputs it."""
    own: Mapping[str, Float32] = field(default_factory=dict)
    """The outputs (N, ...) that are the model's own, by name and in the manifest's order."""

    def outputs(self) -> dict[str, npt.NDArray[np.float32] | Flags]:
        """The expected outputs by the name that a model gives them, as far as they are stored."""
        named = {
            "embedding": self.embedding,
            "patch_tokens": self.patch_tokens,
            "artifact_mask": self.flags,
            "artifact_norm": self.artifact_norm,
            **self.own,
        }
        return {name: value for name, value in named.items() if value is not None}


def own_member(index: int) -> str:
    """The name that the npz file has for the model's own output of this number: names of outputs are no file names."""
    return f"output{index}"


def golden_bytes(golden: Golden) -> bytes:
    """The sample as an npz file, the same bytes for the same arrays."""
    arrays = {
        "input": golden.input,
        "flags": golden.flags,
        "flag_distance": golden.flag_distance,
        **{name: value for name, value in golden.outputs().items() if name not in ("artifact_mask", *golden.own)},
        **{own_member(index): value for index, value in enumerate(golden.own.values())},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub confuses **arrays with allow_pickle
    return buffer.getvalue()


def read_golden(model: Path, manifest: Manifest) -> Golden:
    """The golden sample of `model`, checked against its manifest.

    Raises:
        ManifestError: it is missing, altered, of another model, lacks an output of the model, or its arrays have
            other shapes than the model's.
    """
    record = manifest.files.parity
    path = model.with_name(record.name)
    if record.bytes > MAX_GOLDEN_BYTES:
        raise ManifestError(f"{path}: the manifest gives it {record.bytes} bytes, more than {MAX_GOLDEN_BYTES}")
    content = read_checked(path, record, model)
    try:
        golden = _load(io.BytesIO(content), manifest)
    except Exception as error:  # a hostile file makes numpy and zipfile raise anything: TokenError, zlib.error
        raise ManifestError(f"{path} is not a golden sample ({one_line(error)}); export the model again") from error
    _check_shapes(golden, manifest, path)
    return golden


def _load(file: io.BytesIO, manifest: Manifest) -> Golden:
    with zipfile.ZipFile(file) as archive:  # sizes before allocation
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_GOLDEN_BYTES:
        raise ValueError(f"it unpacks to {unpacked} bytes, more than {MAX_GOLDEN_BYTES}")
    file.seek(0)
    own = [one.name for one in manifest.own_outputs]
    with np.load(file, allow_pickle=False) as arrays:
        golden = Golden(
            input=arrays["input"],
            embedding=arrays.get("embedding") if own else arrays["embedding"],
            flags=arrays["flags"],
            flag_distance=arrays["flag_distance"],
            patch_tokens=arrays.get("patch_tokens"),
            artifact_norm=arrays.get("artifact_norm"),
            own={name: arrays[own_member(index)] for index, name in enumerate(own)},
        )
    members = {**vars(golden), **golden.own}
    del members["own"]
    for name, array in members.items():  # numpy gives the bytes of a member that is not in npy format
        if not isinstance(array, np.ndarray | None):
            raise ValueError(f"`{name}` is not in npy format")  # noqa: TRY004  # as other damage
    return golden


def _check_shapes(golden: Golden, manifest: Manifest, path: Path) -> None:
    height, width = manifest.options.image_size
    samples, width_c = (golden.input.shape or (0,))[0], manifest.model.width
    patches = manifest.patches
    layers = len(manifest.options.method.layers)
    image = (3, height, width) if manifest.input.dtype == "float32" else (height, width, 3)
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "input": ((samples, *image), manifest.input.dtype),
        "embedding": ((samples, manifest.embedding_width), "float32"),
        "flags": ((samples, layers, patches), "bool"),
        "flag_distance": ((samples, layers, patches), "float32"),
        "patch_tokens": ((samples, patches, width_c), "float32"),
        "artifact_norm": ((samples, layers, patches), "float32"),
    }
    own = {one.name: ((samples, *map(int, one.shape[1:])), "float32") for one in manifest.own_outputs}
    for name, (shape, dtype) in (expected | own).items():
        array = golden.own[name] if name in own else getattr(golden, name)
        if array is None and name in manifest.output_names():
            raise ManifestError(f"{path} holds no `{name}`, which the model outputs; export the model again")
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise ManifestError(
                f"{path}: `{name}` is {array.dtype}{array.shape}, expected {dtype}{shape}; export the model again"
            )
    if samples < 1:
        raise ManifestError(f"{path} holds no sample; export the model again")
