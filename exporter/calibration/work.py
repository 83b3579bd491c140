"""The calibration itself: one half of the images chooses the options, the other half reports what they do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from exporter.calibration import rule
from exporter.calibration.blocks import Seen, Stack
from exporter.calibration.rule import Choice, Detection, Watched
from exporter.calibration.scored import Scores, score_all
from exporter.calibration.tally import LEVELS, SIDES, Tally
from exporter.calibration.trials import Comparison, Trial, Trials, compare_layers, layers_from, settings_beside
from exporter.intake import Batch, Intake
from exporter.methods.itae.options import SOURCES, ItaeConfig
from runtime.contract.console import count
from runtime.contract.errors import CheckError, InputError
from runtime.contract.keys import Key

LEAST = 4
"""Images that a calibration needs, at least."""
SAMPLE = 32
"""Images with artifacts that are looked at again, to compare the last block with all blocks."""
SHOWN = 12
"""Images whose flags the report shows."""


@dataclass(eq=False)
class Result:
    """The result of a calibration."""

    tally: Tally
    """The counts of the half that chose."""
    found: list[Detection]
    chosen: Choice | None
    watched: Watched | None
    """Only where norms show nothing."""
    comparison: Comparison | None
    """None if nothing was found."""
    itae: ItaeConfig | None
    reason: str
    trials: list[Trial]
    """On the half that reports; the recommended setting first if there is one, the plain model last."""
    scores: list[Scores] | None
    """For each trial, where classes are known."""
    reported: int = 0
    """Images of the half that reports."""
    places: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,): images of the half that reports in which the first setting flags each place."""
    shown: list[tuple[Key, npt.NDArray[np.bool_]]] = field(default_factory=list)
    """Images and their flagged patches (P,), those with most artifacts and some others."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of the model's plain pass over the half that reports, and of all settings on it."""


class Calibration:
    """A model that images are run through, in two passes over disjoint halves."""

    def __init__(self, blocks: Stack, intake: Intake, device: str, say: Callable[[int], None]) -> None:
        self._blocks = blocks
        self._intake, self._device, self._say = intake, device, say
        self._done = 0

    def run(self, *, labels: bool, seeds: int) -> Result:
        """Choose, then report.

        Raises:
            InputError: there are too few images that can be read; with labels, as `score_all`.
            CheckError: the model gave NaN or infinity.
        """
        tally = self._count()
        found = rule.detections(tally)
        chosen = rule.choose(found, tally)
        watched = rule.watched_places(tally) if chosen is None else None
        comparison, itae, reason = None, None, rule.no_artifacts(tally)
        if chosen is not None:
            comparison = self._compare(chosen, tally)
            itae = self._recommended(chosen, comparison)
            reason = reason_for(chosen, comparison, self._blocks.depth)
        elif watched is not None:
            comparison = self._compare_places(watched, tally)
            itae = places_in(watched.positions, self._layers(watched.layer, comparison))
            reason = reason_by_attention(watched, tally, comparison, self._blocks.depth)
        settings = settings_beside(itae, found, chosen.first if chosen else watched, self._blocks.depth)
        trials = Trials(self._blocks, settings, keep_vectors=labels)
        result = Result(tally, found, chosen, watched, comparison, itae, reason, trials.trials, None)
        keys = self._report(trials, result)
        if labels:
            vectors = [np.concatenate(trial.vectors) for trial in trials.trials]
            result.scores = score_all(vectors, keys, seeds)
        return result

    def _count(self) -> Tally:
        tally: Tally | None = None
        for batch in self._intake.batches(0):
            seen = self._look(batch, ())
            norms, attention = seen.norms.cpu().numpy(), seen.attention.float().cpu().numpy()
            tally = tally or Tally.empty(norms.shape[1], norms.shape[2], norms.shape[3])
            tally.add(norms, attention)
        if tally is None or tally.seen < LEAST // 2:
            raise InputError(f"{self._too_few(tally.seen if tally else 0)}")
        return tally

    def _too_few(self, readable: int) -> str:
        first = self._intake.first_failure()
        return (
            f"a calibration needs at least {LEAST} images that can be read, half of them to choose by: of that half "
            f"{readable} could be{f'; the first that can not: {first}' if first else ''}"
        )

    def _look(self, batch: Batch, keep: Sequence[int], *, counts: bool = True) -> Seen:
        seen = self._blocks.look(torch.from_numpy(batch.pixels).to(self._device), keep)
        if not (bool(torch.isfinite(seen.norms).all()) and bool(torch.isfinite(seen.embedding).all())):
            raise CheckError("the model gave NaN or infinity: its weights are damaged, get them again")
        if counts:
            self._done += len(batch.keys)
            self._say(self._done)
        return seen

    def _compare(self, chosen: Choice, tally: Tally) -> Comparison:
        """The last block beside all blocks, on images of the choosing half that have artifacts."""
        first, depth = chosen.first, self._blocks.depth
        known = tally.extremes[: tally.seen, first.layer, SOURCES.index(first.source), SIDES.index(first.side)]
        numbers = set(np.flatnonzero(known > LEVELS[first.level])[:SAMPLE].tolist())
        last = rule.to_config(first, "last", depth - 1, "min")
        every = rule.to_config(first, layers_from(first.layer, depth), depth - 1, "min")
        return self._compare_on(numbers, first.layer, last, every)

    def _compare_places(self, watched: Watched, tally: Tally) -> Comparison:
        """The same for places that the CLS token looks at in every image."""
        every = places_in(watched.positions, layers_from(watched.layer, self._blocks.depth))
        numbers = set(range(min(SAMPLE, tally.seen)))
        return self._compare_on(numbers, watched.layer, places_in(watched.positions, "last"), every)

    def _compare_on(self, numbers: set[int], layer: int, last: ItaeConfig, every: ItaeConfig) -> Comparison:
        """Compare two settings, the second of which begins with a block, on images of the choosing half."""
        keep = sorted({layer, self._blocks.depth - 1})
        batches = self._intake.some(0, numbers) if numbers else []
        seen = [self._look(batch, keep, counts=False) for batch in batches]
        if not seen:  # artifacts so rare that none of the remembered images has one
            return Comparison(0, 0.0, 0.0, 1.0)
        return compare_layers(self._blocks, seen, last, every)

    def _layers(self, first: int, comparison: Comparison) -> str:
        return "last" if comparison.last_is_enough else layers_from(first, self._blocks.depth)

    def _recommended(self, chosen: Choice, comparison: Comparison) -> ItaeConfig:
        depth = self._blocks.depth
        layers = self._layers(chosen.first.layer, comparison)
        if chosen.positions:
            return places_in(chosen.positions, layers)
        detection = chosen.last if layers == "last" else chosen.first
        return rule.to_config(detection, layers, depth - 1, "min")

    def _report(self, trials: Trials, result: Result) -> list[Key]:
        keys: list[Key] = []
        looked, tried = 0.0, 0.0
        few: list[tuple[int, Key, npt.NDArray[np.bool_]]] = []
        for batch in self._intake.batches(1):
            start = time.monotonic()
            seen = self._look(batch, trials.inputs)
            middle = time.monotonic()
            flags = trials.add(seen)
            looked, tried = looked + middle - start, tried + time.monotonic() - middle
            if not len(result.places):
                result.places = np.zeros(flags.shape[1], np.int64)
            result.places += flags.sum(axis=0)
            keys += batch.keys
            few += [(int(flag.sum()), key, flag) for key, flag in zip(batch.keys, flags, strict=True)]
            few = few[: SHOWN // 3] + sorted(few[SHOWN // 3 :], key=lambda one: -one[0])[: SHOWN - SHOWN // 3]
        if len(keys) < LEAST // 2:
            raise InputError(self._too_few(result.tally.seen))
        result.reported = len(keys)
        result.shown = [(key, flag) for _, key, flag in few]
        result.seconds = {"plain pass": looked, "settings": tried}
        return keys


def places_in(positions: Sequence[int], layers: str) -> ItaeConfig:
    """ITAE on constant places in some layers."""
    return ItaeConfig(layers=layers, threshold=f"positions:{as_list(positions)}")


def as_list(places: Sequence[int]) -> str:
    """Ascending indices as `positions` takes them: 0,1,16-18."""
    parts: list[list[int]] = []
    for one in places:
        if parts and one == parts[-1][-1] + 1:
            parts[-1].append(one)
        else:
            parts.append([one])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts)


def reason_for(chosen: Choice, comparison: Comparison, depth: int) -> str:
    """The reason of a recommendation, in sentences."""
    first = chosen.first
    kind = {"high": "above", "low": "below"}[first.side]
    text = (
        f"{first.share:.2%} of the patches, in {first.image_share:.0%} of the images, have {first.source} norms "
        f"{first.valley.gap:.1f} times {kind} those of the others in block {first.layer}, with a valley from "
        f"{first.valley.near:.2f} to {first.valley.far:.2f} times the median between; in these images the CLS token "
        f"gives them {max(first.caught) / first.image_share:.1%} of its attention"
    )
    if chosen.positions:
        text += f"; they are the same {count(len(chosen.positions), 'place')} in every image"
    return text + _on_layers(first.layer, comparison, depth)


def reason_by_attention(watched: Watched, tally: Tally, comparison: Comparison, depth: int) -> str:
    """The reason of a recommendation of places that no norms set apart."""
    places = len(watched.positions)
    return (
        f"the CLS token looks at the same {count(places, 'place')} in every image: in a block they get up to "
        f"{watched.attention:.1%} of its attention, as {places / tally.watched.shape[1]:.2%} of the patches; no norms "
        f"set them apart, from block {watched.layer} on{_on_layers(watched.layer, comparison, depth)}"
    )


def _on_layers(first: int, comparison: Comparison, depth: int) -> str:
    """Why the last block or more of them are attenuated."""
    if first == depth - 1:
        return ""
    if comparison.images == 0:
        return f"; all blocks from {first} on are attenuated, since no image was left to compare with `last`"
    if comparison.last_is_enough:
        return "; attenuating the last block alone does nearly all that attenuating all blocks would"
    return (
        f"; attenuating the last block alone moves the embedding by {comparison.change_last:.2g} (1 - cosine), "
        f"all blocks from {first} on by {comparison.change_all:.2g}: so all of them are"
    )


def as_options(itae: ItaeConfig | None) -> dict[str, object] | None:
    """The options of ITAE as the file has them: those that are None are left out."""
    return None if itae is None else {k: v for k, v in dataclasses.asdict(itae).items() if v is not None}
