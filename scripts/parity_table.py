"""Differences between the exported graph and eager PyTorch as a markdown table: `parity_table.py [SIZE...]`.

Random weights (seed 0), one picture that the exporter doesn't look at; the largest difference over plain DINOv2 and
five settings of ITAE with artifacts in none to many patches. The differences include those of flags whose norm is
within rounding of the threshold; stderr has each setting separately. Minutes and 8 GB for ViT-L.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from exporter import pipeline
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec, Precision
from exporter.proof import golden_sample

SIZES = ("vits14", "vits14_reg", "vitb14", "vitb14_reg", "vitl14", "vitl14_reg")
IMAGE_SIZES = ((224, 224), (224, 308), (518, 518))
SETTINGS = (
    None,
    ItaeConfig(),
    ItaeConfig("all", "value", "zscore:1.5"),
    ItaeConfig("all", "key", "mad:2", "low", "mask"),
    ItaeConfig("last", "query", "ratio:1.02", "high", "mean"),
    ItaeConfig("0,5", "value", "zscore:1", "both", "scale:0.1"),
)
PICTURE = 101


def main(sizes: tuple[str, ...]) -> None:
    """Print the table, row by row."""
    print("| size | pixels | fp32: max abs | fp16: min cosine | flags that differ | flagged patches |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        for image_size in IMAGE_SIZES:
            with tempfile.TemporaryDirectory() as folder:
                print(
                    row(
                        ExportSpec("unused.onnx", size=size, image_size=image_size, weights="random:0", itae=None),
                        Path(folder),
                    ),
                    flush=True,
                )


def row(plain: ExportSpec, folder: Path) -> str:
    """One line of the table."""
    loaded, traced = pipeline.load_and_trace(plain, folder)
    pixels = golden_sample.normalize(golden_sample.candidate(PICTURE, plain.facts)[None])
    eager = [reference.embed(loaded.model, torch.from_numpy(pixels), itae) for itae in SETTINGS]
    del loaded
    precisions: dict[Precision, list[float]] = {"fp32": [], "fp16": []}
    differing = 0
    for itae, want in zip(SETTINGS, eager, strict=True):
        outputs = ("embedding", "artifact_mask") if itae else ("embedding",)
        for precision, figures in precisions.items():
            spec = dataclasses.replace(plain, itae=itae, precision=precision, outputs=outputs)
            model = pipeline.operate(spec, traced, folder / "operated").model
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            got = session.run(None, {"pixel_values": pixels})
            a, b = got[0].astype(np.float64), want.embedding.numpy().astype(np.float64)
            off = got[1] != want.artifact.numpy() if itae else np.zeros(1, bool)
            cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
            figures.append(float(np.abs(a - b).max()) if precision == "fp32" else cosine)
            differing += int(off.sum())
            away = float(want.distance.numpy()[off].max(initial=0)) if itae else 0.0
            said = f"max abs {np.abs(a - b).max():.1e}, cosine {cosine:.7f}, {off.sum()} flags differ"
            print(f"{plain.size} {precision} {itae}: {said}, up to {away:.1e} away", file=sys.stderr, flush=True)
    flagged = sum(int(one.artifact.sum()) for one in eager)
    patches = sum(one.artifact.numel() for one in eager)
    return (
        f"| {plain.size} | {plain.height}x{plain.width} | {max(precisions['fp32']):.1e} | "
        f"{min(precisions['fp16']):.7f} | {differing} | {flagged} of {patches} |"
    )


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or SIZES)
