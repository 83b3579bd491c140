"""The records of a manifest, format 2: strict and frozen. Import them from `runtime.contract.manifest`.

A field that this version does not know is kept and ignored, so that a newer version of the same format can add some.
`manifest.schema.json` beside this file is the JSON Schema of these records, for programs in other languages;
`python -m runtime.contract.schema` prints it. README.md beside this file says what a reader must check, in order.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import pydantic
from pydantic import Field, JsonValue

from runtime.contract import format1
from runtime.contract.errors import ManifestError
from runtime.contract.hashed_json import NO_HASH, HashedJson

FORMAT_VERSION: Literal[2] = 2
MANIFEST_FILE = HashedJson(
    "manifest",
    ManifestError,
    FORMAT_VERSION,
    version_field="format_version",
    hash_field="manifest_sha256",
    older_hash={1: format1.own_hash},
)
"""The file that the records make together."""
OUTPUTS = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
"""Names of outputs that readers know; an output with another name is the model's own."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(max_length=255, pattern=r"^(\.{0,2}[^/\\\x00.]|\.{3})[^/\\\x00]*$")]
"""The name of a file in the manifest's own folder: no separator, neither `.` nor `..`."""
Positive = Annotated[int, Field(gt=0)]
Size2 = tuple[Positive, Positive]
Three = tuple[float, float, float]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="allow",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class NoMethod(_Record):
    """The model as it is: nothing is done about artifacts."""

    name: Literal["none"] = "none"

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose artifacts are found: none."""
        return ()


class ItaeMethod(_Record):
    """ITAE as resolved for this model. Source: exporter/ITAE.md 1 to 3."""

    name: Literal["itae"] = "itae"
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Blocks that it works in, ascending, counted from 0; outputs and golden sample have K of them."""
    source: Literal["query", "key", "value", "residual"] | None
    """The vectors whose norm is compared with the threshold; `residual` is the block's input. Null with `positions`."""
    threshold: str
    """`mad:λ`, `zscore:λ`, `ratio:λ` or `absolute:τ`; or `positions:LIST`, the patches that are artifacts in every
    image, as in `positions:0,1,16-17`: counted from 0, row by row."""
    side: Literal["high", "low", "both"] | None
    """Norms that count as artifacts. Null with `positions`."""
    attenuate: str
    """`min`, `mask`, `mean`, `scale:α`, or `none`: artifacts are found and nothing is attenuated."""
    detect_layer: Annotated[int, Field(ge=0)] | None = None
    """The block whose norms decide for all of `layers`, none of which is before it; null: each block's own."""

    @property
    def detection(self) -> str:
        """How artifacts are found, in words."""
        if self.source is None:
            return self.threshold
        where = "" if self.detect_layer is None else f" in layer {self.detect_layer}"
        return f"{self.source} norm{where}, {self.threshold} on {self.side}"


Method = Annotated[NoMethod | ItaeMethod, Field(discriminator="name")]
"""The method against artifacts."""


HardwareCompatibility = Literal["none", "same-compute-capability", "ampere-plus"]


class Options(_Record):
    """Every option of the export, resolved."""

    size: str
    weights: str
    backend: Literal["none", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    image_size: Size2
    """H, W in pixels."""
    batch: tuple[Positive, Positive, Positive] | None
    """min, opt, max of the engine's profile; None for ONNX, whose batch is dynamic."""
    method: Method
    """The method against artifacts."""
    outputs: tuple[str, ...]
    pooling: Literal["cls", "cls+mean", "mean"] = "cls"
    """`mean`, the mean patch token alone, is for files that others made."""
    normalize: bool = False
    """Whether the embedding's L2 norm is 1."""
    cls_only: bool = False
    """Whether the last block computes the CLS token's row alone."""
    input: Literal["float32", "uint8"]
    pos_embed: Literal["meta", "hf"] | None
    """How position embeddings were brought to the image size, as Meta's code or Hugging Face's does it; null for
    somebody else's graph, whose position embeddings are as they were."""
    unfused: bool = False
    """Whether attention is written so that no builder makes one kernel of it."""
    workspace_mib: Positive | None
    hardware_compatibility: HardwareCompatibility | None = None
    """GPUs that an engine runs on: `none`: the one that it was built on, by its name; `same-compute-capability`; or
    `ampere-plus`: any from compute capability 8.0 on. None for ONNX, and for engines of older exporters."""
    version_compatible: bool | None = None
    """Whether later versions of the builder's library run an engine too, in place of its own alone."""
    parity_samples: Positive


class Weights(_Record):
    """Where a model's weights came from."""

    kind: Literal["hub", "path", "random"]
    """`hub`: the Hugging Face hub; `path`: a file or folder; `random`: drawn from a seed, to try things out."""
    source: str
    """`hf:REPO`, the path as it was given, or `random:SEED`."""
    revision: str | None
    """The hub's commit, where the weights came from there."""
    sha256: Sha256
    """SHA-256 over name, shape and float32 bytes of each parameter."""
    notes: tuple[str, ...] = ()
    """The parts of the checkpoint that were taken or left out, in words; empty if it holds nothing but the model."""


class Backbone(_Record):
    """The network and where its weights came from."""

    size: str
    registers: Annotated[int, Field(ge=0)]
    patch: Positive
    """Side of a patch in pixels; its height where somebody else's graph has patches that are not square."""
    width: Positive
    heads: Positive
    depth: Positive
    weights: Weights


class TensorInfo(_Record):
    """One input or output; a dimension is a number or the name of a dynamic one (`batch`).

    An output called `embedding`, `patch_tokens`, `artifact_mask` or `artifact_norm` is what that name says. With any
    other name it is the model's own: logits, a map, boxes of somebody else's graph.
    """

    name: str
    dtype: Literal["float32", "uint8", "bool"]
    shape: tuple[Positive | str, ...]
    in_file: str | None = None
    """The name that the model's file has for it, where that is another; null: the same."""

    @property
    def name_in_file(self) -> str:
        """The name that the model's file has for it."""
        return self.in_file or self.name


_ONLY_CROP_COVERS: dict[str, JsonValue] = {
    "if": {"properties": {"fit": {"const": "crop"}}},
    "then": {"properties": {"resize_cover": {"type": "array"}}},
    "else": {"properties": {"resize_cover": {"type": "null"}}},
}
"""The check of `fit` and `resize_cover` in the words of JSON Schema."""


class Preprocessing(_Record):
    """From a decoded picture to the model's input, in this order, complete enough for a program in C++."""

    model_config = pydantic.ConfigDict(json_schema_extra=_ONLY_CROP_COVERS)

    exif_orientation: Literal["applied"] = "applied"
    """The picture is turned upright as its EXIF tag says."""
    color: Literal["RGB"] = "RGB"
    alpha: Literal["white"] = "white"
    """A transparent picture is blended over white."""
    gray16: Literal["div257"] = "div257"
    """A grey picture of 16 bits is divided by 257 and rounded."""
    resize_filter: Literal["bicubic", "bilinear"] = "bicubic"
    """Bicubic with a = -0.5, or bilinear; antialiased: the filter widens by the factor that the picture shrinks by. As
    Pillow does it, with coefficients of 22 bits, and results of each of the two passes rounded to 8 bits."""
    resize_order: Literal["pillow13"] = "pillow13"
    """Which pass is the first, as in Pillow 13: rows, that is the width, and the height first where a picture of h rows
    and w columns becomes H, W with h > H and h - H > 2 (w - W)."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """`crop`: the picture is resized to cover `resize_cover`, and the centre of H, W is cut out. `pad`: it is resized,
    aspect kept, to the largest that H, W hold, the shorter side rounded down and at least 1, and pasted into the middle
    of a picture of H, W, offsets rounded down, whose colour is `mean` / `scale`, rounded (124, 116, 104): normalised,
    about 0. `squash`: it is resized to H, W, whatever its aspect. H, W are `crop`."""
    resize_cover: Size2 | None
    """H, W that the resized picture must cover, aspect kept: the smallest; the longer side rounded down. Null unless
    `fit` is `crop`, so that readers which don't know `fit` refuse the manifest."""
    crop: Size2
    """H, W of the input; of the centre crop where `fit` is `crop`, whose offsets are rounded down."""
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    scale: float
    """Each value is multiplied by this, less `mean`, divided by `std`; `normalized_by` says who does it."""
    mean: Three
    std: Three
    normalized_by: Literal["caller", "graph"]

    @pydantic.model_validator(mode="after")
    def _check_fit(self) -> Preprocessing:
        if (self.fit == "crop") != (self.resize_cover is not None):
            raise ValueError(f"resize_cover is {self.resize_cover} where fit is {self.fit}: two numbers for crop alone")
        return self


class Builder(_Record):
    """The program that wrote the model file."""

    name: Literal["onnx", "tensorrt", "tensorrt-rtx"]
    version: str
    platform: str
    gpu: str | None = None
    """The GPU that an engine of TensorRT was built on; None for TensorRT-RTX, which builds for no particular one."""
    compute_capability: str | None = None
    """The compute capability of that GPU: `8.9`."""


class ParityLimits(_Record):
    """The limits of the export, and of `verify` on every backend; null if a figure is not limited."""

    max_abs: float | None
    min_cosine: float | None
    flag_margin: float | None
    """Relative distance of a norm to its threshold within which this precision may flip a flag."""
    batch_distance: float | None = None
    """Largest distance of a vector to that of its image alone, as a share of its length."""
    normalized: bool = False
    """Whether the embedding has length 1: its differences then count √C-fold, as if it had its usual length."""
    max_relative: float | None = None
    """Largest difference of outputs that are the model's own, as a share of the output's largest number."""


class Rounding(_Record):
    """How far rounding alone moves the eager model on the golden images, without any graph.

    That is eager PyTorch in the precision against float64; in half precision with weights, inputs and outputs of all
    projections rounded. Limits wider than the precision's usual ones follow from it.
    """

    max_abs: float
    """Largest absolute difference over `embedding` (√C-fold where normalised) and `patch_tokens`."""
    min_cosine: float
    """Smallest cosine between a vector and its exact one."""
    norm_relative: float
    """Largest relative difference of a patch's norm; 0 without norms."""
    distance: float
    """Largest distance of a vector to its exact one, as a share of its length."""


Purpose = Literal["exported", "fp32", "threshold"]
"""The subject of a check: the model itself; the same surgery in fp32, held to the limits of fp32; the same with another
threshold, if the model's own threshold flags too little."""


class ParityCheck(_Record):
    """One comparison of the ONNX graph on ONNX Runtime (CPU) with eager PyTorch in float64 (once float32)."""

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
    """The borderline samples that the figures don't count: the farthest, at most half of all samples."""
    max_abs: float
    min_cosine: float
    effect: float | None = None
    """Largest absolute change of an element of the eager embeddings by ITAE: what the check could have seen. For
    somebody else's graph, of any output, and a share of its largest number where that is above 1, as `max_abs`."""
    limits: ParityLimits | None = None
    """The limits that this comparison kept; None in manifests of older exporters."""
    rounding: Rounding | None = None
    """The measured rounding that the limits follow from; None in manifests of older exporters."""


class ParityReport(_Record):
    """The figures of the export; `checks[0]` is of the golden sample itself.

    In bf16 no check is `exported`, since ONNX Runtime's CPU can't run it: the first is of the same surgery in fp32. In
    int8 the limits follow from what ONNX Runtime's CPU gave for the golden sample; `quantization` has the figures of
    real pictures.
    """

    limits: ParityLimits
    checks: tuple[ParityCheck, ...]


class Fusion(_Record):
    """The kernels of an engine that serve each attention, as its builder names them.

    It is null in a manifest of an ONNX file, and if the builder names no kernels.
    """

    sites: Annotated[int, Field(ge=0)]
    """Attentions in the graph: one a layer, from the first, less those that no output needs."""
    expected: Annotated[int, Field(ge=0)]
    """Number of attentions that the options allow to be one kernel."""
    fused: Annotated[int, Field(ge=0)]
    """Number of attentions that are one kernel."""
    kernels: tuple[tuple[str, ...], ...]
    """By layer: the kernels that compute any of its MatMul, Softmax and MatMul; one where it is fused."""
    unfused_layers: tuple[int, ...]
    reasons: tuple[Literal["precision", "unfused"] | None, ...]
    """For each of `unfused_layers`: the option that keeps it from being fused; null: the builder chose so."""
    engine_kernels: Annotated[int, Field(ge=0)]
    """All kernels of the engine."""


class Replay(_Record):
    """The figures of a model that the exporter ran before it was published: an engine, or an ONNX file in bf16."""

    backend: str
    """The library that ran it, with its version and device."""
    gpu: str | None
    """The GPU's name; null on a CPU, as `compute_capability` is."""
    compute_capability: str | None
    driver: str | None
    """Version of NVIDIA's driver; null on a CPU, and if the driver does not say it."""
    samples: Annotated[int, Field(ge=0)]
    """Number of golden images."""
    max_abs: float
    """Largest absolute difference to the golden sample."""
    min_cosine: float
    batch_sizes: tuple[int, ...]
    """Sizes of the batches whose rows were compared with the same images alone."""
    batch_distance: float
    """Largest distance of such a row, as a share of its length."""


class Calibration(_Record):
    """The calibration that the export took its options of ITAE from, by `--config`."""

    sha256: Sha256
    """The hash that the calibration's file gives itself."""
    reason: str
    """The reason of its recommendation, in words."""
    weights_sha256: Sha256
    """The weights that it was made with, as `Weights.sha256`."""
    images: Annotated[int, Field(ge=0)]
    """Number of images that it looked at."""
    figures: dict[str, float]
    """The effects of the recommended options on the half of the images that did not choose them, by name."""


class Quantization(_Record):
    """The int8 layers of a model, and its embeddings beside those of the same graph in float32.

    The figures are of pictures that did not choose the scales.
    """

    calibrated: Positive
    """Number of pictures that chose the scales."""
    checked: Positive
    """Number of pictures that the figures are of."""
    unreadable: Annotated[int, Field(ge=0)]
    min_cosine: float
    """The limit that was asked for, for any picture."""
    worst_cosine: float
    median_cosine: float
    neighbours: float
    """Share of each picture's ten nearest others by the float32 embedding that are so by the int8 embedding too."""
    same_centroid: float
    """Share of the pictures whose int8 embedding has the same nearest k-means centroid of the float32 embeddings."""
    int8_layers: Annotated[int, Field(ge=0)]
    """Number of linear layers that compute in int8."""
    float32_layers: tuple[str, ...]
    """The matrices of the linear layers that were left in float32 so that the limit holds."""
    engine_layers: Annotated[int, Field(ge=0)] | None = None
    """Number of the int8 layers that an engine's kernels compute from int8 numbers; null for an ONNX file, and if the
    builder doesn't name types."""


class Foreign(_Record):
    """Somebody else's ONNX file that the model was made from, and what was found in it."""

    file: str
    """Its name."""
    sha256: Sha256
    """SHA-256 over the file and its external data."""
    producer: str
    opset: Positive
    form: str
    """The form of its attention, in words."""
    prefix: Annotated[int, Field(ge=0)]
    """Number of tokens before the patches."""
    grid: tuple[int, int] | None
    """Rows and columns of patches; null if the graph does not show them."""
    given: tuple[str, ...]
    """The facts that the user said, by the names of the options."""
    outputs: tuple[str, ...]
    """All outputs of the model's file, in its order; `Manifest.outputs` has those that the runtime uses."""


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

    format_version: Literal[2] = FORMAT_VERSION
    options: Options
    model: Backbone
    inputs: tuple[TensorInfo, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[TensorInfo, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    builder: Builder
    parity: ParityReport
    fusion: Fusion | None = None
    replay: Replay | None = None
    """Null for ONNX in fp32 and fp16, whose run is `parity`, and for a model that its exporter never ran."""
    not_replayed: str | None = None
    """The reason why the exporter never ran the model; null if it did."""
    foreign: Foreign | None = None
    """Null unless the model was made from somebody else's ONNX file."""
    calibration: Calibration | None = None
    """Null if the options were not taken from a calibration."""
    quantization: Quantization | None = None
    """Null unless the precision is int8."""
    files: Files
    versions: dict[str, str]
    manifest_sha256: Sha256 = NO_HASH
    """SHA-256 of the file's own bytes with these 64 digits replaced by zeros."""

    @property
    def input(self) -> TensorInfo:
        """The only input: `pixel_values` (B, 3, H, W) float32 or `images` (B, H, W, 3) uint8."""
        return self.inputs[0]

    @property
    def embedding_width(self) -> int:
        """Elements of an embedding: C, or 2 C with the mean patch token."""
        return self.model.width * (2 if self.options.pooling == "cls+mean" else 1)

    @property
    def patches(self) -> int:
        """Number of patches: those of the grid of somebody else's graph, or as many squares as the picture has."""
        if self.foreign is not None and self.foreign.grid is not None:
            return self.foreign.grid[0] * self.foreign.grid[1]
        height, width = self.options.image_size
        return (height // self.model.patch) * (width // self.model.patch)

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are random, so that embeddings mean nothing."""
        return self.model.weights.kind == "random"

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(output.name for output in self.outputs)

    @property
    def own_outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs that are the model's own: logits, maps, boxes."""
        return tuple(output for output in self.outputs if output.name not in OUTPUTS)

    def to_json(self) -> bytes:
        """The file's bytes, with `manifest_sha256` made anew."""
        fields = self.model_dump(mode="json")
        del fields["manifest_sha256"]  # it goes to the end, behind unknown fields, so that its place is known
        return MANIFEST_FILE.to_bytes(fields, indent=2)


def json_schema() -> str:
    """The JSON Schema of a manifest, as `manifest.schema.json` has it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    schema["required"] += ["format_version", "manifest_sha256"]  # in a file; a record in memory has defaults
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
