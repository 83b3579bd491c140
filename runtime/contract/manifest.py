"""The manifest beside a model: what the exporter promises and every reader checks.

`X.onnx` has `X.onnx.json`, `X.engine` has `X.engine.json`. Neither an engine nor an ONNX file carries a
checksum of its own, and NVIDIA calls engines executable artifacts: so the manifest holds SHA-256 of every
file and of itself, and `verified_manifest` checks them before any parser sees a byte of the model. README.md beside
this file describes the format for a second implementation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from runtime.contract import format1
from runtime.contract.errors import ManifestError, first_fault
from runtime.contract.file_set import is_interrupted
from runtime.contract.schema import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    OUTPUTS,
    Backbone,
    Builder,
    Calibration,
    FileRecord,
    Files,
    Foreign,
    Fusion,
    HardwareCompatibility,
    ItaeMethod,
    Manifest,
    NoMethod,
    Options,
    ParityCheck,
    ParityLimits,
    ParityReport,
    Preprocessing,
    Purpose,
    Quantization,
    Replay,
    Rounding,
    TensorInfo,
    Weights,
)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "OUTPUTS",
    "Backbone",
    "Builder",
    "Calibration",
    "FileRecord",
    "Files",
    "Foreign",
    "Fusion",
    "HardwareCompatibility",
    "ItaeMethod",
    "Manifest",
    "NoMethod",
    "Options",
    "ParityCheck",
    "ParityLimits",
    "ParityReport",
    "Preprocessing",
    "Purpose",
    "Quantization",
    "Replay",
    "Rounding",
    "TensorInfo",
    "Weights",
    "check_file",
    "manifest_path",
    "parity_path",
    "read_checked",
    "read_manifest",
    "record_file",
    "sha256_file",
    "verified_manifest",
]


def manifest_path(model: Path) -> Path:
    """Where the manifest of `model` lies: `X.onnx` -> `X.onnx.json`."""
    return model.with_name(model.name + ".json")


def parity_path(model: Path) -> Path:
    """Where the exporter puts the golden sample of `model`: `X.onnx` -> `X.onnx.parity.npz`."""
    return model.with_name(model.name + ".parity.npz")


def read_manifest(model: Path) -> Manifest:
    """Read and check the manifest of `model`, without reading the model itself.

    Raises:
        ManifestError: there is no model or no manifest, an export was interrupted, or the manifest isn't JSON, isn't of
            this format, was written by a newer version, or doesn't match its own hash.
    """
    if not _is_file(model):
        if model.is_dir():
            raise ManifestError(f"{model} is a folder, expected a model: X.onnx or X.engine")
        _refuse_interrupted(model)
        raise ManifestError(f"{model}: no such model file; make one with `python -m exporter --out FILE`")
    path = manifest_path(model)
    again = f"export {model.name} again"
    try:
        fields = MANIFEST_FILE.read(path, again)
    except FileNotFoundError:
        _refuse_interrupted(model)
        raise ManifestError(f"{model} has no manifest {path.name} beside it: copy it along, or {again}") from None
    return _validate(fields, path, again)


def _validate(fields: dict[str, Any], path: Path, again: str) -> Manifest:
    try:
        current = format1.upgraded(fields) if fields["format_version"] == 1 else fields
        # Through JSON: strict mode takes JSON's arrays as tuples, but not Python's lists.
        return Manifest.model_validate_json(json.dumps(current))
    except format1.Damaged as error:
        raise ManifestError(f"{path}: {error}; {again}") from error
    except pydantic.ValidationError as error:
        newer = "upgrade itae, or " if error.errors()[0]["type"] in ("literal_error", "union_tag_invalid") else ""
        raise ManifestError(f"{path}: {first_fault(error)}; {newer}{again}") from error


def _refuse_interrupted(model: Path) -> None:
    if is_interrupted(manifest_path(model)):
        raise ManifestError(
            f"{model}: an export was interrupted while it replaced these files (unless one is just ending): export "
            f"{model.name} again; that first puts the older files back"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ManifestError(f"can't read {path}: {error.strerror}") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path, name: str | None = None) -> FileRecord:
    """Describe a finished file; `name` where it will be called otherwise."""
    return FileRecord(name=name or path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def check_file(path: Path, record: FileRecord, model: Path, *, check_hash: bool = True) -> None:
    """Check a file against the manifest of `model`; its size alone without `check_hash`.

    Raises:
        ManifestError: the file is missing, or its size or hash is not the manifest's.
    """
    with _readable(path, model):
        size = path.stat().st_size
        is_same = size == record.bytes and (not check_hash or sha256_file(path) == record.sha256)
    if not is_same:
        raise _unlike(path, size, record, model)


def read_checked(path: Path, record: FileRecord, model: Path, *, check_hash: bool = True) -> bytes:
    """Read a file once and give the very bytes that were checked against the manifest of `model`.

    What a parser is given instead of the path can't be swapped after the check.

    Raises:
        ManifestError: as `check_file`; or the file does not fit into memory.
    """
    with _readable(path, model), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != record.bytes:
            raise _unlike(path, size, record, model)
        try:
            content = file.read(record.bytes)
        except MemoryError as error:
            raise ManifestError(f"{path}: its {size} bytes do not fit into this machine's memory") from error
    if len(content) != record.bytes or (check_hash and hashlib.sha256(content).hexdigest() != record.sha256):
        raise _unlike(path, len(content), record, model)
    return content


@contextlib.contextmanager
def _readable(path: Path, model: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ManifestError(
            f"can't read {path}, which the manifest of {model} names: {error.strerror}; copy it along under that name"
        ) from error


def _unlike(path: Path, size: int, record: FileRecord, model: Path) -> ManifestError:
    what = f"has {size} bytes, not the {record.bytes}" if size != record.bytes else "has not the SHA-256"
    return ManifestError(
        f"{path} {what} that {manifest_path(model).name} gives: it was swapped, altered or "
        "only partly written; export it again"
    )


def verified_manifest(model: Path, check_hash: bool = True) -> Manifest:
    """The manifest of `model`, after the model and its external data were checked against it.

    Args:
        model: the model, its manifest beside it.
        check_hash: whether the files' SHA-256 are computed. Without, a file that was swapped for another of the same
            size is run as it is, and an engine is executable code; the manifest itself must be whole in any case.

    Raises:
        ManifestError: as `read_manifest` and `check_file`.
    """
    manifest = read_manifest(model)
    check_file(model, manifest.files.model, model, check_hash=check_hash)
    if (data := manifest.files.external_data) is not None:
        check_file(model.with_name(data.name), data, model, check_hash=check_hash)
    return manifest
