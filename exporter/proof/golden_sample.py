"""Golden samples: images whose flags are clear, and what the eager model makes of them. Part of the reference.

Where the options flag too little, a comparison says nothing of the attenuation: then a second sample is made for the
same options with the threshold moved to where it flags some patches of some images.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exporter.graph_facts import GraphFacts
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec
from runtime.contract.comparison import LIMITS, usual_length
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.golden import Golden
from runtime.contract.manifest import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""DINOv2's normalisation as facebookresearch/dinov2 publishes it (`dinov2/data/transforms.py`), stated apart from
`exporter.models.architecture` on purpose: the graph and the manifest take theirs from there, the reference from here,
so that a wrong number in either place fails the export."""
POOL = 4
"""Candidates per wanted sample, at most."""
KINDS = 4
"""Number of kinds of candidates."""
CLEAR = 2.0
"""A margin this many times the precision's own is wide enough to stop looking."""
THRESHOLDS_TRIED = 256
VISIBLE_EFFECT = 1e-3
"""Ten times the limit of fp32: a smaller change of the embeddings could be rounding."""
VISIBLE = (0.4, 0.95)
"""Quantiles of the scores between which a moved threshold lies: enough is flagged to move the embedding."""

Images = npt.NDArray[np.uint8]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """A golden sample and how clear its flags are."""

    itae: ItaeConfig | None
    golden: Golden
    flagged: int
    """Patches flagged, over all samples and chosen layers."""
    mixed: int
    """Images that have some but not all patches of a chosen layer flagged."""
    effect: float | None
    """Largest absolute change of an element of an embedding by ITAE, √C-fold where normalised; none without ITAE."""


def make_samples(model: torch.nn.Module, spec: ExportSpec, progress: Progress) -> list[Sample]:
    """The golden sample of the export and, if its options flag too few patches, one at another threshold.

    Args:
        model: transformers' DINOv2 in eval mode, float32, position embedding baked.
        spec: size of the images, options, number of samples.
        progress: called with the progress in words.
    """
    check_preprocessing(spec.preprocessing())
    S = spec.parity_samples
    if spec.itae is None:
        images = np.stack([candidate(index, spec.facts) for index in range(S)])
        return [_sample(_run(model, images, None, spec, progress), None, images, spec, None)]
    images, eager = _pool(model, spec, progress)
    best = _clearest(eager.is_mixed, eager.margin, S)
    samples = [_with_effect(model, eager.take(best), images[best], spec, spec.itae, progress)]
    shows_little = (samples[0].effect or 0) < VISIBLE_EFFECT and spec.itae.attenuation.kind != "none"
    if spec.itae.limit.kind != "positions" and (samples[0].mixed * 2 < S or shows_little):
        found = _move_threshold(eager.norm, spec.itae, S)
        if found is not None:
            moved, best = found
            progress(f"{spec.itae.threshold} flags {samples[0].flagged} patches: a second check at {moved.threshold}")
            again = _run(model, images[best], moved, spec, progress)
            samples.append(_with_effect(model, again, images[best], spec, moved, progress))
    return samples


def candidate(index: int, facts: GraphFacts) -> Images:
    """A seeded image (H, W, 3): noise, noise on a flat ground in a few places, waves, or patches of many brightnesses.

    Several kinds, since which of them give clear artifacts depends on the weights.
    """
    height, width = facts.image_size
    patch = height // facts.grid[0]

    def per_patch(grid: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return grid.repeat(patch, axis=0).repeat(patch, axis=1)

    rng = np.random.default_rng([20_241_204, index, height, width])
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    kind = index % KINDS
    if kind == 0:
        return noise
    if kind == 1:
        flat = np.full_like(noise, rng.integers(0, 256, 3))
        loud = per_patch(rng.random(facts.grid) < 0.05)
        return np.asarray(np.where(loud[..., None], noise, flat), np.uint8)
    if kind == 2:
        y, x = np.mgrid[:height, :width] / patch
        angles, phases = rng.uniform(0, 2 * math.pi, (2, 3))
        wave = np.sin((np.multiply.outer(y, np.sin(angles)) + np.multiply.outer(x, np.cos(angles))) + phases)
        return np.asarray(127.5 + 127.4 * wave, np.uint8)
    bright = per_patch(rng.random(facts.grid) ** 3)
    return np.asarray(noise * bright[..., None], np.uint8)


def check_preprocessing(how: Preprocessing) -> None:
    """Compare what a manifest says of normalisation with what the reference does.

    Raises:
        CheckError: they differ. The other half, a graph that normalises by itself, is compared by its outputs.
    """
    said = (how.scale, tuple(how.mean), tuple(how.std))
    if said != (1 / 255, MEAN, STD):
        raise CheckError(
            f"the manifest would say that pictures are normalised by scale, mean and std {said}, DINOv2's own are "
            f"{(1 / 255, MEAN, STD)}: the architecture's numbers are wrong, or it is no DINOv2"
        )


def model_input(images: Images, spec: ExportSpec) -> npt.NDArray[np.float32] | Images:
    """(S, H, W, 3) uint8 as the model of `spec` takes it."""
    return images if spec.input == "uint8" else normalize(images)


def normalize(images: Images) -> npt.NDArray[np.float32]:
    """(S, H, W, 3) uint8 -> (S, 3, H, W) float32, as DINOv2 was trained."""
    scaled = (images / 255 - np.array(MEAN)) / np.array(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def _run(
    model: torch.nn.Module, images: Images, itae: ItaeConfig | None, spec: ExportSpec, progress: Progress
) -> reference.Eager:
    results = []
    for number, image in enumerate(images, 1):
        progress(f"eager PyTorch, image {number} of {len(images)}")
        results.append(_embed(model, image, itae, spec))
    return reference.concatenate(results)


def _embed(
    model: torch.nn.Module, image: npt.NDArray[np.uint8], itae: ItaeConfig | None, spec: ExportSpec
) -> reference.Eager:
    pixels = torch.from_numpy(normalize(image[None]))
    return reference.embed(model, pixels, itae, spec.pooling, normalize=spec.normalize)


def _pool(model: torch.nn.Module, spec: ExportSpec, progress: Progress) -> tuple[Images, reference.Eager]:
    """Candidates and their results.

    Drawn until enough of them are clear, there are `POOL` times as many as wanted, or two of each kind are unclear.
    """
    S = spec.parity_samples
    wide = CLEAR * (spec.limits.flag_margin or 0.0)
    images: list[Images] = []
    results: list[reference.Eager] = []
    good: list[int] = []
    for index in itertools.count():
        if len(images) == POOL * S or len(good) == S or (not good and len(images) >= max(S, 2 * KINDS)):
            break
        kinds = {one % KINDS for one in good}
        if index >= KINDS and kinds and index % KINDS not in kinds:
            continue  # after one of each kind only of those that gave clear artifacts
        progress(f"looking for images with clear artifacts, {len(images) + 1} of at most {POOL * S}")
        images.append(candidate(index, spec.facts))
        results.append(_embed(model, images[-1], spec.itae, spec))
        if results[-1].is_mixed.item() and results[-1].margin.item() > wide:
            good.append(index)
    return np.stack(images), reference.concatenate(results)


def _clearest(mixed: torch.Tensor, margin: torch.Tensor, S: int) -> list[int]:
    """The S samples with mixed flags and the widest margins, in the order of the pool; others where those run out."""
    order = np.lexsort((-margin.numpy(), ~mixed.numpy()))
    return sorted(order[:S].tolist())


def _move_threshold(norm: torch.Tensor, itae: ItaeConfig, S: int) -> tuple[ItaeConfig, list[int]] | None:
    """The threshold of the same kind that flags a visible share of S images by the widest margin, if there is one.

    Args:
        norm: (pool, K, P).
        itae: the options whose threshold is moved.
        S: how many images to choose.
    """
    ordered = torch.from_numpy(np.unique(reference.score(norm, itae).double().numpy()))
    low, high = (int(share * len(ordered)) for share in VISIBLE)
    gaps = ordered[low + 1 : high + 1] - ordered[low:high]
    widest = gaps.topk(min(THRESHOLDS_TRIED, len(gaps))).indices + low
    # Narrower gaps are rounding: of two patches, all scores are equal.
    clearest = CLEAR * (LIMITS["fp32"].flag_margin or 0.0)
    best = None
    for number in ((ordered[widest] + ordered[widest + 1]) / 2).tolist():
        try:
            moved = dataclasses.replace(itae, threshold=f"{itae.limit.kind}:{number:.9g}")
        except UsageError:  # outside the option's domain: a ratio below 1
            continue
        artifact, distance = reference.detect(norm, moved)
        mixed = (artifact.any(dim=2) & ~artifact.all(dim=2)).any(dim=1)
        margin = distance.flatten(1).amin(dim=1)
        chosen = _clearest(mixed, margin, S)
        clear = float(torch.where(mixed, margin, 0)[chosen].min())
        if clear > clearest:
            clearest, best = clear, (moved, chosen)
    return best


def _with_effect(
    model: torch.nn.Module,
    eager: reference.Eager,
    images: Images,
    spec: ExportSpec,
    itae: ItaeConfig,
    progress: Progress,
) -> Sample:
    plain = _run(model, images, None, spec, progress)
    return _sample(eager, plain, images, spec, itae)


def _sample(
    eager: reference.Eager,
    plain: reference.Eager | None,
    images: Images,
    spec: ExportSpec,
    itae: ItaeConfig | None,
) -> Sample:
    golden = Golden(
        input=model_input(images, spec),
        embedding=eager.embedding.numpy(),
        flags=eager.artifact.numpy(),
        flag_distance=eager.distance.numpy(),
        patch_tokens=eager.patch_tokens.numpy() if "patch_tokens" in spec.outputs else None,
        artifact_norm=eager.norm.numpy() if "artifact_norm" in spec.outputs else None,
    )
    weight = usual_length(spec.embedding_width) if spec.normalize else 1.0
    effect = weight * float((eager.embedding - plain.embedding).abs().max()) if plain else None
    return Sample(itae, golden, int(eager.artifact.sum()), int(eager.is_mixed.sum()), effect)
