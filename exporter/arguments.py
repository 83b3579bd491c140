"""The command line of `python -m exporter`, made of the options' declarations."""

from __future__ import annotations

import argparse
from pathlib import Path

from exporter.calibration.recommendation import NOTHING, Recommendation, read
from exporter.declaration import add_options, declared, given
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import PRESETS, ItaeConfig
from exporter.options import CHECKS, ENGINE, INT8, WHAT, ExportSpec
from runtime.contract.console import Parser, add_loudness, add_threads, program_name
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
    p = Parser(
        prog=program_name("exporter"),
        description="Export DINOv2 with ITAE (Inference-Time Attention Engineering) as a TensorRT engine or ONNX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {heading: p.add_argument_group(heading) for heading in (WHAT, INT8, ITAE, ENGINE, CHECKS)}
    add_options(ExportSpec, groups)
    add_options(ItaeConfig, groups, fill=False)
    groups[ITAE].add_argument(
        "--preset",
        choices=PRESETS,
        help="paper: the paper's own form, that is --layers last --side low --attenuate min with a --threshold "
        "absolute:θ of yours, and --source key, since the paper's is not known; options that are given win",
    )
    groups[ITAE].add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="take the options of ITAE from a file of `python -m exporter calibrate`; options that are given win",
    )
    groups[ITAE].add_argument("--no-itae", action="store_true", help=declared(ExportSpec)["itae"].option.help)
    add_threads(groups[CHECKS])
    add_loudness(groups[CHECKS], "the builder's log, and tracebacks of errors")
    return p


def to_spec(a: argparse.Namespace) -> ExportSpec:
    """Parsed arguments as an `ExportSpec`.

    Raises:
        UsageError: a value means nothing, or two contradict each other.
    """
    options = {name: getattr(a, name) for name in declared(ExportSpec) if name not in ("itae", "calibration")}
    if a.config is None:
        return ExportSpec(**options, itae=_itae(a))
    found = _recommendation(a)
    spec = ExportSpec(**options, itae=_merged(a, found), calibration=None if a.no_itae else found.record)
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


def _recommendation(a: argparse.Namespace) -> Recommendation:
    if a.preset is not None:
        raise UsageError(f"--config contradicts --preset {a.preset}: drop either")
    return read(a.config)


def _merged(a: argparse.Namespace, found: Recommendation) -> ItaeConfig | None:
    """The options of the file with those of the command line in place of them; None for plain DINOv2."""
    return _itae(a) if a.no_itae else found.merged(given(ItaeConfig, a))


def remarks(a: argparse.Namespace) -> list[str]:
    """The options that were taken in place of the preset's or the calibration's, a line each."""
    if a.config is not None and not a.no_itae:
        return _remarks_on(a, read(a.config))
    if a.preset is None:
        return []
    wanted = PRESETS[a.preset]
    flags = declared(ItaeConfig)
    found = [
        f"--preset {a.preset}: {flags[name].flag} {value} is taken in place of {wanted[name]}"
        for name, value in given(ItaeConfig, a).items()
        if name in wanted and value != wanted[name]
    ]
    if not a.threshold.startswith("absolute:"):
        found.append(f"--preset {a.preset}: --threshold {a.threshold} is taken in place of absolute:θ")
    return found


def _remarks_on(a: argparse.Namespace, found: Recommendation) -> list[str]:
    flags, options = declared(ItaeConfig), given(ItaeConfig, a)
    if found.options is None:
        return [f"--config {a.config}: {NOTHING}"] if not options else [f"--config {a.config}: not taken: {NOTHING}"]
    return [
        f"--config {a.config}: {flags[name].flag} {value} is taken in place of {found.options.get(name, 'none')}"
        for name, value in options.items()
        if value != found.options.get(name)
    ]


def _itae(a: argparse.Namespace) -> ItaeConfig | None:
    options = given(ItaeConfig, a)
    if a.no_itae:
        flags = [declared(ItaeConfig)[name].flag for name in options] + ["--preset"] * (a.preset is not None)
        if flags:
            raise UsageError(f"--no-itae contradicts {', '.join(flags)}: drop either")
        return None
    if a.preset is None:
        return ItaeConfig(**options)
    if "threshold" not in options:
        raise UsageError(f"--preset {a.preset} needs --threshold absolute:θ: the paper sets θ for each data set")
    base = dict(PRESETS[a.preset])
    if options["threshold"].startswith("positions:"):  # looks at no norm
        del base["source"], base["side"]
    return ItaeConfig(**{**base, **options})
