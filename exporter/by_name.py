"""`python -m exporter --model hf:NAME|timm:NAME`: a model of transformers or timm on the road of a foreign file.

This file knows the order: load, trace, compare with the library's eager result, then `exporter.foreign`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from exporter.command_line import export_parser, run_export
from exporter.declaration import FileName, Option, Text, WordList, check_options, declared
from exporter.foreign.request import CHECKS, ENGINE, FLAG_OUTPUTS, PICTURES, WHAT, ForeignSpec
from exporter.method_arguments import Method, remarks
from exporter.methods.itae.options import GROUP as ITAE
from exporter.steps import Progress
from runtime.contract.atomic import cannot_write, work_folder
from runtime.contract.errors import ParityError, UsageError
from runtime.contract.machine import thread_limit

if TYPE_CHECKING:
    from exporter.foreign.delivered import Delivered
    from exporter.models.named_model import NamedModel

EPILOG = """\
examples:
  python -m exporter --model hf:google/vit-base-patch16-224 --out vit.onnx
  python -m exporter --model hf:facebook/dinov3-vitb16-pretrain-lvd1689m --out dinov3.onnx --image-size 448
  python -m exporter --model timm:vit_base_patch14_reg4_dinov2.lvd142m --out reg4.onnx --image-size 224
  python -m exporter --model timm:vit_base_patch16_224 --weights mine.safetensors --out mine.onnx
  python -m exporter --model hf:google/vit-base-patch16-224 --no-itae --out plain.onnx
      the plain model, to compare with; `calibrate --onnx plain.onnx` looks for artifacts in your own images, and
      --config takes what it recommends
  python -m exporter --model timm:vit_base_patch16_224 --input uint8 --outputs embedding,artifact_mask --out itae.engine
      an engine that takes pictures as they are decoded, and shows the patches that are flagged
The trace is compared with the library's own result, and the new file with the trace and ITAE in numpy, on every export.
"""
TRACED = ("embedding", "patch_tokens")
"""Outputs of the library's model."""
OUTPUTS = (*TRACED, *FLAG_OUTPUTS)
NOT_OURS = ("onnx", "calibration", "embedding", "pooling", "prefix_tokens", "fix_input", "add_outputs")
"""Options for a file of unknown origin that a library answers."""
LIMIT = 1e-4
"""Largest difference of the trace to the library's eager result, as a share of the largest number where above 1."""
SAMPLES = 2


def _name(option: str, text: str) -> None:
    library, colon, rest = text.partition(":")
    if library not in ("hf", "timm") or not colon or not rest:
        raise UsageError(f"{option} {text!r}: must be hf:REPO[@REVISION], hf:FOLDER or timm:NAME")


@dataclass(frozen=True)
class ModelChoice:
    """The model of a library, and which outputs of it are wanted.

    Raises:
        UsageError: the value of an option has no meaning.
    """

    model: Annotated[
        str,
        Option(
            "hf:REPO[@REVISION] or hf:FOLDER, a model of transformers (a folder begins with a slash, a dot or a "
            "tilde); timm:NAME, a model of timm",
            WHAT,
            Text("NAME", _name),
        ),
    ]
    weights: Annotated[
        str,
        Option(
            "auto (those of the name), a file or folder with others for this model, random[:SEED]",
            WHAT,
            FileName("W", as_text=True),
        ),
    ] = "auto"
    outputs: Annotated[tuple[str, ...], Option(f"any of {','.join(OUTPUTS)}", WHAT, WordList("LIST", OUTPUTS))] = (
        "embedding",
    )
    pooling: Annotated[
        Literal["library", "cls", "mean", "cls+mean"],
        Option(
            "the embedding: what the library pools, such as a pooling head's result (without one the CLS token, and "
            "without that the mean patch token), or what you say",
            WHAT,
        ),
    ] = "library"

    def __post_init__(self) -> None:
        check_options(self)
        if not self.traced:
            raise UsageError(f"--outputs {','.join(self.outputs)}: add embedding or patch_tokens")

    @property
    def traced(self) -> tuple[str, ...]:
        """Those of the outputs that the library's model gives."""
        return tuple(name for name in self.outputs if name in TRACED)

    @property
    def flags(self) -> tuple[str, ...] | None:
        """Those of the outputs that ITAE gives; None if there are none."""
        return tuple(name for name in self.outputs if name in FLAG_OUTPUTS) or None


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `ModelChoice`, `ForeignSpec` and `ItaeConfig`."""
    return export_parser(
        "Export a vision transformer that transformers or timm loads by its name, with ITAE.",
        EPILOG,
        (WHAT, PICTURES, ITAE, ENGINE, CHECKS),
        {ModelChoice: (), ForeignSpec: NOT_OURS},
        plain=declared(ForeignSpec)["itae"].option.help,
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    return run_export(parser, argv, _export)


def _export(a: argparse.Namespace, method: Method, progress: Progress) -> list[str]:
    choice = ModelChoice(**{name: getattr(a, name) for name in declared(ModelChoice)})
    options = {name: getattr(a, name) for name in declared(ForeignSpec) if name not in ("itae", *NOT_OURS)}
    spec = ForeignSpec(
        onnx="traced.onnx", **options, itae=method.itae, calibration=method.calibration, add_outputs=choice.flags
    )
    for remark in remarks(a, method):
        progress.note(remark)
    result = export_by_name(choice, spec, progress)
    from exporter.foreign.delivered import summary

    return summary(result)


def export_by_name(choice: ModelChoice, spec: ForeignSpec, progress: Progress) -> Delivered:
    """Put ITAE into a model of a library; nothing appears at `spec.out` before all of it is proven.

    Args:
        choice: the model.
        spec: what is done with it; `onnx` is the trace's business.
        progress: shows the steps.

    Raises:
        ItaeError: one of the kinds of `runtime.contract.errors`; the message speaks to the user.
    """
    from exporter import trace  # torch and the libraries: not for --help
    from exporter.foreign import delivery
    from exporter.foreign.fold import fold_constants
    from exporter.foreign.library_model import LibraryModel

    spec.check_folder()
    try:
        with work_folder(beside=spec.path) as work:
            with progress.step("load", f"{choice.model}, weights {choice.weights}"):
                model = _load(choice, spec)
            _say(model, progress)
            with progress.step("trace", "PyTorch to ONNX"):
                traced = trace.export_module(model.module, model.image_size, choice.traced, work)
                fold_constants(traced)
            with progress.step("eager", f"ONNX Runtime against {model.library}, eager"):
                off = _check_trace(model, choice, traced)
                progress.detail(f"differs by {off:.2g}, limit {LIMIT:g}")
            if spec.calibration is not None:
                _check_calibration(spec, model.name, traced, work / "plain")
            facts = LibraryModel(
                model.name, model.library, model.module.prefix,
                "cls" if model.module.pooling == "library" else model.module.pooling, model.origin,
                ("torch", "transformers") if choice.model.startswith("hf:") else ("torch", "timm"),
            )  # fmt: skip
            spec = _told(spec, model, traced)
            del model
            gc.collect()
            return delivery.deliver(spec, progress, facts)
    except OSError as error:
        raise cannot_write(spec.path, error) from error


def _load(choice: ModelChoice, spec: ForeignSpec) -> NamedModel:
    import torch

    from exporter.models import from_timm, from_transformers, weights

    weights.quiet_libraries()
    if (limit := thread_limit()) is not None and torch.get_num_threads() > limit:
        torch.set_num_threads(limit)
    load = from_transformers.load if choice.model.startswith("hf:") else from_timm.load
    model = load(choice.model, choice.weights, spec.height_and_width)
    model.module.choose(choice.pooling, choice.traced, model.image_size, model.patch, model.name)
    return model


def _say(model: NamedModel, progress: Progress) -> None:
    """Show what the library says, and in what the runtime differs from it."""
    for note in model.origin.notes:
        progress.note(note)
    words = {
        "library": f"what {model.library} pools",
        "cls": "the CLS token",
        "mean": "the mean patch token",
        "cls+mean": "the CLS token and the mean patch token",
    }
    progress.note(f"the embedding is {words[model.module.pooling]} (--pooling says another)")
    if model.pictures is None:
        return
    for note in model.pictures.notes:
        progress.note(note)


def _told(spec: ForeignSpec, model: NamedModel, traced: Path) -> ForeignSpec:
    """The request of a foreign file's road, with all that the library knows."""
    spec = dataclasses.replace(spec, onnx=traced, image_size=model.image_size, prefix_tokens=model.module.prefix)
    if (pictures := model.pictures) is None or spec.preprocessor is not None:
        return spec
    spec = dataclasses.replace(
        spec,
        mean=spec.mean or _text(pictures.mean),
        std=spec.std or _text(pictures.std),
        interpolation=spec.interpolation or pictures.interpolation,
    )
    if spec.fit != "crop" or spec.resize_to is not None:
        return spec
    return dataclasses.replace(spec, fit=pictures.fit, resize_to=pictures.cover)


def _text(numbers: tuple[float, float, float]) -> str:
    return ",".join(map(repr, numbers))


def _check_calibration(spec: ForeignSpec, name: str, traced: Path, folder: Path) -> None:
    """Compare the plain file that the calibration was made for with the one that `--no-itae` would give now.

    Raises:
        UsageError: it was made for another file.
    """
    from exporter.foreign.onnx_file import open_onnx
    from exporter.foreign.operation import save

    folder.mkdir()
    trace, plain = open_onnx(traced), folder / "plain.onnx"
    save(trace.model, trace, plain, "plain.onnx.data", as_one=True)
    assert spec.calibration is not None
    if spec.calibration.weights_sha256 != open_onnx(plain).sha256:
        raise UsageError(
            f"--config was made for another model than {name}: export it with --no-itae, and make one with "
            "`calibrate --onnx` of that file"
        )


def _check_trace(model: NamedModel, choice: ModelChoice, traced: Path) -> float:
    """Compare the trace with the library's eager result on seeded noise.

    Returns:
        The largest difference, as a share of the largest number where that is above 1.

    Raises:
        ParityError: it is over `LIMIT`.
    """
    import numpy as np
    import torch

    from exporter.foreign.probe import open_session

    noise = np.random.default_rng(20_261_130).standard_normal((SAMPLES, 3, *model.image_size)).astype(np.float32)
    noise[1] *= 0.1
    with torch.inference_mode():
        eager = [one.numpy() for one in model.module(torch.from_numpy(noise))]
    got = open_session(traced, Path(model.name)).run(list(choice.traced), {"pixel_values": noise})
    worst = 0.0
    for name, want, have in zip(choice.traced, eager, got, strict=True):
        off = float(np.abs(want - have).max() / max(1.0, np.abs(want).max())) if want.shape == have.shape else np.inf
        if not off <= LIMIT:
            raise ParityError(
                f"{model.name}: the trace gives another {name} than {model.library}, off by {off:.3g}, limit {LIMIT:g}"
            )
        worst = max(worst, off)
    return worst
