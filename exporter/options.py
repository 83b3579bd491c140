"""What to export, as frozen data. Everything that can be refused before a weight is loaded is refused here.

Letters of shapes, here and everywhere: B batch, H heads, N tokens (1 + R + P), P patches, R registers,
C width, d head_dim (C = H · d), K chosen layers, S samples.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exporter.graph_facts import GraphFacts
from exporter.methods.itae.options import MAX_MEDIAN_PATCHES, ItaeConfig
from exporter.models.architecture import Architecture, PosEmbed, architecture
from runtime.contract.argument_types import as_names, as_path, as_text, shown
from runtime.contract.atomic import cannot_write
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.manifest import ParityLimits, Preprocessing, TensorInfo, manifest_path, parity_path

Precision = Literal["fp32", "fp16", "bf16"]
Backend = Literal["auto", "tensorrt", "tensorrt-rtx"]
InputDtype = Literal["float32", "uint8"]
Pooling = Literal["cls", "cls+mean"]

PRECISIONS = ("fp32", "fp16", "bf16")
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx")
INPUTS = ("float32", "uint8")
POS_EMBEDS = ("meta", "hf")
POOLINGS = ("cls", "cls+mean")
OUTPUTS = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
ENGINE_SUFFIXES = (".engine", ".plan")
MAX_GRID = 512
"""Patches along a side; more is a slip of the pen: its attention logits alone would take terabytes."""
MAX_BATCH = 65_535
"""Images; no GPU runs more at a time."""
_KINDS = {"normalize": bool, "cls_only": bool, "require_fusion": bool, "parity_samples": int, "workspace_mib": int}


@dataclass(frozen=True)
class ExportSpec:
    """One export. Options left at None take the default that fits the others.

    Raises:
        UsageError: an option has a value that means nothing, or two contradict each other.
    """

    out: str | os.PathLike[str]
    """`X.engine` or `X.plan` for a TensorRT engine, `X.onnx` for ONNX."""
    size: str | Architecture = "vitb14"
    """A name in `ARCHITECTURES`, or a backbone of your own in DINOv2's shape."""
    weights: str = "auto"
    """`auto`, a path, `hf:REPO[@REVISION]` or `random[:SEED]`."""
    backend: Backend = "auto"
    precision: Precision | None = None
    """None: fp16 for an engine, fp32 for ONNX."""
    image_size: int | tuple[int, int] = 224
    """Pixels, N or (H, W), multiples of 14."""
    batch: int | tuple[int, int, int] = (1, 8, 64)
    """min, opt, max of the engine's profile, or one fixed size."""
    itae: ItaeConfig | None = field(default_factory=ItaeConfig)
    """None: plain DINOv2."""
    outputs: tuple[str, ...] = ("embedding",)
    pooling: Pooling = "cls"
    """The embedding: the CLS token, or it beside the mean patch token, as in Meta's linear evaluation."""
    normalize: bool = False
    """Whether the embedding is divided by its L2 norm."""
    cls_only: bool = True
    """Compute only the CLS token's row of the last block, wherever no output needs another."""
    input: InputDtype = "float32"
    pos_embed: PosEmbed = "meta"
    keep_onnx: str | os.PathLike[str] | None = None
    """Where to leave the ONNX file that the engine was built from."""
    workspace_mib: int | None = None
    timing_cache: str | os.PathLike[str] | None = None
    """Where TensorRT keeps how long its kernels took, for the next build."""
    require_fusion: bool = False
    """Whether an attention that could be one kernel and is not is an error."""
    parity_samples: int = 4

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "weights", str(self.weights))
        _check_word("--precision", self.precision, (None, *PRECISIONS))
        _check_word("--backend", self.backend, BACKENDS)
        _check_word("--input", self.input, INPUTS)
        _check_word("--pos-embed", self.pos_embed, POS_EMBEDS)
        _check_word("--pooling", self.pooling, POOLINGS)
        self._check_out()
        self._check_forms()
        self._check_numbers()
        self._check_outputs()
        if self.itae is not None:
            self.itae.layer_indices(self.backbone.depth)
            if self.makes_engine and self.itae.needs_median and self.facts.patches > MAX_MEDIAN_PATCHES:
                raise UsageError(
                    f"--threshold {self.itae.threshold} at {self.height}x{self.width} needs the median of "
                    f"{self.facts.patches} patches, TensorRT can take at most {MAX_MEDIAN_PATCHES}: "
                    "use --threshold zscore:λ or absolute:τ, or a smaller --image-size"
                )

    def _check_types(self) -> None:
        """Check what the other checks take for granted."""
        for name in ("out", "keep_onnx", "weights", "timing_cache"):
            if name in ("out", "weights") or getattr(self, name) is not None:
                as_path(getattr(self, name), _option(name))
        for name in ("backend", "precision", "input", "pos_embed", "pooling", "size"):
            value = getattr(self, name)
            if not (isinstance(value, Architecture) or (name == "precision" and value is None)):
                as_text(value, _option(name))
        for name, kind in _KINDS.items():
            if type(got := getattr(self, name)) is not kind and not (name == "workspace_mib" and got is None):
                wanted = "True or False" if kind is bool else "a whole number"
                raise UsageError(f"{name} {shown(got)}: must be {wanted}")
        as_names(self.outputs, "--outputs")
        if not isinstance(self.itae, ItaeConfig | None):
            raise UsageError(f"itae {shown(self.itae)}: must be an ItaeConfig, or None for plain DINOv2")

    def _check_out(self) -> None:
        if self.path.suffix not in (*ENGINE_SUFFIXES, ".onnx") or self.path.name == self.path.suffix:
            raise UsageError(f"--out {self.path}: must end in .engine or .plan (TensorRT), or in .onnx")
        if self.keep_onnx is not None:
            kept = Path(self.keep_onnx)
            if kept.suffix != ".onnx" or kept.name == ".onnx":
                raise UsageError(f"--keep-onnx {kept}: must end in .onnx")
            if not self.makes_engine:
                raise UsageError("--keep-onnx is for engines: --out is an ONNX file already")
        for option, given in (("--timing-cache", self.timing_cache), ("--require-fusion", self.require_fusion)):
            if given and not self.makes_engine:
                raise UsageError(f"{option} is for engines: --out is an ONNX file")
        published = [file.absolute() for file in self._published()]
        if self.timing_cache is not None and Path(self.timing_cache).absolute() in published:
            raise UsageError(f"--timing-cache {self.timing_cache}: is a file of the export itself; name another")
        for file in (self.out, self.keep_onnx):
            if file is not None and ".." in Path(file).name:  # onnx refuses external data of such a name
                raise UsageError(f"{file}: a file name must not hold two dots in a row")

    def _check_forms(self) -> None:
        for option, value, length, form in (
            ("--image-size", self.image_size, 2, "N or (H, W)"),
            ("--batch", self.batch, 3, "N or (MIN, OPT, MAX)"),
        ):
            parts = value if isinstance(value, tuple) and len(value) == length else (value,)
            if not all(isinstance(part, int) for part in parts):
                raise UsageError(f"{option} {shown(value)}: must be {form}, whole numbers")
        for option, text in (("--out", self.out), ("--keep-onnx", self.keep_onnx), ("--weights", self.weights)):
            try:
                str(text).encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"{option} {str(text)!r}: must be UTF-8, for the manifest") from error

    def _check_numbers(self) -> None:
        patch = self.backbone.patch
        for side in (self.height, self.width):
            if not (patch <= side <= patch * MAX_GRID and side % patch == 0):
                nearest = patch * min(max(round(side / patch), 1), MAX_GRID)
                raise UsageError(
                    f"--image-size {self.height}x{self.width}: each side must be a multiple of {patch} "
                    f"from {patch} to {patch * MAX_GRID}, such as {nearest}"
                )
        low, best, high = self.profile
        if not 1 <= low <= best <= high <= MAX_BATCH:
            raise UsageError(f"--batch {low},{best},{high}: must be MIN,OPT,MAX with 1 ≤ MIN ≤ OPT ≤ MAX ≤ {MAX_BATCH}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace-mib {self.workspace_mib}: must be at least 1")
        if not 1 <= self.parity_samples <= 64:
            raise UsageError(f"--parity-samples {self.parity_samples}: must be from 1 to 64")

    def _check_outputs(self) -> None:
        for name in self.outputs:
            _check_word("--outputs", name, OUTPUTS)
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise UsageError(f"--outputs {','.join(self.outputs)}: name each output once, at least one")
        if self.itae is None and (artifacts := [name for name in self.outputs if name.startswith("artifact_")]):
            raise UsageError(f"--outputs {artifacts[0]} needs ITAE, and --no-itae was given")
        if "embedding" not in self.outputs and (self.pooling != "cls" or self.normalize):
            shaping = f"--pooling {self.pooling}" if self.pooling != "cls" else "--normalize"
            raise UsageError(f"{shaping} shapes the embedding, which is not among --outputs {','.join(self.outputs)}")

    @property
    def path(self) -> Path:
        """`out` as a path."""
        return Path(self.out)

    @property
    def makes_engine(self) -> bool:
        """Whether `out` is a TensorRT engine."""
        return self.path.suffix in ENGINE_SUFFIXES

    @property
    def resolved_precision(self) -> Precision:
        """The precision, the default filled in."""
        return self.precision or ("fp16" if self.makes_engine else "fp32")

    @property
    def backbone(self) -> Architecture:
        """The architecture of `size`."""
        return self.size if isinstance(self.size, Architecture) else architecture(self.size)

    @property
    def height(self) -> int:
        """H in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """W in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    @property
    def facts(self) -> GraphFacts:
        """What surgery needs to know of the model."""
        return self.backbone.facts((self.height, self.width))

    @property
    def layers(self) -> tuple[int, ...]:
        """The K layers that ITAE works in; none for plain DINOv2."""
        return self.itae.layer_indices(self.backbone.depth) if self.itae else ()

    @property
    def computes_cls_only(self) -> bool:
        """Whether the last block computes the CLS token's row alone: no output needs another, and it is wanted."""
        return self.cls_only and self.pooling == "cls" and "patch_tokens" not in self.outputs

    def flags_alone(self) -> ExportSpec:
        """The same surgery with `artifact_mask` as the only output."""
        return dataclasses.replace(
            self, outputs=("artifact_mask",), pooling="cls", normalize=False, cls_only=self.computes_cls_only
        )

    @property
    def limits(self) -> ParityLimits:
        """What parity is held to."""
        return LIMITS[self.resolved_precision].model_copy(update={"normalized": self.normalize})

    @property
    def embedding_width(self) -> int:
        """Elements of an embedding: C, or 2 C with the mean patch token."""
        return self.backbone.width * (2 if self.pooling == "cls+mean" else 1)

    @property
    def profile(self) -> tuple[int, int, int]:
        """min, opt, max of the batch."""
        return (self.batch, self.batch, self.batch) if isinstance(self.batch, int) else self.batch

    def input_info(self) -> TensorInfo:
        """The model's input."""
        if self.input == "uint8":
            return TensorInfo(name="images", dtype="uint8", shape=("batch", self.height, self.width, 3))
        return TensorInfo(name="pixel_values", dtype="float32", shape=("batch", 3, self.height, self.width))

    def output_info(self, name: str) -> TensorInfo:
        """One of the model's outputs."""
        C, P, K = self.backbone.width, self.facts.patches, len(self.layers)
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.embedding_width,), "patch_tokens": (P, C)}
        shape = shapes.get(name, (K, P))
        return TensorInfo(name=name, dtype="bool" if name == "artifact_mask" else "float32", shape=("batch", *shape))

    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the model's input, for the manifest.

        A float32 model takes (B, 3, H, W), normalised by the caller; a uint8 model takes (B, H, W, 3), which the graph
        normalises. Either is cut from a picture that covers 256/224 of its size. Source: exporter/ITAE.md.
        """
        is_float = self.input == "float32"
        height, width = ((side * 256 * 2 + 224) // (224 * 2) for side in (self.height, self.width))  # rounded
        return Preprocessing(
            resize_cover=(height, width),
            crop=(self.height, self.width),
            layout="NCHW" if is_float else "NHWC",
            dtype=self.input,
            scale=1 / 255,
            mean=self.backbone.mean,
            std=self.backbone.std,
            normalized_by="caller" if is_float else "graph",
        )

    def check_folder(self) -> None:
        """Refuse before the work what could not be published after it.

        Raises:
            OutputFileError: a folder to write to is missing or read-only, a file's place is taken by a folder, or its
                name is too long.
        """
        for target in self._targets():
            if not target.parent.is_dir():
                raise OutputFileError(f"can't write {target}: there is no folder {target.parent}; make it first")
            for file in _files_of(target):
                try:
                    if file.is_dir():
                        raise OutputFileError(f"can't write {file}: it is a folder")
                except OSError as error:  # a name that is too long, with what the exporter adds to it
                    raise cannot_write(file, error) from error
            if not os.access(target.parent, os.W_OK):
                raise OutputFileError(f"can't write {target}: the folder {target.parent} is read-only")
            if target.parent.stat().st_dev != self.path.parent.stat().st_dev:
                raise OutputFileError(f"{target} lies on another file system than {self.path}: keep both on one")
        if self.timing_cache is not None:
            folder = Path(self.timing_cache).parent
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise OutputFileError(f"can't write {self.timing_cache}: the folder {folder} is missing or read-only")

    def _targets(self) -> list[Path]:
        """The models that are published."""
        return [self.path] if self.keep_onnx is None else [self.path, Path(self.keep_onnx)]

    def _published(self) -> list[Path]:
        """Every file that is."""
        return [file for target in self._targets() for file in _files_of(target)]


def _files_of(target: Path) -> tuple[Path, ...]:
    """The files that a model may have."""
    return target, manifest_path(target), parity_path(target), target.with_name(f"{target.name}.data")


def _option(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def _check_word(option: str, word: str | None, words: tuple[str | None, ...]) -> None:
    if word not in words:
        raise UsageError(f"{option} {word!r}: must be one of {', '.join(w for w in words if w)}")
