"""The command line of `python -m exporter`, made from the options' own data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from exporter.methods.itae.options import SIDES, SOURCES, ItaeConfig
from exporter.models.architecture import ARCHITECTURES
from exporter.options import BACKENDS, INPUTS, OUTPUTS, POOLINGS, POS_EMBEDS, PRECISIONS, ExportSpec
from runtime.contract.console import Parser
from runtime.contract.errors import UsageError

EXAMPLES = """\
examples:
  python -m exporter --size vitb14 --out itae.engine
      DINOv2 ViT-B with ITAE, fp16, as a TensorRT engine
  python -m exporter --size vits14_reg --out small.onnx --image-size 518
      an ONNX file for ONNX Runtime, fp32, 518x518 pixels
  python -m exporter --weights dinov2_vitb14_pretrain.pth --out itae.onnx
      Meta's own checkpoint from a file
  python -m exporter --out paper.engine --layers last --side low --threshold absolute:30 --attenuate min
      the paper's own form; 30 stands for its θ, which it sets per data set
  python -m exporter --size vits14 --weights random:0 --out try.onnx
      random weights, to try things out where there is no network
"""


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `ExportSpec` and `ItaeConfig`."""
    itae = ItaeConfig()
    program = Path(sys.argv[0]).name
    p = Parser(
        prog=program if program not in ("__main__.py", "") else "python -m exporter",
        description="Export DINOv2 with ITAE (Inference-Time Attention Engineering) as a TensorRT engine or ONNX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to export")
    what.add_argument("--size", default="vitb14", metavar="SIZE", help=f"{', '.join(ARCHITECTURES)} (default: vitb14)")
    what.add_argument(
        "--weights", default="auto", metavar="W",
        help="auto (the official model from the Hugging Face hub), a path (.pth in Meta's naming, .safetensors, "
        "a Hugging Face folder), hf:REPO[@REVISION], random[:SEED] (default: auto)",
    )  # fmt: skip
    what.add_argument(
        "--out", required=True, metavar="FILE", help="X.engine or X.plan: a TensorRT engine; X.onnx: ONNX"
    )
    what.add_argument("--precision", choices=PRECISIONS, help="default: fp16 for an engine, fp32 for ONNX")
    what.add_argument("--image-size", default="224", metavar="N|HxW", help="multiples of 14 (default: 224)")
    what.add_argument(
        "--outputs",
        default="embedding",
        metavar="LIST",
        help=f"any of {','.join(OUTPUTS)} (default: embedding)",
    )
    what.add_argument(
        "--pooling", choices=POOLINGS, default="cls",
        help="the embedding: the CLS token, or it beside the mean patch token, 2 C wide (default: cls)",
    )  # fmt: skip
    what.add_argument("--normalize", action="store_true", help="divide the embedding by its L2 norm")
    what.add_argument(
        "--no-cls-only", dest="cls_only", action="store_false",
        help="compute all tokens in the last block, where the CLS token alone would do",
    )  # fmt: skip
    what.add_argument(
        "--input", choices=INPUTS, default="float32",
        help="float32: pixel_values (B, 3, H, W), normalised; uint8: images (B, H, W, 3) (default: float32)",
    )  # fmt: skip
    what.add_argument(
        "--pos-embed", choices=POS_EMBEDS, default="meta",
        help="interpolate the position embedding as Meta's code or as the Hugging Face port (default: meta)",
    )  # fmt: skip
    _itae_group(p, itae)
    _engine_group(p)
    talk = p.add_argument_group("checks and talk")
    talk.add_argument(
        "--parity-samples",
        type=_whole("--parity-samples"),
        default=4,
        metavar="N",
        help="golden images (default: 4)",
    )
    loud = talk.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="nothing but errors")
    loud.add_argument("--verbose", action="store_true", help="the builder's log, and tracebacks of errors")
    return p


def _itae_group(p: argparse.ArgumentParser, itae: ItaeConfig) -> None:
    group = p.add_argument_group("ITAE (see README)")
    group.add_argument(
        "--layers",
        default=itae.layers,
        metavar="LIST",
        help="last, all, or a list such as 0,5,8-11 (default: last)",
    )
    group.add_argument("--source", choices=SOURCES, default=itae.source, help="whose norm is looked at (default: key)")
    group.add_argument(
        "--threshold", default=itae.threshold, metavar="KIND:X",
        help="mad:λ, zscore:λ, ratio:λ (λ > 1) or absolute:τ (default: mad:5)",
    )  # fmt: skip
    group.add_argument(
        "--side", choices=SIDES, default=itae.side,
        help="norms that are too high, too low, or both; absolute needs high or low (default: both)",
    )  # fmt: skip
    group.add_argument(
        "--attenuate",
        default=itae.attenuate,
        metavar="HOW",
        help="min, mask, mean or scale:α, 0 < α < 1 (default: min)",
    )
    group.add_argument("--no-itae", action="store_true", help="plain DINOv2")


def _engine_group(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("engine")
    group.add_argument(
        "--backend", choices=BACKENDS, default="auto",
        help="auto: TensorRT where it and a GPU are, else TensorRT-RTX (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--batch", default="1,8,64", metavar="MIN,OPT,MAX|N",
        help="batch sizes of the engine's profile, or one fixed size; ONNX takes any (default: 1,8,64)",
    )  # fmt: skip
    group.add_argument("--workspace-mib", type=_whole("--workspace-mib"), metavar="M", help="scratch memory, MiB")
    group.add_argument("--keep-onnx", metavar="FILE", help="leave the ONNX file that the engine was built from")
    group.add_argument(
        "--timing-cache", metavar="FILE",
        help="TensorRT's timings, read if there and written after the build; TensorRT-RTX has none",
    )  # fmt: skip
    group.add_argument(
        "--require-fusion", action="store_true",
        help="an attention that the options allow to be one fused kernel and is not is an error",
    )  # fmt: skip


def to_spec(a: argparse.Namespace) -> ExportSpec:
    """Parsed arguments as an `ExportSpec`.

    Raises:
        UsageError: a value means nothing, or two contradict each other.
    """
    itae = ItaeConfig(a.layers, a.source, a.threshold, a.side, a.attenuate)
    if a.no_itae and itae != ItaeConfig():
        raise UsageError("--no-itae contradicts --layers, --source, --threshold, --side and --attenuate: drop either")
    return ExportSpec(
        out=a.out,
        size=a.size,
        weights=a.weights,
        backend=a.backend,
        precision=a.precision,
        image_size=_image_size(a.image_size),
        batch=_batch(a.batch),
        itae=None if a.no_itae else itae,
        outputs=tuple(name.strip() for name in a.outputs.split(",")),
        pooling=a.pooling,
        normalize=a.normalize,
        cls_only=a.cls_only,
        input=a.input,
        pos_embed=a.pos_embed,
        keep_onnx=a.keep_onnx,
        workspace_mib=a.workspace_mib,
        timing_cache=a.timing_cache,
        require_fusion=a.require_fusion,
        parity_samples=a.parity_samples,
    )


def _image_size(text: str) -> int | tuple[int, int]:
    sides = [_number("--image-size", text, side, "N or HxW, such as 224 or 224x448") for side in text.split("x")]
    if len(sides) > 2:
        _refuse("--image-size", text, "N or HxW, such as 224 or 224x448")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _batch(text: str) -> int | tuple[int, int, int]:
    form = "N or MIN,OPT,MAX, such as 1,8,64"
    sizes = [_number("--batch", text, size, form) for size in text.split(",")]
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) != 3:
        _refuse("--batch", text, form)
    return sizes[0], sizes[1], sizes[2]


def _whole(option: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  # argparse wants a callable
    return lambda text: _number(option, text, text, "a whole number")


def _number(option: str, text: str, part: str, form: str) -> int:
    part = part.strip()
    if not (part.isascii() and part.isdigit() and len(part) <= 9):
        _refuse(option, text, form)
    return int(part)


def _refuse(option: str, text: str, form: str) -> NoReturn:
    raise UsageError(f"{option} {text!r}: must be {form}")
