"""The manifest beside a model: what the exporter promises and every reader checks.

`X.onnx` has `X.onnx.json`, `X.engine` has `X.engine.json`. Neither an engine nor an ONNX file carries a checksum of
its own, and NVIDIA calls engines executable artifacts: so the manifest holds SHA-256 of every file and of itself, and
`verified_manifest` checks them before any parser sees a byte of the model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from runtime.errors import ManifestError

FORMAT_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 4 << 20
"""A manifest is a few kilobytes; more is refused before it is parsed."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\\\x00]+$")]
Positive = Annotated[int, Field(gt=0)]
Size2 = tuple[Positive, Positive]
Three = tuple[float, float, float]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class ItaeOptions(_Record):
    """ITAE as resolved for this model; absent for plain DINOv2. Source: itae.md 1 to 3."""

    layers: tuple[Annotated[int, Field(ge=0)], ...]
    source: Literal["query", "key", "value"]
    threshold: str
    side: Literal["high", "low", "both"]
    attenuate: str


class Options(_Record):
    """Every option of the export, resolved."""

    size: str
    weights: str
    backend: Literal["none", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16"]
    image_size: Size2
    """H, W in pixels."""
    batch: tuple[Positive, Positive, Positive] | None
    """min, opt, max of the engine's profile; none for ONNX, whose batch is dynamic."""
    itae: ItaeOptions | None
    outputs: tuple[str, ...]
    input: Literal["float32", "uint8"]
    pos_embed: Literal["meta", "hf"]
    workspace_mib: Positive | None
    parity_samples: Positive


class Backbone(_Record):
    """The network and where its weights came from."""

    size: str
    registers: Annotated[int, Field(ge=0)]
    patch: Positive
    width: Positive
    heads: Positive
    depth: Positive
    weight_source: str
    revision: str | None
    """The hub's commit, where the weights came from there."""
    weights_sha256: Sha256


class TensorInfo(_Record):
    """One input or output; a dimension is a number or the name of a dynamic one (`batch`)."""

    name: str
    dtype: Literal["float32", "uint8", "bool"]
    shape: tuple[Positive | str, ...]


class Preprocessing(_Record):
    """From a decoded picture to the model's input, in this order, complete enough for a program in C++."""

    exif_orientation: Literal["applied"] = "applied"
    color: Literal["RGB"] = "RGB"
    gray16: Literal["divided by 257"] = "divided by 257"
    resize_filter: Literal["bicubic, a=-0.5, antialiased, 8-bit result"] = (
        "bicubic, a=-0.5, antialiased, 8-bit result"
    )
    resize_cover: Size2
    """H, W that the resized picture must cover, aspect kept: the smallest such size, the other side rounded down."""
    crop: Size2
    """H, W of the centre crop; offsets are rounded down."""
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    scale: float
    """Each value is multiplied by this, then `mean` subtracted, then divided by `std`; for uint8 the graph does it."""
    mean: Three
    std: Three
    normalized_by: Literal["caller", "graph"]


class Builder(_Record):
    """What wrote the model file."""

    name: Literal["onnx", "tensorrt", "tensorrt-rtx"]
    version: str
    platform: str


class ParityLimits(_Record):
    """What the exporter held the model to, and what `verify` holds a backend to; none: not limited."""

    max_abs: float | None
    min_cosine: float | None
    flag_margin: float | None
    """Relative distance of a norm to its threshold within which this precision may flip a flag."""


class ParityCheck(_Record):
    """One comparison of the ONNX graph on ONNX Runtime (CPU) with eager PyTorch in float32."""

    purpose: Literal["as exported", "threshold at a quantile"]
    threshold: str | None
    samples: Positive
    patches: Annotated[int, Field(ge=0)]
    flagged: Annotated[int, Field(ge=0)]
    margins: tuple[float, ...]
    """Per sample: the smallest relative distance of a norm to its threshold; empty without ITAE."""
    borderline: tuple[int, ...]
    """Samples whose flags differ inside `flag_margin`, left out of the figures."""
    max_abs: float
    min_cosine: float


class ParityReport(_Record):
    """The figures of the export; `checks[0]` is of the golden sample itself."""

    limits: ParityLimits
    checks: tuple[ParityCheck, ...]


class Fusion(_Record):
    """Which kernel serves each attention site. Filled by a later version; always absent in format 1 so far."""

    expected: int
    fused: int
    kernels: tuple[str, ...]
    unfused_layers: tuple[int, ...]


class FileRecord(_Record):
    """A file beside the manifest."""

    name: FileName
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Files(_Record):
    """The model, its external weights (ONNX of 2 GiB and more) and its golden sample."""

    model: FileRecord
    external_data: FileRecord | None
    parity: FileRecord


class Manifest(_Record):
    """Everything about a model that its file doesn't say. Written last; until it matches, readers refuse."""

    format_version: Literal[1] = FORMAT_VERSION
    options: Options
    model: Backbone
    inputs: tuple[TensorInfo, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[TensorInfo, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    builder: Builder
    parity: ParityReport
    fusion: Fusion | None = None
    files: Files
    versions: dict[str, str]
    manifest_sha256: Sha256 = "0" * 64
    """SHA-256 of `canonical_json` of the manifest without this field."""

    @property
    def input(self) -> TensorInfo:
        """The only input: `pixel_values` (B, 3, H, W) float32 or `images` (B, H, W, 3) uint8."""
        return self.inputs[0]

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(output.name for output in self.outputs)

    def to_json(self) -> bytes:
        """The file's text, with `manifest_sha256` made anew."""
        fields = self.model_dump(mode="json")
        fields["manifest_sha256"] = own_hash(fields)
        return (json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def canonical_json(fields: dict[str, Any]) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, numbers as Python's `repr` writes them."""
    return json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def own_hash(fields: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields, less `manifest_sha256`."""
    rest = {key: value for key, value in fields.items() if key != "manifest_sha256"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def manifest_path(model: Path) -> Path:
    """Where the manifest of `model` lies: `X.onnx` -> `X.onnx.json`."""
    return model.with_name(model.name + ".json")


def parity_path(model: Path) -> Path:
    """Where the exporter puts the golden sample of `model`: `X.onnx` -> `X.onnx.parity.npz`."""
    return model.with_name(model.name + ".parity.npz")


def read_manifest(model: Path) -> Manifest:
    """Read and check the manifest of `model`, without reading the model itself.

    Raises:
        ManifestError: there is no model or no manifest, or it isn't JSON, isn't of this format, was written by a
            newer version, or doesn't match its own hash.
    """
    if not model.is_file():
        raise ManifestError(f"{model}: no such model file; make one with `python -m exporter --out {model}`")
    path = manifest_path(model)
    again = f"export {model.name} again"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError(
            f"{model} has no manifest {path.name} beside it: copy it along, or {again}"
        ) from None
    except OSError as error:
        raise ManifestError(f"can't read {path}: {error.strerror}") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes: not a manifest; {again}")
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON ({error}): it was truncated or altered; {again}") from error
    return _validate(fields, path, again)


def _validate(fields: object, path: Path, again: str) -> Manifest:
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(version, int):
        raise ManifestError(f"{path} has no format_version: not a manifest of this project; {again}")
    if version > FORMAT_VERSION:
        raise ManifestError(
            f"{path} has manifest format {version}, this version reads up to {FORMAT_VERSION}: upgrade itae"
        )
    try:
        expected = own_hash(fields)
    except (ValueError, RecursionError) as error:  # lone surrogates, deep nesting
        raise ManifestError(f"{path} can't be hashed ({error}): it was altered; {again}") from error
    if fields.get("manifest_sha256") != expected:
        raise ManifestError(
            f"{path} does not match its own hash: it was altered or only partly written; {again}"
        )
    try:
        # Through JSON: strict mode takes JSON's arrays as tuples, but not Python's lists.
        return Manifest.model_validate_json(canonical_json(fields))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {where}: {first['msg']}; {again}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path, name: str | None = None) -> FileRecord:
    """Describe a finished file; `name` where it will be called otherwise."""
    return FileRecord(name=name or path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def check_file(path: Path, record: FileRecord, model: Path) -> None:
    """Check a file against the manifest of `model`.

    Raises:
        ManifestError: the file is missing, or its size or hash is not the manifest's.
    """
    try:
        size = path.stat().st_size
        if size == record.bytes and sha256_file(path) == record.sha256:
            return
    except OSError as error:
        raise ManifestError(
            f"can't read {path}, which the manifest of {model} names: {error.strerror}"
        ) from error
    what = f"has {size} bytes, not {record.bytes}" if size != record.bytes else "has another SHA-256"
    raise ManifestError(
        f"{path} {what} than {manifest_path(model).name} says: swapped, altered or partly written; export it again"
    )


def verified_manifest(model: Path) -> Manifest:
    """The manifest of `model`, after the model and its external data were checked against it.

    Raises:
        ManifestError: as `read_manifest` and `check_file`.
    """
    manifest = read_manifest(model)
    check_file(model, manifest.files.model, model)
    if manifest.files.external_data is not None:
        check_file(model.with_name(manifest.files.external_data.name), manifest.files.external_data, model)
    return manifest
