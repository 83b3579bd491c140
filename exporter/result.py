"""The result of an export, and its summary in lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.build import fusion
from runtime.contract.manifest import Manifest, ParityCheck, Quantization, Replay


@dataclass(frozen=True)
class ExportResult:
    """A published model."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    """By step."""
    backend_reason: str | None = None
    """The reason why `--backend auto` chose the library that built the engine; None if it did not choose."""


def summary(result: ExportResult) -> list[str]:
    """The summary of an export, in lines for people."""
    m = result.manifest
    o = m.options
    height, width = o.image_size
    made = f"{m.builder.name} {m.builder.version}, {m.files.model.bytes / 1e6:.1f} MB"
    if m.files.external_data is not None:
        made += f" + {m.files.external_data.bytes / 1e6:.1f} MB of weights in {m.files.external_data.name}"
    batch = f"batch {','.join(map(str, o.batch))}" if o.batch else "any batch"
    revision = f" at {m.model.weights.revision}" if m.model.weights.revision else ""
    lines = [
        f"{result.path}: {made}",
        *([f"  backend  {m.builder.name}: {result.backend_reason}"] if result.backend_reason else []),
        f"  model    {o.size}, {o.precision}, {height}x{width}, {batch}, weights {o.weights}{revision}",
        f"  ITAE     {_itae(m)}",
        f"  computes {_computed(m)}",
        f"  input    {m.input.name} {m.input.dtype} {_shape(m.input.shape)}, pictures fit by {m.preprocessing.fit}",
        *(f"  output   {one.name} {one.dtype} {_shape(one.shape)}" for one in m.outputs),
        *(f"  parity   {_check(one)}" for one in m.parity.checks),
        *([] if m.quantization is None else [f"  int8     {_quantization(m.quantization)}"]),
        *([] if m.builder.name == "onnx" else [f"  fusion   {fusion.describe(m.fusion)}"]),
        *([] if m.replay is None else [f"  replay   {_replay(m.replay)}"]),
        f"  seconds  {', '.join(f'{name} {s:.1f}' for name, s in result.seconds.items())}",
    ]
    if m.has_random_weights:
        lines.append("  These weights are random: good for trying things out, not for embeddings.")
    return lines


def _computed(m: Manifest) -> str:
    pooled = "the CLS token beside the mean patch token" if m.options.pooling == "cls+mean" else "the CLS token"
    length = ", divided by its L2 norm" if m.options.normalize else ""
    rows = "the last block for the CLS token alone" if m.options.cls_only else "all blocks for all tokens"
    return f"{rows}; embedding: {pooled}{length}"


def _itae(m: Manifest) -> str:
    method = m.options.method
    if method.name == "none":
        found = m.calibration
        return "none, plain DINOv2" + (f": {found.reason}" if found is not None else "")
    layers = ",".join(map(str, method.layers))
    return f"layers {layers}, {method.detection}, attenuate {method.attenuate}"


def _check(check: ParityCheck) -> str:
    """One comparison on a line."""
    text = f"max abs {check.max_abs:.2g}, cosine {check.min_cosine:.7f} on {check.samples} images"
    text += {"exported": "", "fp32": " (the same surgery in fp32)", "threshold": " (another threshold, in fp32)"}[
        check.purpose
    ]
    if check.threshold is None:
        return text
    text = f"{check.threshold}: {check.flagged} of {check.patches} patches flagged; {text}"
    if check.effect is not None:
        text += f"; ITAE moves them by up to {check.effect:.2g}"
    if check.borderline:
        text += f"; {len(check.borderline)} borderline, {len(check.left_out)} of them left out"
    return text


def _quantization(found: Quantization) -> str:
    """The figures of int8 on a line."""
    layers = found.int8_layers + len(found.float32_layers)
    kernels = "" if found.engine_layers is None else f", {found.engine_layers} of them in int8 kernels"
    return (
        f"{found.int8_layers} of {layers} linear layers{kernels}; cosine {found.worst_cosine:.5f} at worst, "
        f"{found.median_cosine:.5f} in the median of {found.checked} pictures that did not choose the scales; "
        f"{found.neighbours:.1%} of the nearest neighbours and {found.same_centroid:.1%} of the nearest centroids stay"
    )


def _replay(replay: Replay) -> str:
    """The run of the finished model on a line."""
    sizes = ",".join(map(str, replay.batch_sizes))
    return (
        f"{replay.backend}: max abs {replay.max_abs:.2g}, cosine {replay.min_cosine:.7f} on {replay.samples} images; "
        f"batches of {sizes} within {replay.batch_distance:.2g}"
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
