"""The shapes of a manifest: strict, frozen records. Import them from `runtime.contract.manifest`, which reads them."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

FORMAT_VERSION: Literal[1] = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(max_length=255, pattern=r"^(\.{0,2}[^/\\\x00.]|\.{3})[^/\\\x00]*$")]
"""The name of a file in the manifest's own folder: no separator, neither `.` nor `..`."""
Positive = Annotated[int, Field(gt=0)]
Size2 = tuple[Positive, Positive]
Three = tuple[float, float, float]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class ItaeOptions(_Record):
    """ITAE as resolved for this model; absent for plain DINOv2. Source: exporter/ITAE.md 1 to 3."""

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
    precision: Literal["fp32", "fp16", "bf16"]
    image_size: Size2
    """H, W in pixels."""
    batch: tuple[Positive, Positive, Positive] | None
    """min, opt, max of the engine's profile; none for ONNX, whose batch is dynamic."""
    itae: ItaeOptions | None
    outputs: tuple[str, ...]
    pooling: Literal["cls", "cls+mean"] = "cls"
    normalize: bool = False
    """Whether the embedding's L2 norm is 1."""
    cls_only: bool = False
    """Whether the last block computes the CLS token's row alone."""
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
    alpha: Literal["blended over white"] = "blended over white"
    gray16: Literal["divided by 257"] = "divided by 257"
    resize_filter: Literal["bicubic, a=-0.5, antialiased, 8-bit result"] = "bicubic, a=-0.5, antialiased, 8-bit result"
    resize_order: Literal["rows; columns first where the height shrinks by over twice the width's"] = (
        "rows; columns first where the height shrinks by over twice the width's"
    )
    """With 8 bits between the two. From h, w to H, W: columns first where h > H and h - H > 2 (w - W).

    Pillow does it so since 13.0."""
    resize_cover: Size2
    """H, W that the resized picture must cover, aspect kept: the smallest; the longer side rounded down."""
    crop: Size2
    """H, W of the centre crop; offsets are rounded down."""
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    scale: float
    """Each value is multiplied by this, less `mean`, divided by `std`; `normalized_by` says who does it."""
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
    batch_distance: float | None = None
    """How far a vector may be from the one that its image gives alone, as a share of its length."""
    normalized: bool = False
    """Whether the embedding has length 1: its differences then count √C-fold, as if it had its usual length."""


Purpose = Literal["as exported", "the same surgery in fp32", "another threshold, in fp32"]
"""Of a check: the model itself; its logic, held to the limits of fp32; the same, where the options flag too little."""


class ParityCheck(_Record):
    """One comparison of the ONNX graph on ONNX Runtime (CPU) with eager PyTorch in float32."""

    purpose: Purpose
    threshold: str | None
    samples: Positive
    patches: Annotated[int, Field(ge=0)]
    flagged: Annotated[int, Field(ge=0)]
    margins: tuple[float, ...]
    """Per sample: the smallest relative distance of a norm to its threshold; empty without ITAE."""
    borderline: tuple[int, ...]
    """Samples whose flags differ inside `flag_margin`."""
    left_out: tuple[int, ...] = ()
    """Those of them that the figures don't count: the farthest, never more than half of all samples."""
    max_abs: float
    min_cosine: float
    effect: float | None = None
    """Largest absolute change of an element of the eager embeddings by ITAE: what the check could have seen."""


class ParityReport(_Record):
    """The figures of the export; `checks[0]` is of the golden sample itself.

    In bf16 no check is `as exported`, since ONNX Runtime's CPU can't run it: the first is of the same surgery in fp32.
    """

    limits: ParityLimits
    checks: tuple[ParityCheck, ...]


class Fusion(_Record):
    """Which kernels of an engine serve each attention, read from what its builder says of them.

    None in a manifest: not an engine, or the builder doesn't tell.
    """

    sites: Annotated[int, Field(ge=0)]
    """Attentions in the graph: one a layer, from the first, less those that no output needs."""
    expected: Annotated[int, Field(ge=0)]
    """Of these, how many the options allow to be one kernel."""
    fused: Annotated[int, Field(ge=0)]
    """Of these, how many are."""
    kernels: tuple[tuple[str, ...], ...]
    """By layer: the kernels that compute any of its MatMul, Softmax and MatMul; one where it is fused."""
    unfused_layers: tuple[int, ...]
    reasons: tuple[str | None, ...]
    """Of each of `unfused_layers`: what in the options keeps it from being fused; none: the builder chose so."""
    engine_kernels: Annotated[int, Field(ge=0)]
    """All kernels of the engine."""


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

    @property
    def embedding_width(self) -> int:
        """Elements of an embedding: C, or 2 C with the mean patch token."""
        return self.model.width * (2 if self.options.pooling == "cls+mean" else 1)

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
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def own_hash(fields: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields, less `manifest_sha256`."""
    rest = {key: value for key, value in fields.items() if key != "manifest_sha256"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()
