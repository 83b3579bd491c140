"""The command line of `python -m exporter`, made of the options' declarations."""

from __future__ import annotations

import argparse

from exporter.command_line import export_parser
from exporter.declaration import declared, given
from exporter.method_arguments import Method
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import ItaeConfig
from exporter.options import CHECKS, ENGINE, INT8, WHAT, ExportSpec
from runtime.contract.errors import UsageError

EXAMPLES = """\
examples:
  python -m exporter --size vitb14 --out itae.engine
      DINOv2 ViT-B with ITAE, fp16, as a TensorRT engine
  python -m exporter --size vits14_reg --out small.onnx --image-size 518
      an ONNX file for ONNX Runtime, fp32, 518x518 pixels
  python -m exporter --size vitb14 --precision int8 --calibrate-images photos/ --out fast.onnx
      int8 for CPUs: a quarter of the size; scales and figures from some hundred pictures of yours
  python -m exporter --weights dinov2_vitb14_pretrain.pth --out itae.onnx
      Meta's own checkpoint from a file
  python -m exporter --out paper.engine --preset paper --threshold absolute:30
      the paper's own form; 30 stands for its θ, which it sets per data set
  python -m exporter --weights eval/training_124999/teacher_checkpoint.pth --out own.onnx
      a checkpoint of your own training: the teacher's backbone, without its heads
  python -m exporter --size vitb14 --fit pad --out whole.onnx
      sees the whole of each picture, on a ground of the mean colour, instead of its centre
  python -m exporter calibrate --size vitb14 --images photos/ --out itae.json
  python -m exporter --size vitb14 --config itae.json --out itae.engine
      look for artifacts in your own images, then export by what was found; `calibrate --help` says more
  python -m exporter inspect their.onnx
  python -m exporter --onnx their.onnx --out itae.onnx
      put ITAE into an ONNX file of any vision transformer; `--onnx --help` shows its own options
  python -m exporter --size vits14 --weights random:0 --out try.onnx
      random weights, to try things out where there is no network
"""


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `ExportSpec` and `ItaeConfig`."""
    return export_parser(
        "Export DINOv2 with ITAE (Inference-Time Attention Engineering) as a TensorRT engine or ONNX.",
        EXAMPLES,
        (WHAT, INT8, ITAE, ENGINE, CHECKS),
        {ExportSpec: ()},
        plain=declared(ExportSpec)["itae"].option.help,
        details="the builder's log",
    )


def to_spec(a: argparse.Namespace, method: Method) -> ExportSpec:
    """Parsed arguments as an `ExportSpec`.

    Raises:
        UsageError: a value means nothing, or two contradict each other.
    """
    options = {name: getattr(a, name) for name in declared(ExportSpec) if name not in ("itae", "calibration")}
    spec = ExportSpec(**options, itae=method.itae, calibration=method.calibration)
    if (found := method.recommendation) is None:
        return spec
    if spec.size_name != found.size:
        raise UsageError(f"--config {a.config}: was made for --size {found.size}, not for {spec.size_name}")
    is_fixed = spec.itae is not None and "threshold" not in given(ItaeConfig, a) and spec.itae.limit.indices
    if is_fixed and spec.height_and_width != found.image_size:
        height, width = found.image_size
        raise UsageError(
            f"--config {a.config}: has positions of patches in images of {height}x{width}, which are others at "
            f"{spec.height}x{spec.width}: calibrate at that size"
        )
    return spec
