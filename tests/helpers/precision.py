"""Differences between a half-precision graph and eager float32, for tests and `scripts/precision_table.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import graph_in_torch
import numpy as np
import torch
import trouble
from tiny_dinov2 import open_session

from exporter import pipeline, trace
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec, Precision
from exporter.proof import golden_sample

SWIGLU = Architecture("swiglu", width=256, heads=4, depth=6, registers=4, swiglu=True)
"""ViT-g's MLP in a small model."""
NARROW = dataclasses.replace(SWIGLU, name="narrow", width=128, heads=2)
"""With fewer channels to average over, where rounding shows more."""
TROUBLES = {"none": (), **{kind: (kind,) for kind in trouble.KINDS}, "all three": trouble.KINDS}
SETTINGS = (
    None,
    ItaeConfig("last", "key", "mad:5", "both"),
    *(ItaeConfig("all", "key", "mad:3.5", "both", how) for how in ("min", "mask", "mean")),
    ItaeConfig("all", "residual", "mad:3.5", "both"),
)
"""Plain DINOv2, a few flags in the last layer, and those where a flag of any layer counts."""


@dataclass(frozen=True)
class Compared:
    """One graph against eager float32 on some images."""

    itae: ItaeConfig | None
    finite: bool
    cosine: float
    """The smallest over the images where no flag differs."""
    compared: int
    """How many those are."""
    cosine_of_all: float
    """The smallest over all images."""
    flagged: int
    differing: int
    """Flags that differ in the first layer of an image where any does: they change all later ones."""
    farthest: float
    """How far the farthest of them is from its threshold, as a share of its norm."""
    norm_error: float
    """Largest relative error of a norm, up to the first layer where a flag differs."""


def compare(got: dict[str, np.ndarray], want: reference.Eager, itae: ItaeConfig | None) -> Compared:
    a, b = got["embedding"].astype(np.float64), want.embedding.double().numpy()
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    finite = bool(np.isfinite(a).all())
    if itae is None:
        return Compared(None, finite, cosines.min(), len(a), cosines.min(), 0, 0, 0.0, 0.0)
    off = got["artifact_mask"] != want.artifact.numpy()  # (B, K, P)
    layers = np.cumsum(off.any(axis=2), axis=1)
    first = off & (layers == 1)[..., None] & off.any(axis=2)[..., None]
    before = layers - off.any(axis=2) == 0
    norm = want.norm.double().numpy()
    error = np.abs(got["artifact_norm"] - norm) / norm
    same = ~off.any(axis=(1, 2))
    return Compared(
        itae,
        finite and bool(np.isfinite(got["artifact_norm"]).all()),
        cosines[same].min(initial=1),
        int(same.sum()),
        cosines.min(),
        int(want.artifact.sum()),
        int(first.sum()),
        float(want.distance.numpy()[first].max(initial=0)),
        float(error[before].max()),
    )


def pictures(spec: ExportSpec, numbers: tuple[int, ...]) -> np.ndarray:
    """Seeded pictures beyond those that the exporter looks at, (B, 3, H, W) float32."""
    return golden_sample.normalize(np.stack([golden_sample.candidate(n, spec.facts) for n in numbers]))


@dataclass(frozen=True)
class Measured:
    """A model with its trouble."""

    inside: trouble.Seen
    compared: dict[tuple[Precision, str, int], Compared]
    """By precision, what ran the graph, and the number of the setting."""


def measure(
    size: str | Architecture,
    kinds: tuple[str, ...],
    precisions: tuple[Precision, ...],
    folder: Path,
    *,
    numbers: tuple[int, ...],
    seed: int,
    traces: Path | None = None,
) -> Measured:
    """Trace a troubled model once, operate on it in each precision and setting, and run the graphs.

    `traces` is a folder that keeps the trace of each model for later calls: tracing takes most of the time.

    ONNX Runtime's CPU has no bfloat16, and does not round between neighbouring nodes of an fp16 graph; PyTorch rounds
    after each node.
    """
    spec = ExportSpec("unused.onnx", size=size, itae=None)
    images = pictures(spec, numbers)
    model = trouble.troubled(spec, seed, kinds)
    inside = trouble.look_inside(model, torch.from_numpy(images))
    wanted = [reference.embed(model, torch.from_numpy(images), itae) for itae in SETTINGS]
    place = (traces or folder) / "-".join((spec.backbone.name, *kinds, str(seed)))
    traced = place / "traced.onnx"
    if not traced.exists():
        place.mkdir(exist_ok=True)
        assert trace.to_onnx(model, spec.facts, place) == traced
    del model
    compared = {}
    for precision in precisions:
        for number, (itae, want) in enumerate(zip(SETTINGS, wanted, strict=True)):
            outputs = ("embedding", "artifact_mask", "artifact_norm") if itae else ("embedding",)
            chosen = dataclasses.replace(spec, itae=itae, precision=precision, outputs=outputs)
            path = pipeline.operate(chosen, traced, folder).model
            compared[precision, "PyTorch", number] = compare(graph_in_torch.run(path, images), want, itae)
            if precision == "fp16":
                got = dict(zip(outputs, open_session(path).run(outputs, {"pixel_values": images}), strict=True))
                compared[precision, "ONNX Runtime", number] = compare(got, want, itae)
    return Measured(inside, compared)
