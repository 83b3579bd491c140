"""Fused attentions and kernels of TensorRT-RTX's engines, as a markdown table: `fusion_table.py [--unfused] [SIZE...]`.

A row for each size, precision and extent of the last block; a column for plain DINOv2, for each attenuation in the
last and in all layers with key norms, and for other detections in the last. A cell: attentions that are one kernel
each, all kernels of the engine, and how many of them ITAE adds; then the plan's megabytes and the seconds of a build,
over the row. Random weights, 224 px, batch 1,8,64. Needs no GPU: nothing is run. Every build is reported on stderr; a
minute a row for ViT-S, three for ViT-B.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from exporter import pipeline
from exporter.build import engine, fusion
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec, Precision
from exporter.surgery.attention import attention_nodes

SIZES = ("vits14", "vitb14")
ATTENUATIONS = ("min", "mask", "mean", "scale:0.1")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
"""Without int8, which needs pictures."""
COLUMNS = (
    None,
    *(ItaeConfig(layers, "key", "mad:5", "both", how) for layers in ("last", "all") for how in ATTENUATIONS),
    *(ItaeConfig(attenuate=how, detect_layer=layer) for how, layer in (("min", None), ("mask", None), ("min", 8))),
    *(ItaeConfig(threshold="positions:0,1,16,17", attenuate=how) for how in ("min", "mask")),
)


@dataclass(frozen=True)
class Built:
    """One engine."""

    fused: int
    sites: int
    kernels: int
    megabytes: float
    seconds: float


def main(sizes: tuple[str, ...], *, unfused: bool) -> None:
    """Print the table, row by row."""
    titles = ["plain" if itae is None else _title(itae) for itae in COLUMNS]
    print(f"| size | precision | last block | {' | '.join(titles)} | plan, MB | build, s |")
    print("|---" * (5 + len(titles)) + "|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = ExportSpec("unused.engine", size=size, weights="random:0", itae=None, unfused=unfused)
            _, traced = pipeline.load_and_trace(base, Path(folder))
            for precision, cls_only in itertools.product(PRECISIONS, (True, False)):
                spec = dataclasses.replace(base, precision=precision, cls_only=cls_only)
                print(row(spec, [build(dataclasses.replace(spec, itae=itae), traced) for itae in COLUMNS]), flush=True)


def _title(itae: ItaeConfig) -> str:
    where = "" if itae.detect_layer is None else f" of layer {itae.detect_layer}"
    return f"{itae.source or 'positions'}{where} {itae.attenuate} {itae.layers}"


def row(spec: ExportSpec, built: list[Built]) -> str:
    """One line of the table; the first engine is the plain one."""
    block = "CLS row" if spec.computes_cls_only else "all rows"
    cells = [f"{one.fused} of {one.sites}, {one.kernels}" for one in built]
    cells[1:] = [f"{cell} (+{one.kernels - built[0].kernels})" for cell, one in zip(cells[1:], built[1:], strict=True)]
    sizes, seconds = ([getattr(one, name) for one in built] for name in ("megabytes", "seconds"))
    return (
        f"| {spec.size} | {spec.resolved_precision} | {block} | {' | '.join(cells)} | "
        f"{min(sizes):.0f}-{max(sizes):.0f} | {min(seconds):.1f}-{max(seconds):.1f} |"
    )


def build(spec: ExportSpec, traced: Path) -> Built:
    """Operate on the traced graph, build, read the log."""
    with tempfile.TemporaryDirectory() as folder:
        path = pipeline.operate(spec, traced, Path(folder)).model
        start = time.monotonic()
        made = engine.build(path, path.with_suffix(".plan"), engine.EngineRequest("tensorrt-rtx", spec.profile))
        seconds = time.monotonic() - start
        found = fusion.read_fusion(attention_nodes(path), made.kernels, fusion.unfusable_layers(spec))
    assert found is not None
    built = Built(found.fused, found.sites, found.engine_kernels, made.plan_bytes / 1e6, seconds)
    print(f"{spec.size} {spec.resolved_precision} cls_only={spec.cls_only} {spec.itae}: {built}", file=sys.stderr)
    return built


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--unfused"]
    main(tuple(words) or SIZES, unfused="--unfused" in sys.argv)
