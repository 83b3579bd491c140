"""Settings of ITAE tried on images: what they flag, what becomes of the CLS token's attention and of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from exporter.calibration.blocks import Seen, Stack
from exporter.calibration.rule import Detection, Watched, to_config
from exporter.methods.itae.options import SOURCES, Choice, ItaeConfig
from exporter.methods.itae.reference import detect

Float32 = npt.NDArray[np.float32]

SCALED = "scale:0.1"
SAME_CHANGE = 0.1
"""Where `last` comes so close to all blocks, as a share of what these change, it is taken."""


@dataclass(frozen=True)
class Setting:
    """One setting that is tried."""

    name: str
    itae: ItaeConfig | None
    """None for the plain model."""


@dataclass(eq=False)
class Trial:
    """The effects of one setting, summed over images."""

    setting: Setting
    images: int = 0
    with_artifacts: int = 0
    patches: int = 0
    flagged: int = 0
    before: list[float] = field(default_factory=list)
    """Sum over the images of the CLS token's attention on flagged patches, for each attenuated block, plain."""
    after: list[float] = field(default_factory=list)
    """The same with attenuation."""
    cosines: list[Float32] = field(default_factory=list)
    """Cosine of each embedding to the plain one."""
    shared: int = 0
    """Patches that this setting and the first one both flag."""
    either: int = 0
    """Patches that one of the two flags."""
    vectors: list[Float32] = field(default_factory=list)
    """Embeddings, where they are kept."""

    @property
    def share(self) -> float:
        """Share of the patches that are flagged."""
        return self.flagged / max(self.patches, 1)

    @property
    def agreement(self) -> float | None:
        """Intersection over union with the first setting's patches; None if neither flags any."""
        return self.shared / self.either if self.either else None

    def attention(self, when: str) -> float:
        """Mean share of the CLS token's attention on flagged patches, over blocks and images that have any."""
        sums = self.before if when == "before" else self.after
        return sum(sums) / max(len(sums), 1) / max(self.with_artifacts, 1)

    @property
    def cosine(self) -> float:
        """Mean cosine to the plain embedding, over the images with artifacts; 1 if there are none."""
        found = np.concatenate(self.cosines)
        return float(found.mean()) if len(found) else 1.0


class Trials:
    """Runs settings on batches that were looked at."""

    def __init__(self, blocks: Stack, settings: Sequence[Setting], *, keep_vectors: bool) -> None:
        self._blocks, self._keep = blocks, keep_vectors
        self.trials = [Trial(one) for one in settings]
        depth = blocks.depth
        self._layers = [one.itae.layer_indices(depth) if one.itae is not None else () for one in settings]
        self.inputs = sorted({depth - 1, *(layers[0] for layers in self._layers if layers)})
        """Blocks whose inputs `Blocks.look` must keep."""

    def add(self, seen: Seen) -> npt.NDArray[np.bool_]:
        """Try every setting on a batch; returns what the first setting flags, (B, P)."""
        flags = [self._flags(trial.setting, seen) for trial in self.trials]
        embeddings: list[torch.Tensor] = [seen.embedding] * len(flags)
        afters: list[list[torch.Tensor]] = [[] for _ in flags]
        at_last: list[int] = []
        last = self._blocks.depth - 1
        for number, (trial, artifact, layers) in enumerate(zip(self.trials, flags, self._layers, strict=True)):
            if trial.setting.itae is None:
                continue
            if layers == (last,):
                at_last.append(number)
                continue
            how = trial.setting.itae.attenuation
            tokens, afters[number] = self._blocks.again(seen.inputs[layers[0]], layers, artifact, how)
            in_last = artifact if layers[-1] == last else torch.zeros_like(artifact)
            ((embeddings[number], attention),) = self._blocks.last(tokens, [(in_last, how)])
            if layers[-1] == last:
                afters[number].append(attention)
        wanted = [(flags[number], self._attenuation(number)) for number in at_last]
        for number, (embedding, attention) in zip(at_last, self._blocks.last(seen.inputs[last], wanted), strict=True):
            embeddings[number], afters[number] = embedding, [attention]
        for number, trial in enumerate(self.trials):
            self._count(trial, seen, flags[number], flags[0], embeddings[number], afters[number], self._layers[number])
        first: npt.NDArray[np.bool_] = flags[0].cpu().numpy()
        return first

    def _attenuation(self, number: int) -> Choice:
        itae = self.trials[number].setting.itae
        assert itae is not None
        return itae.attenuation

    def _flags(self, setting: Setting, seen: Seen) -> torch.Tensor:
        """(B, P) bool; of several blocks that detect for themselves, the first one's."""
        norms = seen.norms[:, 0, 0]
        if setting.itae is None:
            return torch.zeros_like(norms, dtype=torch.bool)
        if setting.itae.source is not None:
            layer = setting.itae.detects_in(setting.itae.layer_indices(self._blocks.depth)[0])
            norms = seen.norms[:, layer, SOURCES.index(setting.itae.source)]
        return detect(norms, setting.itae)[0]

    def _count(
        self,
        trial: Trial,
        seen: Seen,
        artifact: torch.Tensor,
        first: torch.Tensor,
        embedding: torch.Tensor,
        after: list[torch.Tensor],
        layers: Sequence[int],
    ) -> None:
        has_any = artifact.any(dim=1)
        trial.images += len(artifact)
        trial.with_artifacts += int(has_any.sum())
        trial.patches += artifact.numel()
        trial.flagged += int(artifact.sum())
        trial.shared += int((artifact & first).sum())
        trial.either += int((artifact | first).sum())
        before = [float((seen.attention[:, layer] * artifact).sum()) for layer in layers]
        left = [float((one * artifact).sum()) for one in after]
        trial.before = [a + b for a, b in zip(trial.before or [0.0] * len(before), before, strict=True)]
        trial.after = [a + b for a, b in zip(trial.after or [0.0] * len(left), left, strict=True)]
        cosine = torch.nn.functional.cosine_similarity(embedding, seen.embedding, dim=1)[has_any]
        trial.cosines.append(cosine.float().cpu().numpy())
        if self._keep:
            trial.vectors.append(embedding.float().cpu().numpy())


def layers_from(first: int, depth: int) -> str:
    """All blocks from `first` on, as `--layers` takes them."""
    return "last" if first >= depth - 1 else f"{first}-{depth - 1}"


@dataclass(frozen=True)
class Comparison:
    """`last` beside all blocks from the one where artifacts appear, on some images that have artifacts."""

    images: int
    change_last: float
    """Mean of 1 - cosine to the plain embedding, with the last block attenuated."""
    change_all: float
    """The same with all blocks from the first on."""
    apart: float
    """Mean of 1 - cosine between the two."""

    @property
    def last_is_enough(self) -> bool:
        """Whether the last block alone does nearly all that all blocks do."""
        return self.apart <= SAME_CHANGE * self.change_all


def compare_layers(blocks: Stack, seen: Sequence[Seen], last: ItaeConfig, every: ItaeConfig) -> Comparison:
    """Compare the two on batches that were looked at, with the inputs of the blocks that `Trials` needs."""
    trials = Trials(blocks, [Setting("all", every), Setting("last", last)], keep_vectors=True)
    plain = []
    for one in seen:
        trials.add(one)
        plain.append(one.embedding.float().cpu().numpy())
    every_one, last_one = (np.concatenate(trial.vectors) for trial in trials.trials)
    whole = np.concatenate(plain)
    return Comparison(len(whole), _apart(last_one, whole), _apart(every_one, whole), _apart(every_one, last_one))


def _apart(a: Float32, b: Float32) -> float:
    """Mean of 1 - cosine of n pairs of vectors, (n, C) each."""
    cosine = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return float((1 - cosine).mean())


def settings_beside(
    recommended: ItaeConfig | None, found: Sequence[Detection], first: Detection | Watched | None, depth: int
) -> list[Setting]:
    """The settings that are tried: the recommended one first, then others to compare it with; the plain model last."""
    tried: dict[ItaeConfig, str] = {}

    def add(name: str, itae: ItaeConfig) -> None:
        tried.setdefault(itae, name)

    if recommended is not None and first is not None:
        layers = recommended.layers
        other = "last" if layers != "last" else layers_from(first.layer, depth)
        add("recommended", recommended)
        add("other blocks", _with_layers(recommended, other, first, depth, recommended.attenuate))
        for how in ("min", "mask", "mean", SCALED):
            add(f"last block, {how}", _with_layers(recommended, "last", first, depth, how))
        if recommended.limit.kind == "positions" and isinstance(first, Detection):
            add("by norm", to_config(first, "last", depth - 1, "min"))
        for source in SOURCES:
            best = max((one for one in found if one.source == source), key=lambda one: one.valley.width, default=None)
            if best is not None:
                add(f"best by {source}", to_config(best, "last", depth - 1, "min"))
    add("residual ratio:3", ItaeConfig(source="residual", threshold="ratio:3", side="high"))
    add("residual ratio:2", ItaeConfig(source="residual", threshold="ratio:2", side="high"))
    add("residual mad:5", ItaeConfig(source="residual", threshold="mad:5", side="high"))
    for source in SOURCES:
        if source != "residual":
            add(f"{source} mad:5", ItaeConfig(source=source, threshold="mad:5", side="both"))
    add("value low", ItaeConfig(source="value", threshold="ratio:2", side="low"))
    return [*(Setting(name, itae) for itae, name in list(tried.items())[:15]), Setting("plain", None)]


def _with_layers(recommended: ItaeConfig, layers: str, first: Detection | Watched, depth: int, how: str) -> ItaeConfig:
    if isinstance(first, Watched) or recommended.limit.kind == "positions":
        return ItaeConfig(layers=layers, threshold=recommended.threshold, attenuate=how)
    return to_config(first, layers, depth - 1, how)
