"""Golden samples: images whose flags are clear, and what the eager model makes of them. Part of the reference.

Where the options flag too little, a comparison says nothing of the attenuation: then a second sample is made for the
same options with the threshold moved to where it flags some patches of some images.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exporter.graph_facts import GraphFacts
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec, Precision
from exporter.proof import rounding
from runtime.contract.comparison import usual_length
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.golden import Golden
from runtime.contract.manifest import ParityLimits, Preprocessing, Rounding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""DINOv2's normalisation as facebookresearch/dinov2 publishes it (`dinov2/data/transforms.py`), stated apart from
`exporter.models.architecture` on purpose: the graph and the manifest take theirs from there, the reference from here,
so that a wrong number in either place fails the export."""
POOL = 2
"""Candidates per wanted sample, at most, where these are more than one of each kind and the samples."""
KINDS = 5
"""Number of kinds of candidates."""
CLEAR = 2.0
"""A margin this many times the limit of norms is wide enough to stop looking."""
ALIKE = 2.0
"""Images that need limits up to this many times as wide as the best one are as good."""
THRESHOLDS_TRIED = 256
VISIBLE_EFFECT = 10.0
"""Times the limit of fp32: a smaller change of the embeddings could be rounding."""
VISIBLE = (0.4, 0.95)
"""Quantiles of the scores between which a moved threshold lies: enough is flagged to move the embedding."""

Images = npt.NDArray[np.uint8]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """A golden sample, how clear its flags are, and how closely a graph can follow it."""

    itae: ItaeConfig | None
    golden: Golden
    flagged: int
    """Patches flagged, over all samples and chosen layers."""
    mixed: int
    """Images that have some but not all patches of a chosen layer flagged."""
    effect: float | None
    """Largest absolute change of an element of an embedding by ITAE, √C-fold where normalised; none without ITAE."""
    limits: Mapping[Precision, ParityLimits]
    """The limits that hold for it, in fp32 and in the precision of the export."""
    rounding: Mapping[Precision, Rounding]
    """The measured rounding that each of these follows from."""

    @property
    def shows_itae(self) -> bool:
        """Whether a wrong attenuation would be over the limit of fp32."""
        return (self.effect or 0.0) >= VISIBLE_EFFECT * (self.limits["fp32"].max_abs or 0.0)


def make_samples(model: torch.nn.Module, spec: ExportSpec, progress: Progress) -> list[Sample]:
    """The golden sample of the export and, if its options flag too few patches, one at another threshold.

    What is expected of a graph is computed in float64.

    Args:
        model: transformers' DINOv2 in eval mode, float32, position embedding baked.
        spec: size of the images, options, number of samples.
        progress: called with the progress in words.
    """
    check_preprocessing(spec.preprocessing())
    S = spec.parity_samples
    runs = _Runs(model, spec, progress)
    if spec.itae is None:
        return [runs.sample(list(range(S)), None, runs.precisions)]
    pool = _pool(runs, spec)
    samples = [runs.sample(_best(pool, spec), spec.itae, runs.precisions)]
    shows_little = not samples[0].shows_itae and spec.itae.attenuation.kind != "none"
    if spec.itae.limit.kind != "positions" and (samples[0].mixed * 2 < S or shows_little):
        found = _move_threshold(pool, spec.itae, S)
        if found is not None:
            moved, best = found
            progress(f"{spec.itae.threshold} flags {samples[0].flagged} patches: a second check at {moved.threshold}")
            samples.append(runs.sample(best, moved, ("fp32",)))
    return samples


@dataclass(frozen=True)
class _Candidate:
    """An image that may become a golden one."""

    index: int
    exact: reference.Eager
    """Its results in float64."""
    margin: float
    """How clear its flags are: the margin as a share of the limit of norms that the image needs, the least over the
    precisions."""
    excess: float
    """How many times the usual limits it needs."""
    norm_limit: float
    """The limit of norms that it needs in fp32."""
    is_in_reach: bool
    """Whether no limit that it needs is beyond `rounding.WIDEST`."""

    @property
    def is_usable(self) -> bool:
        """Whether some but not all of its patches are flagged, and no flag can fall the other way by rounding."""
        return bool(self.exact.is_mixed.item()) and self.margin > CLEAR and self.is_in_reach


class _Runs:
    """Runs the eager model on candidates, in float64 and in the precisions of the export.

    Blocks that no option touches are computed once for each image and precision.
    """

    def __init__(self, model: torch.nn.Module, spec: ExportSpec, progress: Progress) -> None:
        self._model, self._spec, self._progress = model, spec, progress
        depth = spec.facts.depth
        layers = spec.itae.layer_indices(depth) if spec.itae is not None else (depth - 1,)
        self._first = min(min(layer, spec.itae.detects_in(layer) if spec.itae else layer) for layer in layers)
        self._kept: dict[tuple[int, str], reference.Kept] = {}
        self.precisions: tuple[Precision, ...] = tuple(dict.fromkeys(("fp32", spec.resolved_precision)))

    def exact(self, index: int, itae: ItaeConfig | None) -> reference.Eager:
        """The results for a candidate in float64."""
        with rounding.in_float64(self._model):
            return self._embed(index, itae, "float64")

    def measured(self, index: int, itae: ItaeConfig | None, exact: reference.Eager, precision: Precision) -> Rounding:
        """How far a precision's rounding moves the results for a candidate."""
        with rounding.in_precision(self._model, precision):
            rounded = self._embed(index, itae, precision)
        spec = self._spec
        return rounding.measure(
            rounded, exact, with_patch_tokens="patch_tokens" in spec.outputs, normalized=spec.normalize
        )

    def sample(self, chosen: list[int], itae: ItaeConfig | None, precisions: tuple[Precision, ...]) -> Sample:
        """The golden sample of some candidates."""
        spec = self._spec
        exact = [self.exact(index, itae) for index in chosen]
        found = {
            precision: rounding.worst(
                [self.measured(index, itae, one, precision) for index, one in zip(chosen, exact, strict=True)]
            )
            for precision in precisions
        }
        effect = None
        if itae is not None:
            plain = torch.cat([self.exact(index, None).embedding for index in chosen])
            weight = usual_length(spec.embedding_width) if spec.normalize else 1.0
            effect = weight * float((torch.cat([one.embedding for one in exact]) - plain).abs().max())
        eager = reference.concatenate(exact)
        golden = Golden(
            input=model_input(np.stack([candidate(index, spec.facts) for index in chosen]), spec),
            embedding=eager.embedding.float().numpy(),
            flags=eager.artifact.numpy(),
            flag_distance=eager.distance.float().numpy(),
            patch_tokens=eager.patch_tokens.float().numpy() if "patch_tokens" in spec.outputs else None,
            artifact_norm=eager.norm.float().numpy() if "artifact_norm" in spec.outputs else None,
        )
        limits = {name: rounding.limits(name, one, normalized=spec.normalize) for name, one in found.items()}
        return Sample(itae, golden, int(eager.artifact.sum()), int(eager.is_mixed.sum()), effect, limits, found)

    def _embed(self, index: int, itae: ItaeConfig | None, how: str) -> reference.Eager:
        self._progress(f"eager PyTorch in {how}, image {index}")
        spec = self._spec
        kept = self._kept.setdefault((index, how), reference.Kept(self._first))
        pixels = torch.from_numpy(normalize(candidate(index, spec.facts)[None]))
        return reference.embed(self._model, pixels, itae, spec.pooling, normalize=spec.normalize, kept=kept)


def candidate(index: int, facts: GraphFacts) -> Images:
    """A seeded image (H, W, 3) of one of five kinds.

    Noise; noise on a flat ground in a few places; waves; patches of many brightnesses; patches of two colours each, but
    for a few that are flat. Several kinds, since which of them give clear artifacts depends on the weights.
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
    if kind == 4:
        y, x = np.mgrid[:height, :width] % patch - (patch - 1) / 2
        angle = per_patch(rng.uniform(0, 2 * math.pi, facts.grid))
        is_light = np.cos(angle) * x + np.sin(angle) * y > 0
        dark, light, flat = (per_patch(rng.integers(low, low + 64, (*facts.grid, 3))) for low in (0, 192, 96))
        is_flat = per_patch(rng.random(facts.grid) < 0.05)
        split = np.where(is_light[..., None], light, dark)
        return np.asarray(np.where(is_flat[..., None], flat, split), np.uint8)
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


def _pool(runs: _Runs, spec: ExportSpec) -> list[_Candidate]:
    """Candidates, drawn until enough of them are good, or one of each kind shows none that is usable."""
    S = spec.parity_samples
    pool: list[_Candidate] = []
    for index in itertools.count():
        good = _good(pool)
        if len(pool) == max(POOL * S, KINDS + S) or len(good) == S or (not good and len(pool) >= max(S, KINDS)):
            break
        if index >= KINDS and good and index % KINDS not in {one.index % KINDS for one in good}:
            continue  # after one of each kind only of those that gave good ones
        pool.append(_look(runs, index, spec.itae))
    return pool


def _look(runs: _Runs, index: int, itae: ItaeConfig | None) -> _Candidate:
    """Run a candidate in float64 and in every precision of the export."""
    exact = runs.exact(index, itae)
    margin, excess, norm_limit, is_in_reach = math.inf, 1.0, 1.0, True
    for precision in runs.precisions:
        measured = runs.measured(index, itae, exact, precision)
        needed = rounding.limits(precision, measured, normalized=False)
        flag_margin = needed.flag_margin or 1.0
        norm_limit = flag_margin if precision == "fp32" else norm_limit
        margin = min(margin, exact.margin.item() / flag_margin)
        excess = max(excess, rounding.excess(precision, measured))
        is_in_reach = is_in_reach and not rounding.is_beyond_reach(needed)
    return _Candidate(index, exact, margin, excess, norm_limit, is_in_reach)


def _good(pool: list[_Candidate]) -> list[_Candidate]:
    """The usable candidates that need about the narrowest limits."""
    best = min((one.excess for one in pool if one.is_usable), default=1.0)
    return [one for one in pool if one.is_usable and one.excess <= ALIKE * best]


def _best(pool: list[_Candidate], spec: ExportSpec) -> list[int]:
    """Indices of the golden images: good ones first, those with the widest margins; then what needs narrow limits."""
    good = {one.index for one in _good(pool)}

    def order(one: _Candidate) -> tuple[bool, float, float]:
        return (one.index not in good, 0.0 if one.index in good else one.excess, -one.margin)

    return sorted(one.index for one in sorted(pool, key=order)[: spec.parity_samples])


def _move_threshold(pool: list[_Candidate], itae: ItaeConfig, S: int) -> tuple[ItaeConfig, list[int]] | None:
    """The threshold of the same kind that flags a visible share of S images most clearly, if there is one."""
    norm = torch.cat([one.exact.norm for one in pool])  # (pool, K, P)
    needed = torch.tensor([one.norm_limit for one in pool], dtype=norm.dtype)
    ordered = torch.from_numpy(np.unique(reference.score(norm, itae).numpy()))
    low, high = (int(share * len(ordered)) for share in VISIBLE)
    gaps = ordered[low + 1 : high + 1] - ordered[low:high]
    widest = gaps.topk(min(THRESHOLDS_TRIED, len(gaps))).indices + low
    clearest, best = CLEAR, None  # narrower gaps are rounding: of two patches, all scores are equal
    for number in ((ordered[widest] + ordered[widest + 1]) / 2).tolist():
        try:
            moved = dataclasses.replace(itae, threshold=f"{itae.limit.kind}:{number:.9g}")
        except UsageError:  # outside the option's domain: a ratio below 1
            continue
        artifact, distance = reference.detect(norm, moved)
        mixed = (artifact.any(dim=2) & ~artifact.all(dim=2)).any(dim=1)
        margin = torch.where(mixed, distance.flatten(1).amin(dim=1) / needed, 0)
        chosen = margin.argsort(descending=True, stable=True)[:S]
        clear = float(margin[chosen].min())
        if clear > clearest:
            clearest, best = clear, (moved, sorted(pool[place].index for place in chosen.tolist()))
    return best
