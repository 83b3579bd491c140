"""Checks that need PyTorch and no engine: the reference itself on the device, the range of float16, k-means."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from exporter import ExportSpec
from exporter.models.architecture import Architecture
from runtime.contract.errors import WeightsError
from scripts.gpu_checks.check import Failed, Figures
from scripts.gpu_checks.machine import Target
from scripts.gpu_checks.models import Case, eager_embeddings, eager_path, judge

K = 20
"""Clusters of k-means."""
WIDTH = 384
"""Width of the points that k-means clusters."""
SAME_INERTIA = 0.01
"""Largest relative difference of two inertias from the same starts: a point between two clusters changes the way."""
SAME_LABELS = 0.9999
"""Smallest share of points with the same nearest centroid in float32 on both: a few lie between two."""
LOUD = 3e4
"""By this the values inside the first MLP are multiplied, so that they leave the range of float16."""


def check_eager(target: Target, folder: Path, case: Case) -> Figures:
    """ITAE in eager PyTorch on the device against float32 on the CPU, in users' units."""
    import torch

    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[case.precision]
    got = eager_embeddings(target, case, torch.device(target.device), dtype)
    return judge(got, np.load(eager_path(folder, case)), case)


def check_half_range(target: Target, arch: Architecture) -> Figures:
    """The exporter's forecast, made in float32, of what float16 can't hold, against a run in float16 on the device.

    For the model as it is, and for one whose first MLP is too loud for float16.
    """
    quiet, largest, is_finite = _forecast(target, arch, 1.0)
    figures: Figures = {"largest value": largest, "overflow foreseen": quiet is not None, "finite in fp16": is_finite}
    loud, loudest, loud_is_finite = _forecast(target, arch, LOUD)
    figures |= {
        "largest value of the loud model": loudest,
        "its overflow foreseen": loud is not None,
        "it is finite in fp16": loud_is_finite,
    }
    if (quiet is None) != is_finite or loud is None or loud_is_finite:
        raise Failed("what was foreseen from a run in float32 is not what float16 did on the device", figures)
    return figures


def _forecast(target: Target, arch: Architecture, factor: float) -> tuple[str | None, float, bool]:
    """The forecast of an overflow or None, the largest magnitude in float32, and whether float16 stayed finite."""
    import torch

    from exporter import pipeline
    from exporter.methods.itae import reference
    from exporter.proof import golden_sample, half_range

    spec = ExportSpec("unused.onnx", arch, target.weights, image_size=target.image_size, itae=None)
    model: Any = pipeline.load(spec).model.to(target.device)
    pictures = np.stack([golden_sample.candidate(index, spec.facts) for index in range(golden_sample.KINDS)])
    images = torch.from_numpy(golden_sample.normalize(pictures)).to(target.device)
    first = model.encoder.layer[0].mlp
    with torch.inference_mode():
        first.fc1.weight.mul_(factor)
        with half_range.watch(model) as seen:
            reference.embed(model, images, None)
        with torch.autocast(target.device, torch.float16):
            got = reference.embed(model, images, None).embedding
    try:
        half_range.check_float16(seen)
        foreseen = None
    except WeightsError as error:
        foreseen = str(error)
    return foreseen, max(seen.values()), bool(torch.isfinite(got).all())


def check_kmeans(target: Target) -> Figures:
    """k-means by PyTorch on the device against numpy on the CPU: clear clusters, and points without any."""
    from runtime.clustering.kmeans import cluster
    from runtime.clustering.points import NumpyPoints
    from runtime.clustering.torch_points import TorchPoints

    device = "cuda" if target.device == "cuda" else "torch-cpu"
    rng = np.random.default_rng(0)
    n = target.points
    centres = rng.standard_normal((K, WIDTH)) * 3
    truth = np.arange(n) % K
    clear = (centres[truth] + rng.standard_normal((n, WIDTH))).astype(np.float32)
    vague = rng.standard_normal((n // 4, WIDTH)).astype(np.float32)

    seconds = {}
    labels, inertia = {}, {}
    for where in ("cpu", device):
        start = time.perf_counter()
        found = cluster(clear, K, 0, n_init=2, device=where)
        seconds[where] = time.perf_counter() - start
        labels[where] = found.labels
        inertia[where] = cluster(vague, K, 0, n_init=1, max_iter=50, device=where).inertia
    again = cluster(clear, K, 0, n_init=2, device=device)
    some = vague[rng.choice(len(vague), K, replace=False)].astype(np.float64)
    same = float((NumpyPoints(vague).nearest(some) == TorchPoints(vague, device).nearest(some)).mean())
    off = abs(inertia[device] / inertia["cpu"] - 1)
    pairs = len({*zip(labels["cpu"].tolist(), labels[device].tolist(), strict=True)})
    figures: Figures = {
        "points": n,
        "clear clusters": f"{'the same' if pairs == K else 'other'} {K}",
        "inertia off by": float(off),
        "same nearest": same,
        "same bits twice": bool(np.array_equal(labels[device], again.labels)),
        "CPU s": round(seconds["cpu"], 2),
        f"{device} s": round(seconds[device], 2),
    }
    failures = []
    if pairs != K:
        failures.append("clear clusters are not those of the CPU")
    if not off <= SAME_INERTIA:
        failures.append(f"the inertia is off by {off:.2g}")
    if not same >= SAME_LABELS:
        failures.append(f"only {same:.5f} of the points have the CPU's nearest centroid")
    if not figures["same bits twice"]:
        failures.append("a second run gave other labels")
    if failures:
        raise Failed("; ".join(failures), figures)
    return figures
