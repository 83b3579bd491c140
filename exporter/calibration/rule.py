"""The rule that chooses how artifacts are found. It looks at norms and at the CLS token's attention, not at labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.calibration.tally import BINS, LEVELS, SIDES, Tally, edges
from exporter.calibration.valley import MIN_GAP, Valley, find_valley
from exporter.methods.itae.options import SOURCES, ItaeConfig, Source

MIN_IMAGES = 2
"""Images with artifacts, at least: a single odd picture shows nothing."""
MIN_IMAGE_SHARE = 0.005
"""The same as a share of all images."""
CONSTANT = 0.99
"""For `positions`: the share of images in which a place is an artifact, and the share of artifacts in such places."""
MIN_FOR_POSITIONS = 16
"""Images that must have been seen before a place is called constant."""
COMPLETE = 0.9
"""Share of the best one's catch of the CLS token's attention that a way of finding must have to count as complete."""
CAUGHT = 0.005
"""Share of the CLS token's attention beyond the patches' fair share, below which patches are counted instead."""
PREFERRED: tuple[Source, ...] = ("residual", "value", "key", "query")
"""Sources that find the same, the one that is taken first."""


@dataclass(frozen=True)
class Detection:
    """A way to find artifacts: norms of one source in one block, `ratio:λ` on one side."""

    layer: int
    source: Source
    level: int
    """Index of λ in `LEVELS`."""
    valley: Valley
    caught: tuple[float, ...]
    """Share of the CLS token's attention on the flagged patches, for each block from `layer` to the last."""
    share: float
    """Share of all patches that are flagged."""
    image_share: float
    """Share of the images that have one."""

    @property
    def threshold(self) -> str:
        """As `--threshold` takes it."""
        return f"ratio:{LEVELS[self.level]:g}"

    @property
    def pull(self) -> tuple[float, ...]:
        """How many times its fair share of attention a flagged patch has, for each block from `layer` to the last."""
        return tuple(one / self.share for one in self.caught)

    @property
    def side(self) -> str:
        """The side of the threshold on which the flagged norms are."""
        return self.valley.side


@dataclass(frozen=True)
class Choice:
    """The chosen ways to find artifacts."""

    first: Detection
    """In the first block from which on it is clear what is an artifact."""
    last: Detection
    """In the last such block, if possible the last of all."""
    positions: tuple[int, ...]
    """Places that are artifacts in every image and hold all artifacts; empty if there are none."""


def detections(tally: Tally) -> list[Detection]:
    """All ways that find patches which stand apart, in every block and source.

    Low residual norms are left out, since flat grey patches have them, and so are those of the first block: they are
    the picture's own.
    """
    found = []
    for layer in range(tally.counts.shape[0]):
        for source in SOURCES:
            for side in SIDES:
                if source == "residual" and (side == "low" or layer == 0):
                    continue
                one = _detection(tally, layer, source, side)
                if one is not None:
                    found.append(one)
    return found


def _detection(tally: Tally, layer: int, source: Source, side: str) -> Detection | None:
    place = SOURCES.index(source)
    counts = tally.counts[layer, place]
    valley = find_valley(counts, side)
    if valley is None or not valley.stands_apart:
        return None
    inner, outer = sorted((max(valley.near, 1 / valley.near), max(valley.far, 1 / valley.far)))
    inside = [number for number, one in enumerate(LEVELS) if inner <= one <= outer]
    if not inside:
        return None
    level = min(inside, key=lambda number: abs(math.log(LEVELS[number] / valley.middle)))
    images = int(tally.images[layer, place, SIDES.index(side), level])
    if images < max(MIN_IMAGES, MIN_IMAGE_SHARE * tally.seen):
        return None
    flagged = beyond(LEVELS[level], side)
    return Detection(
        layer=layer,
        source=source,
        level=level,
        valley=valley,
        caught=tuple((tally.attention[layer, place][flagged].sum(axis=0) / tally.seen)[layer:].tolist()),
        share=float(counts[flagged].sum() / counts.sum()),
        image_share=images / tally.seen,
    )


def beyond(level: float, side: str) -> npt.NDArray[np.bool_]:
    """(BINS,): the bins on the far side of a level, but for rounding to bins."""
    middles = np.sqrt(edges()[:-1] * edges()[1:])
    found: npt.NDArray[np.bool_] = middles > level if side == "high" else middles < 1 / level
    assert len(found) == BINS
    return found


def choose(found: list[Detection], tally: Tally) -> Choice | None:
    """Choose among the ways that `detections` found; returns None if there are none.

    Those that catch most of the CLS token's attention in the last block are complete. Of them the first source of
    `PREFERRED` is taken, and its first and last block whose valley, in octaves, is at least half as wide as the widest.
    """
    if not found:
        return None
    excess = [one.caught[-1] - one.share for one in found]
    worth = excess if max(excess) >= CAUGHT else [one.share for one in found]
    complete = [one for one, value in zip(found, worth, strict=True) if value >= COMPLETE * max(worth)]
    source = min((one.source for one in complete), key=PREFERRED.index)
    same = [one for one in complete if one.source == source]
    widest = max(same, key=lambda one: one.valley.width)
    clear = [
        one
        for one in same
        if one.side == widest.side and math.log(one.valley.width) >= math.log(widest.valley.width) / 2
    ]
    first, last = (pick(clear, key=lambda one: one.layer) for pick in (min, max))
    return Choice(first, last, constant_places(first, tally))


def constant_places(one: Detection, tally: Tally) -> tuple[int, ...]:
    """The places that are artifacts in every image, if they hold all of them; empty otherwise."""
    place = SOURCES.index(one.source)
    counts = tally.places[one.layer, place, SIDES.index(one.side), one.level]
    if tally.seen < MIN_FOR_POSITIONS:
        return ()
    constant = counts >= CONSTANT * tally.seen
    held = counts[constant].sum() / counts.sum()
    return tuple(np.flatnonzero(constant).tolist()) if held >= CONSTANT else ()


def closest_miss(tally: Tally) -> str:
    """A sentence on the patches that stand apart most, where none do so far enough."""
    best: tuple[float, str] | None = None
    for layer in range(tally.counts.shape[0]):
        for place, source in enumerate(SOURCES):
            for side in SIDES:
                if source == "residual" and (side == "low" or layer == 0):
                    continue
                valley = find_valley(tally.counts[layer, place], side)
                if valley is not None and (best is None or valley.width > best[0]):
                    best = (
                        valley.width,
                        f"the widest valley is one of {valley.width:.2f} times, between the {source} norms of block "
                        f"{layer}, with {valley.beyond:,} patches beyond it",
                    )
    return best[1] if best is not None else "all norms lie in one mode"


def no_artifacts(tally: Tally) -> str:
    """The reason for a recommendation of nothing."""
    return (
        f"no artifacts in these images: in no block do patches stand apart by {MIN_GAP:g} times the norm of the others "
        f"with a clear valley between ({closest_miss(tally)})"
    )


def to_config(detection: Detection, layers: str, last: int, attenuate: str) -> ItaeConfig:
    """The options of ITAE that find artifacts in this way; `last` is the number of the last block."""
    attenuated = last if layers == "last" else int(layers.partition("-")[0])
    alone = layers == "last" and detection.layer == attenuated
    return ItaeConfig(
        layers=layers,
        source=detection.source,
        threshold=detection.threshold,
        side=detection.side,  # type: ignore[arg-type]  # one of two of its words
        attenuate=attenuate,
        detect_layer=None if alone else detection.layer,
    )
