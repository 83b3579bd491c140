"""The options of an export as frozen data. Everything that can be refused before a weight is loaded is refused here.

Letters of shapes, here and everywhere: B batch, H heads, N tokens (1 + R + P), P patches, R registers,
C width, d head_dim (C = H · d), K chosen layers, S samples.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from exporter.declaration import (
    Between,
    FileName,
    Form,
    Instance,
    Option,
    Sizes,
    Whole,
    WordList,
    check_options,
    declared,
)
from exporter.graph_facts import GraphFacts
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import MAX_MEDIAN_PATCHES, ItaeConfig
from exporter.models.architecture import ARCHITECTURES, Architecture, PosEmbed, architecture
from runtime.contract.argument_types import shown
from runtime.contract.atomic import cannot_write
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.manifest import (
    Calibration,
    HardwareCompatibility,
    ItaeMethod,
    NoMethod,
    Preprocessing,
    TensorInfo,
    manifest_path,
    parity_path,
)

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Backend = Literal["auto", "tensorrt", "tensorrt-rtx"]
InputDtype = Literal["float32", "uint8"]
Pooling = Literal["cls", "cls+mean"]
Fit = Literal["crop", "pad", "squash"]

OUTPUTS = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
ENGINE_SUFFIXES = (".engine", ".plan")
CALIBRATE_LIMIT, MIN_COSINE = 256, 0.999
"""Defaults of int8's options."""
MAX_GRID = 512
"""Patches along a side; more is a slip of the pen: its attention logits alone would take terabytes."""
MAX_BATCH = 65_535
"""Images; no GPU runs more at a time."""
WHAT, INT8, ENGINE, CHECKS = "what to export", "int8", "engine", "checks and output"
"""Headings of `--help`."""


@dataclass(frozen=True)
class _Size(Form):
    """A name in `ARCHITECTURES`, or a backbone of one's own."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """An architecture, or the name of one."""
        if not isinstance(value, str | Architecture):
            raise UsageError(f"{option} {shown(value)}: must be one of {', '.join(ARCHITECTURES)}, or an Architecture")
        if isinstance(value, str):
            architecture(value)
        return value


@dataclass(frozen=True)
class ExportSpec:
    """One export. Options that are None take the default that fits the others.

    Raises:
        UsageError: the value of an option has no meaning, or two options contradict each other.
    """

    out: Annotated[
        str | os.PathLike[str],
        Option("X.engine or X.plan: a TensorRT engine; X.onnx: ONNX", WHAT, FileName("FILE")),
    ]
    size: Annotated[
        str | Architecture,
        Option(", ".join(ARCHITECTURES), WHAT, _Size("SIZE"), record=("size", "size_name")),
    ] = "vitb14"
    """A name, or a backbone of your own in DINOv2's shape."""
    weights: Annotated[
        str,
        Option(
            "auto (the official model from the Hugging Face hub), a path (a checkpoint of PyTorch, .safetensors, "
            "a Hugging Face folder, an .onnx file of the model), hf:REPO[@REVISION], random[:SEED]",
            WHAT,
            FileName("W", as_text=True),
        ),
    ] = "auto"
    backend: Annotated[Backend, Option("auto: TensorRT if it and a GPU are there, else TensorRT-RTX", ENGINE)] = "auto"
    precision: Annotated[
        Precision | None,
        Option(
            "default: fp16 for an engine, fp32 for ONNX; int8 needs --calibrate-images",
            WHAT,
            record=("precision", "resolved_precision"),
        ),
    ] = None
    calibrate_images: Annotated[
        str | os.PathLike[str] | None,
        Option(
            "pictures like those that the int8 model is for: a folder, or any other source that `embed` takes; half of "
            "them choose the scales, the other half checks them",
            INT8,
            FileName("SOURCE", as_text=True, recorded=False),
        ),
    ] = None
    calibrate_limit: Annotated[
        int | None,
        Option(
            f"take at most N pictures, drawn at random (default: {CALIBRATE_LIMIT})",
            INT8,
            Whole("N"),
        ),
    ] = None
    min_cosine: Annotated[
        float | None,
        Option(
            "smallest cosine of any picture's int8 embedding with its float32 one; layers stay float32 until the worst "
            f"picture that is checked keeps it with a margin (default: {MIN_COSINE})",
            INT8,
            Between("C"),
        ),
    ] = None
    image_size: Annotated[
        int | tuple[int, int],
        Option("multiples of 14", WHAT, Sizes("N|HxW"), record=("image_size", "height_and_width")),
    ] = 224
    """Pixels, N or (H, W)."""
    batch: Annotated[
        int | tuple[int, int, int],
        Option(
            "batch sizes of the engine's profile, or one fixed size; ONNX takes any",
            ENGINE,
            Sizes("MIN,OPT,MAX|N", 3, ",", ("N or MIN,OPT,MAX, such as 1,8,64", "N or (MIN, OPT, MAX)")),
            record=("batch", "profile"),
        ),
    ] = (1, 8, 64)
    itae: Annotated[
        ItaeConfig | None, Option("plain DINOv2", ITAE, Instance(of=ItaeConfig), record=("method", "method"))
    ] = field(default_factory=ItaeConfig)
    """None: plain DINOv2."""
    calibration: Annotated[
        Calibration | None, Option("the calibration that `itae` was taken from", ITAE, Instance(of=Calibration))
    ] = None
    """For the manifest; None if `itae` was taken from none."""
    outputs: Annotated[
        tuple[str, ...],
        Option(f"any of {','.join(OUTPUTS)}", WHAT, WordList("LIST", OUTPUTS), record=("outputs", "outputs")),
    ] = ("embedding",)
    pooling: Annotated[
        Pooling,
        Option(
            "the embedding: the CLS token, or the CLS token and the mean patch token, 2 C wide",
            WHAT,
            record=("pooling", "pooling"),
        ),
    ] = "cls"
    normalize: Annotated[
        bool, Option("divide the embedding by its L2 norm", WHAT, record=("normalize", "normalize"))
    ] = False
    cls_only: Annotated[
        bool,
        Option(
            "compute all tokens in the last block, even if the CLS token alone would do",
            WHAT,
            record=("cls_only", "computes_cls_only"),
        ),
    ] = True
    """Compute only the CLS token's row of the last block, wherever no output needs another."""
    input: Annotated[
        InputDtype,
        Option(
            "float32: pixel_values (B, 3, H, W), normalised; uint8: images (B, H, W, 3)",
            WHAT,
            record=("input", "input"),
        ),
    ] = "float32"
    fit: Annotated[
        Fit,
        Option(
            "how the runtime brings a picture to --image-size: crop cuts the centre out, as DINOv2 does; pad keeps all "
            "of it on a ground of the mean colour; squash changes its aspect",
            WHAT,
        ),
    ] = "crop"
    pos_embed: Annotated[
        PosEmbed,
        Option(
            "interpolate the position embedding as Meta's code or as the Hugging Face port",
            WHAT,
            record=("pos_embed", "pos_embed"),
        ),
    ] = "meta"
    keep_onnx: Annotated[
        str | os.PathLike[str] | None,
        Option("keep the ONNX file that the engine was built from", ENGINE, FileName("FILE")),
    ] = None
    workspace_mib: Annotated[
        int | None,
        Option(
            "scratch memory of a kernel, MiB (default: all of the GPU's)",
            ENGINE,
            Whole("M"),
            record=("workspace_mib", "workspace_mib"),
        ),
    ] = None
    hardware_compatibility: Annotated[
        HardwareCompatibility,
        Option(
            "other GPUs that TensorRT's engine must run on, perhaps more slowly: those of the same compute capability, "
            "or all from Ampere on (compute capability 8.0)",
            ENGINE,
            record=("hardware_compatibility", "hardware_compatibility"),
        ),
    ] = "none"
    version_compatible: Annotated[
        bool,
        Option(
            "build an engine that later versions of TensorRT run too, perhaps more slowly",
            ENGINE,
            record=("version_compatible", "version_compatible"),
        ),
    ] = False
    timing_cache: Annotated[
        str | os.PathLike[str] | None,
        Option(
            "TensorRT's timings, read if the file exists, written after the build; TensorRT-RTX has none",
            ENGINE,
            FileName("FILE", recorded=False),
        ),
    ] = None
    require_fusion: Annotated[
        bool, Option("fail if an attention that the options allow to be one fused kernel is not", ENGINE)
    ] = False
    unfused: Annotated[
        bool,
        Option(
            "write attention so that no builder makes one kernel of it: slower, for where its fused kernel is wrong",
            WHAT,
            record=("unfused", "unfused"),
        ),
    ] = False
    replay: Annotated[
        bool,
        Option(
            "publish without a run of what was made: of an engine on a GPU here, of an ONNX file in bf16 by OpenVINO",
            CHECKS,
        ),
    ] = True
    parity_samples: Annotated[
        int, Option("number of golden images", CHECKS, Whole("N", 1, 64), record=("parity_samples", "parity_samples"))
    ] = 4

    def __post_init__(self) -> None:
        check_options(self)
        self._check_out()
        self._check_int8()
        self._check_numbers()
        self._check_outputs()
        if self.itae is not None:
            self._check_itae(self.itae)

    def _check_out(self) -> None:
        if self.path.suffix not in (*ENGINE_SUFFIXES, ".onnx") or self.path.name == self.path.suffix:
            raise UsageError(f"--out {self.path}: must end in .engine or .plan (TensorRT), or in .onnx")
        if self.keep_onnx is not None:
            kept = Path(self.keep_onnx)
            if kept.suffix != ".onnx" or kept.name == ".onnx":
                raise UsageError(f"--keep-onnx {kept}: must end in .onnx")
            if not self.makes_engine:
                raise UsageError("--keep-onnx is for engines: --out is an ONNX file already")
        for option, given in (
            (f"--backend {self.backend}", self.backend != "auto"),
            ("--timing-cache", self.timing_cache),
            ("--require-fusion", self.require_fusion),
            ("--hardware-compatibility", self.hardware_compatibility != "none"),
            ("--version-compatible", self.version_compatible),
        ):
            if given and not self.makes_engine:
                raise UsageError(f"{option} is for engines: --out is an ONNX file")
        if self.require_fusion and self.unfused:
            raise UsageError("--require-fusion and --unfused contradict each other: leave one out")
        if not self.replay and not self.makes_engine and self.resolved_precision != "bf16":
            raise UsageError(f"--no-replay is for engines and bf16: parity runs ONNX in {self.resolved_precision}")
        published = [file.absolute() for file in self._published()]
        if self.timing_cache is not None and Path(self.timing_cache).absolute() in published:
            raise UsageError(f"--timing-cache {self.timing_cache}: is a file of the export itself; name another")
        for file in (self.out, self.keep_onnx):
            if file is not None and ".." in Path(file).name:  # onnx refuses external data of such a name
                raise UsageError(f"{file}: a file name must not hold two dots in a row")

    def _check_int8(self) -> None:
        options = ("calibrate_images", "calibrate_limit", "min_cosine")
        if self.resolved_precision != "int8":
            for name in options:
                if getattr(self, name) is not None:
                    raise UsageError(f"{declared(ExportSpec)[name].flag} is for --precision int8")
            return
        if self.calibrate_images is None:
            raise UsageError(
                "--precision int8 needs --calibrate-images: a folder of some hundred pictures like those that it is for"
            )
        if "embedding" not in self.outputs:
            raise UsageError(f"--precision int8 is checked by embeddings: add embedding to --outputs {self.outputs[0]}")

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

    def _check_outputs(self) -> None:
        if self.itae is None and (artifacts := [name for name in self.outputs if name.startswith("artifact_")]):
            raise UsageError(f"--outputs {artifacts[0]} needs ITAE, and --no-itae was given")
        if "embedding" not in self.outputs and (self.pooling != "cls" or self.normalize):
            shaping = f"--pooling {self.pooling}" if self.pooling != "cls" else "--normalize"
            raise UsageError(f"{shaping} shapes the embedding, which is not among --outputs {','.join(self.outputs)}")

    def _check_itae(self, itae: ItaeConfig) -> None:
        itae.layer_indices(self.backbone.depth)
        patches = self.facts.patches
        if self.makes_engine and itae.needs_median and patches > MAX_MEDIAN_PATCHES:
            raise UsageError(
                f"--threshold {itae.threshold} at {self.height}x{self.width} needs the median of "
                f"{patches} patches, TensorRT can take at most {MAX_MEDIAN_PATCHES}: "
                "use --threshold zscore:λ or absolute:τ, or a smaller --image-size"
            )
        if itae.limit.kind == "positions":
            if (last := itae.limit.indices[-1]) >= patches:
                raise UsageError(
                    f"--threshold {itae.threshold}: no patch {last}, an image of {self.height}x{self.width} has "
                    f"patches 0 to {patches - 1}"
                )
            if "artifact_norm" in self.outputs:
                raise UsageError(
                    f"--outputs artifact_norm: --threshold {itae.threshold} looks at no norm; leave it out"
                )
        if itae.attenuation.kind == "none" and not any(name.startswith("artifact_") for name in self.outputs):
            raise UsageError(
                "--attenuate none changes nothing: add artifact_mask or artifact_norm to --outputs to see what is "
                "found, or export plain DINOv2 by --no-itae"
            )

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
    def size_name(self) -> str:
        """The name of the architecture."""
        return self.backbone.name

    @property
    def method(self) -> NoMethod | ItaeMethod:
        """The method against artifacts, as the manifest records it."""
        return self.itae.resolved(self.backbone.depth) if self.itae else NoMethod()

    @property
    def height_and_width(self) -> tuple[int, int]:
        """H and W in pixels."""
        return self.height, self.width

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
        """The facts about the model that surgery needs."""
        return self.backbone.facts(self.height_and_width)

    @property
    def layers(self) -> tuple[int, ...]:
        """The K layers that ITAE works in; none for plain DINOv2."""
        return self.itae.layer_indices(self.backbone.depth) if self.itae else ()

    @property
    def computes_cls_only(self) -> bool:
        """Whether the last block computes the CLS token's row alone: no output needs another, and it is wanted."""
        return self.cls_only and self.pooling == "cls" and "patch_tokens" not in self.outputs

    def in_fp32(self) -> ExportSpec:
        """The same in fp32."""
        return dataclasses.replace(
            self, precision="fp32", calibrate_images=None, calibrate_limit=None, min_cosine=None, replay=True
        )

    def flags_alone(self) -> ExportSpec:
        """The same surgery with `artifact_mask` as the only output."""
        return dataclasses.replace(
            self, outputs=("artifact_mask",), pooling="cls", normalize=False, cls_only=self.computes_cls_only
        )

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

    def recorded(self, *, engine: bool) -> dict[str, Any]:
        """The content of the manifest's `Options`, by field, except for the weights' source and the backend.

        Args:
            engine: whether the manifest is an engine's; the options for engines are None in that of an ONNX file.
        """
        found = {}
        for one in declared(ExportSpec).values():
            if one.option.record is not None:
                name, attribute = one.option.record
                found[name] = getattr(self, attribute) if engine or one.option.group != ENGINE else None
        return found

    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the model's input, for the manifest.

        A float32 model takes (B, 3, H, W), normalised by the caller; a uint8 model takes (B, H, W, 3), which the graph
        normalises. With `fit` `crop`, either is cut from a picture that covers 256/224 of its size. Source:
        exporter/ITAE.md.
        """
        is_float = self.input == "float32"
        height, width = ((side * 256 * 2 + 224) // (224 * 2) for side in (self.height, self.width))  # rounded
        return Preprocessing(
            fit=self.fit,
            resize_cover=(height, width) if self.fit == "crop" else None,
            crop=self.height_and_width,
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
        for target in self.targets():
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

    def targets(self) -> list[Path]:
        """The models that are published."""
        return [self.path] if self.keep_onnx is None else [self.path, Path(self.keep_onnx)]

    def _published(self) -> list[Path]:
        """Every file that is."""
        return [file for target in self.targets() for file in _files_of(target)]


def _files_of(target: Path) -> tuple[Path, ...]:
    """The files that a model may have."""
    return target, manifest_path(target), parity_path(target), target.with_name(f"{target.name}.data")
