"""What TensorRT-RTX makes of the graphs, as a markdown table: `fusion_table.py [SIZE...]`.

For each size and change of the options: attentions that are one kernel each, the engine's kernels and how many of them
ITAE adds to plain DINOv2 otherwise the same, the plan's megabytes and the seconds of the build. Random weights, 224 px,
batch 1,8,64; each size is traced once and operated on for every row. Needs no GPU: nothing is run. 3 s a row for ViT-S.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter import engine, fusion, materialize, position, surgery, trace, weights
from exporter.itae import ItaeConfig
from exporter.spec import PRECISIONS, ExportSpec

SIZES = ("vits14", "vitb14", "vitl14")
CLS_ONLY = (True, False)
ATTENUATIONS = ("min", "mask", "mean", "scale:0.1")
LAYERS = ("last", "all")

Change = dict[str, Any]
"""Fields of `ExportSpec` and what they become."""


def options() -> Iterator[tuple[Change, list[ItaeConfig]]]:
    """Each way to compute plain DINOv2, and the settings of ITAE that are compared with it."""
    for precision, cls_only in itertools.product(PRECISIONS, CLS_ONLY):
        yield (
            {"precision": precision, "cls_only": cls_only},
            [ItaeConfig(layers, attenuate=how) for layers in LAYERS for how in ATTENUATIONS],
        )


def main(sizes: tuple[str, ...]) -> None:
    """Print the table, row by row."""
    print("| size | precision | last block | ITAE | attention fused | kernels | of ITAE | plan, MB | build, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = ExportSpec("unused.engine", size=size, weights="random:0", itae=None)
            model = weights.load(base.backbone, base.weights).model
            position.bake_position_embedding(model, base.grid, base.pos_embed)
            traced = trace.to_onnx(model, base, Path(folder))
            del model
            for change, settings in options():
                plain = dataclasses.replace(base, **change)
                kernels = row(plain, traced, None)
                for itae in settings:
                    row(dataclasses.replace(plain, itae=itae), traced, kernels)


def row(spec: ExportSpec, traced: Path, plain: int | None) -> int:
    """Build one engine, print its line, give its number of kernels; `plain`: that of the same without ITAE."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        operated, _ = surgery.run(traced, spec)
        materialize.materialize(operated, traced.parent, path, "m.onnx.data")
        start = time.monotonic()
        built = engine.build(path, path.with_suffix(".plan"), engine.EngineRequest("tensorrt-rtx", spec.profile))
        seconds = time.monotonic() - start
        found = fusion.read_fusion(surgery.attention_nodes(path), built.kernels, fusion.unfusable_layers(spec))
    assert found is not None
    itae = "none" if spec.itae is None else f"{spec.itae.attenuate}, {spec.itae.layers}"
    added = "" if plain is None else f"{found.engine_kernels - plain:+d}"
    block = "CLS row" if spec.computes_cls_only else "all rows"
    print(
        f"| {spec.size} | {spec.resolved_precision} | {block} | {itae} | {found.fused} of {found.sites} | "
        f"{found.engine_kernels} | {added} | {built.plan_bytes / 1e6:.1f} | {seconds:.1f} |",
        flush=True,
    )
    return found.engine_kernels


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or SIZES)
