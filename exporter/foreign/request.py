"""The options of an export from somebody else's ONNX, as frozen data."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from exporter.declaration import FileName, Instance, Option, Sizes, Text, Whole, WordList, check_options
from exporter.image_processor import IMAGENET, Pictures, ResizeFilter, Three, pictures_of, read_processor
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import ItaeConfig
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.manifest import Calibration, Preprocessing, manifest_path, parity_path

WHAT, PICTURES, ENGINE, CHECKS = "what to export", "pictures", "engine", "checks and output"
"""Headings of `--help`."""

Pooling = Literal["cls", "mean", "cls+mean"]
Fit = Literal["crop", "pad", "squash"]
Precision = Literal["fp32", "fp16", "bf16"]
Backend = Literal["auto", "tensorrt", "tensorrt-rtx"]
ENGINE_SUFFIXES = (".engine", ".plan")
MAX_BATCH = 65_535
FLAG_OUTPUTS = ("artifact_mask", "artifact_norm")
"""Outputs that ITAE offers."""


def _three(option: str, text: str) -> Three:
    """Three numbers with commas between them.

    Raises:
        UsageError: they are not.
    """
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: must be three numbers R,G,B such as 0.485,0.456,0.406") from error
    return red, green, blue


def _stds(option: str, text: str) -> Three:
    found = _three(option, text)
    if not all(one > 0 for one in found):
        raise UsageError(f"{option} {text!r}: must be three numbers above 0")
    return found


def _fixed(option: str, text: str) -> None:
    """Check the form NAME=VALUE of each input.

    Raises:
        UsageError: one has another form.
    """
    for one in text.split(","):
        name, equals, value = one.partition("=")
        try:
            is_number = value.lower() in ("true", "false") or math.isfinite(float(value))
        except ValueError:
            is_number = False
        if not (name and equals and is_number):
            raise UsageError(f"{option} {text!r}: must be NAME=VALUE, a number, true or false")


@dataclass(frozen=True)
class ForeignSpec:
    """One export from an ONNX file that somebody else made.

    Raises:
        UsageError: the value of an option has no meaning, or two options contradict each other.
    """

    onnx: Annotated[
        str | os.PathLike[str], Option("the ONNX file; its external data lies beside it", WHAT, FileName("FILE"))
    ]
    out: Annotated[
        str | os.PathLike[str],
        Option("X.onnx: the new file; X.engine or X.plan: a TensorRT engine of it", WHAT, FileName("FILE")),
    ]
    itae: Annotated[
        ItaeConfig | None,
        Option("the model as it is, published in the same way, to compare with", ITAE, Instance(of=ItaeConfig)),
    ] = field(default_factory=ItaeConfig)
    """None: the plain model."""
    calibration: Annotated[
        Calibration | None, Option("the calibration that `itae` was taken from", ITAE, Instance(of=Calibration))
    ] = None
    """For the manifest; None if `itae` was taken from none."""
    embedding: Annotated[
        str | None,
        Option(
            "a tensor of the graph, by its name, to become the output `embedding`: (B, C), or tokens (B, N, C), which "
            "are pooled; without it the outputs stay as they are",
            WHAT,
            Text("NAME"),
        ),
    ] = None
    pooling: Annotated[
        Pooling,
        Option("what of tokens (B, N, C) is the embedding: the CLS token, the mean patch token, or both", WHAT),
    ] = "cls"
    add_outputs: Annotated[
        tuple[str, ...] | None,
        Option(
            "outputs behind the file's own: artifact_mask, the patches that are flagged, and artifact_norm; (B, K, P), "
            "K being the layers that ITAE works in",
            WHAT,
            WordList("LIST", FLAG_OUTPUTS),
        ),
    ] = None
    input: Annotated[
        Literal["float32", "uint8"],
        Option("float32: pixel_values (B, 3, H, W), normalised; uint8: images (B, H, W, 3)", WHAT),
    ] = "float32"
    """uint8 is for a trace of a library's model: the inputs of a file that somebody else made stay."""
    prefix_tokens: Annotated[
        int | None,
        Option(
            "number of tokens before the patches: CLS, registers (default: as the graph shows)", WHAT, Whole("K", 0)
        ),
    ] = None
    fix_input: Annotated[
        str | None,
        Option(
            "an input that is no picture becomes a constant; open sizes are 1: NAME=VALUE, several with commas between",
            WHAT,
            Text("LIST", _fixed),
        ),
    ] = None
    precision: Annotated[
        Precision | None,
        Option(
            "of matrix products (default: as the file has it); softmax, norms and what they add to stay float32", WHAT
        ),
    ] = None
    faster: Annotated[
        bool,
        Option(
            "passes that only make it faster and change rounding: scale on the queries, and the last layer for the "
            "tokens alone that the outputs need; engines and half precision always have them",
            WHAT,
        ),
    ] = False
    backend: Annotated[Backend, Option("auto: TensorRT if it and a GPU are there, else TensorRT-RTX", ENGINE)] = "auto"
    batch: Annotated[
        int | tuple[int, int, int],
        Option(
            "batch sizes of the engine's profile, or one fixed size; a file of a fixed batch keeps it",
            ENGINE,
            Sizes("MIN,OPT,MAX|N", 3, ",", ("N or MIN,OPT,MAX, such as 1,8,64", "N or (MIN, OPT, MAX)")),
        ),
    ] = (1, 8, 64)
    replay: Annotated[bool, Option("publish an engine without a run on a GPU here", CHECKS)] = True
    image_size: Annotated[
        int | tuple[int, int] | None,
        Option(
            "size of the pictures, where the graph leaves height and width open; in ONNX they stay open",
            PICTURES,
            Sizes("N|HxW"),
        ),
    ] = None
    mean: Annotated[
        str | None, Option("mean of each channel (default: ImageNet's)", PICTURES, Text("R,G,B", _three))
    ] = None
    std: Annotated[
        str | None,
        Option("standard deviation of each channel (default: ImageNet's)", PICTURES, Text("R,G,B", _stds)),
    ] = None
    resize_to: Annotated[
        int | tuple[int, int] | None,
        Option("what a resized picture covers, before its centre is cut out (default: 256/224 of the size)", PICTURES,
               Sizes("N|HxW")),
    ] = None  # fmt: skip
    fit: Annotated[
        Fit,
        Option(
            "crop: cut the centre out; pad: keep all of it on a ground of the mean; squash: change its aspect", PICTURES
        ),
    ] = "crop"
    interpolation: Annotated[ResizeFilter | None, Option("the filter that resizes (default: bicubic)", PICTURES)] = None
    preprocessor: Annotated[
        str | os.PathLike[str] | None,
        Option("take all of this from a preprocessor_config.json of transformers", PICTURES, FileName("FILE")),
    ] = None
    parity_samples: Annotated[int, Option("number of golden images", CHECKS, Whole("N", 1, 64))] = 4

    def __post_init__(self) -> None:
        check_options(self)
        out = self.path
        if out.suffix not in (".onnx", *ENGINE_SUFFIXES) or out.name == out.suffix or ".." in out.name:
            raise UsageError(f"--out {out}: must end in .onnx, .engine or .plan, without two dots in a row")
        for option, given in (
            (f"--backend {self.backend}", self.backend != "auto"),
            ("--batch", self.batch != (1, 8, 64)),
            ("--no-replay", not self.replay),
        ):
            if given and not self.makes_engine:
                raise UsageError(f"{option} is for engines: --out is an ONNX file")
        if self.faster and self.makes_engine:
            raise UsageError("--faster is for ONNX files: an engine always has these passes")
        if self.precision == "bf16" and not self.makes_engine:
            raise UsageError("--precision bf16 is for engines: ONNX Runtime's CPU, which proves the file, can't run it")
        low, best, high = self.profile
        if not 1 <= low <= best <= high <= MAX_BATCH:
            raise UsageError(f"--batch {low},{best},{high}: must be MIN,OPT,MAX with 1 ≤ MIN ≤ OPT ≤ MAX ≤ {MAX_BATCH}")
        if out.absolute() == Path(self.onnx).absolute():
            raise UsageError(f"--out {out}: is the file that --onnx reads: name another")
        if self.itae is not None and self.itae.attenuation.kind == "none":
            raise UsageError("--attenuate none changes nothing, and a foreign graph's outputs stay as they are")
        if self.add_outputs is not None:
            if self.itae is None:
                raise UsageError(f"the output {self.add_outputs[0]} needs ITAE, and --no-itae was given")
            if self.itae.limit.kind == "positions" and "artifact_norm" in self.add_outputs:
                raise UsageError(
                    f"the output artifact_norm: --threshold {self.itae.threshold} looks at no norm; leave it out"
                )
        own = (self.mean, self.std, self.resize_to, self.interpolation)
        if self.preprocessor is not None and (any(own) or self.fit != "crop"):
            raise UsageError(
                "--preprocessor contradicts --mean, --std, --resize-to, --fit and --interpolation: drop either"
            )
        if self.fit != "crop" and self.resize_to is not None:
            raise UsageError(f"--resize-to is for --fit crop, not for {self.fit}")
        if self.pooling != "cls" and self.embedding is None:
            raise UsageError(f"--pooling {self.pooling} makes an embedding of tokens: name them by --embedding NAME")

    @property
    def path(self) -> Path:
        """`out` as a path."""
        return Path(self.out)

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """H and W in pixels; None if they were not given."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def makes_engine(self) -> bool:
        """Whether `out` is a TensorRT engine."""
        return self.path.suffix in ENGINE_SUFFIXES

    @property
    def profile(self) -> tuple[int, int, int]:
        """min, opt, max of an engine's batch."""
        return (self.batch,) * 3 if isinstance(self.batch, int) else self.batch

    @property
    def half(self) -> Literal["fp16", "bf16"] | None:
        """The half precision that was asked for."""
        return None if self.precision is None or self.precision == "fp32" else self.precision

    @property
    def is_told(self) -> bool:
        """Whether the user says how pictures are normalised."""
        return self.mean is not None or self.std is not None or self.preprocessor is not None

    def preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        """How a picture becomes the model's input (B, 3, H, W), for the manifest.

        Raises:
            InputError: the preprocessor's file can't be used.
        """
        found = self._of_float32(size)
        if self.input == "float32":
            return found
        return found.model_copy(update={"layout": "NHWC", "dtype": "uint8", "normalized_by": "graph"})

    def _of_float32(self, size: tuple[int, int]) -> Preprocessing:
        if self.preprocessor is not None:
            told = self.pictures(size)
            return _preprocessing(size, told.fit, told.cover, told.mean, told.std, told.interpolation)
        cover = self.resize_to
        if cover is None:
            cover = tuple((side * 256 * 2 + 224) // (224 * 2) for side in size)  # type: ignore[assignment]  # two
        mean = IMAGENET[0] if self.mean is None else _three("--mean", self.mean)
        std = IMAGENET[1] if self.std is None else _stds("--std", self.std)
        both = (cover, cover) if isinstance(cover, int) else cover
        return _preprocessing(size, self.fit, both, mean, std, self.interpolation or "bicubic")

    def pictures(self, size: tuple[int, int]) -> Pictures:
        """How the preprocessor's file makes pictures the input of a model for H, W.

        Raises:
            InputError: it can't be used.
        """
        path = Path(str(self.preprocessor))
        return pictures_of(read_processor(path), size, str(path))

    def check_folder(self) -> None:
        """Refuse before the work what could not be published after it.

        Raises:
            OutputFileError: the folder is missing or read-only, or a file's place is taken by a folder.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise OutputFileError(f"can't write {self.path}: there is no folder {folder}; make it first")
        for one in (self.path, manifest_path(self.path), parity_path(self.path)):
            if one.is_dir():
                raise OutputFileError(f"can't write {one}: it is a folder")
        if not os.access(folder, os.W_OK):
            raise OutputFileError(f"can't write {self.path}: the folder {folder} is read-only")


def _preprocessing(
    size: tuple[int, int], fit: Fit, cover: tuple[int, int] | None, mean: Three, std: Three, by: ResizeFilter
) -> Preprocessing:
    if fit == "crop" and cover is not None and any(a < b for a, b in zip(cover, size, strict=True)):
        raise UsageError(f"--resize-to {cover[0]}x{cover[1]}: does not cover the model's {size[0]}x{size[1]}")
    return Preprocessing(
        resize_filter=by, fit=fit, resize_cover=cover if fit == "crop" else None, crop=size, layout="NCHW",
        dtype="float32", scale=1 / 255, mean=mean, std=std, normalized_by="caller",
    )  # fmt: skip
