"""The rule that chooses how artifacts are found. It looks at norms and at the CLS token's attention, not at labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from exporter.calibration.tally import BINS, LEVELS, SIDES, WATCHED, Tally, edges
from exporter.calibration.valley import STRAY, Valley, find_valleys
from exporter.methods.itae.options import SOURCES, ItaeConfig, Source

MIN_GAP = 2.0
"""Ratio of the modes' median norms, at least: clean patches vary with content, dark ones reach 1.4 times the median."""
MOST = 1 / 3
"""Share of the patches beyond the valley, at most: a median of more would not be that of normal patches."""
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
MASSIVE = 8.0
"""Gap of high residual norms from which on they are artifacts in any case: pictures alone have reached 6.3."""
BORN = 1.25
"""Gap of residual norms to that of the first block's input, at least: what the picture brings shrinks from block to
block."""
MIN_PULL = 2.0
"""Times its fair share of the CLS token's attention that a patch must have, at least, where norms that vary with the
picture are to make it an artifact."""
DRAWN = 10.0
"""The same, from which on no object in a picture is taken for an artifact: those have reached 5."""
LOOKS = 0.05
"""Share of the CLS token's attention, at least, on places that it looks at in every image, to call them artifacts."""
MENTIONED = 0.25
"""The same on patches that it looks at anywhere, to mention them: models without artifacts have reached 0.19."""
EVERY = 0.95
"""Share of the images in which the CLS token looks at such a place, at least."""
MOSTLY = 0.9
"""Share of all its looks that go to these places, at least."""
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


@dataclass(frozen=True)
class Watched:
    """Places that the CLS token looks at in every image, whatever is there, though no norms set them apart."""

    layer: int
    """The first block in which it does."""
    positions: tuple[int, ...]
    attention: float
    """Share of its attention that they get, in the block where it is largest."""


def detections(tally: Tally) -> list[Detection]:
    """All ways that find artifacts, in every block and source, by block."""
    return [one for one in _candidates(tally) if _objection(one, tally) is None]


def _candidates(tally: Tally) -> Iterator[Detection]:
    """A way for every valley, that nearest to the median first.

    The residual norms of the first block are left out: they are the picture's own.
    """
    for layer in range(tally.counts.shape[0]):
        for place, source in enumerate(SOURCES):
            for side in SIDES if source != "residual" or layer > 0 else ():
                for valley in find_valleys(tally.counts[layer, place], side):
                    one = _detection(tally, layer, source, valley)
                    if one is not None:
                        yield one


def _detection(tally: Tally, layer: int, source: Source, valley: Valley) -> Detection | None:
    place, side = SOURCES.index(source), valley.side
    counts = tally.counts[layer, place]
    inner, outer = sorted((max(valley.near, 1 / valley.near), max(valley.far, 1 / valley.far)))
    inside = [number for number, one in enumerate(LEVELS) if inner <= one <= outer]
    if not inside:
        return None
    level = min(inside, key=lambda number: abs(math.log(LEVELS[number] / valley.middle)))
    flagged = beyond(LEVELS[level], side)
    if not counts[flagged].any():
        return None
    return Detection(
        layer=layer,
        source=source,
        level=level,
        valley=valley,
        caught=tuple((tally.attention[layer, place][flagged].sum(axis=0) / tally.seen)[layer:].tolist()),
        share=float(counts[flagged].sum() / counts.sum()),
        image_share=float(tally.images[layer, place, SIDES.index(side), level] / tally.seen),
    )


def _objection(one: Detection, tally: Tally) -> str | None:
    """Why the patches that stand apart in this way are no artifacts; None if they are.

    Pictures alone can do much: objects on a grey ground have six times its residual norm in the first blocks, black
    areas twice, objects on a white ground half of it, and the norms of other sources vary too. So all but massive
    residual norms must be born in the model, or draw the CLS token, or both.
    """
    valley, images, pull = one.valley, round(one.image_share * tally.seen), max(one.pull)
    is_massive = one.source == "residual" and one.side == "high" and valley.gap >= MASSIVE
    least = 1 if is_massive and pull >= MIN_PULL else MIN_IMAGES
    if valley.gap < MIN_GAP:
        return f"which is less than {MIN_GAP:g} times"
    if valley.share > MOST:
        return "but they are too many"
    if images < max(least, MIN_IMAGE_SHARE * tally.seen):
        have = "image has" if images == 1 else "images have"
        return f"but only {images:,} {have} such patches, of {tally.seen:,}: look at more images to be sure"
    if is_massive:
        return None
    if one.source == "residual" and not (one.side == "high" and pull >= DRAWN):
        before = find_valleys(tally.counts[0, SOURCES.index("residual")], one.side)
        if any(valley.gap < BORN * other.gap for other in before):
            return "but they stand apart as far before the first block: they are the picture's own"
        if one.side == "high" and valley.far >= MIN_GAP:
            return None
    if pull < MIN_PULL:
        return f"but the CLS token is not drawn to them: it gives them {pull:.1f} times their fair share of attention"
    return None


def beyond(level: float, side: str) -> npt.NDArray[np.bool_]:
    """(BINS,): the bins on the far side of a level, but for rounding to bins."""
    middles = np.sqrt(edges()[:-1] * edges()[1:])
    found: npt.NDArray[np.bool_] = middles > level if side == "high" else middles < 1 / level
    assert len(found) == BINS
    return found


def choose(found: list[Detection], tally: Tally) -> Choice | None:
    """Choose among the ways that `detections` found; returns None if there are none.

    Those that catch most of the CLS token's attention in the last block are complete. Of them the first source of
    `PREFERRED` is taken, and its first and last block that are clear: whose valley is, in octaves, at least half as
    wide as the widest, and has hardly more patches in it than the emptiest of these. Where a block has several valleys,
    the one beyond which most is caught is taken.
    """
    if not found:
        return None
    excess = [one.caught[-1] - one.share for one in found]
    worth = excess if max(excess) >= CAUGHT else [one.share for one in found]
    complete = [(one, value) for one, value in zip(found, worth, strict=True) if value >= COMPLETE * max(worth)]
    source = min((one.source for one, _ in complete), key=PREFERRED.index)
    same = [one for one, _ in sorted(complete, key=lambda pair: -pair[1]) if one.source == source]
    widest = max(same, key=lambda one: one.valley.width)
    wide = [
        one
        for one in same
        if one.side == widest.side and math.log(one.valley.width) >= math.log(widest.valley.width) / 2
    ]
    least = min(one.valley.overlap for one in wide)
    clear = [one for one in wide if one.valley.overlap <= max(2 * least, STRAY)]
    first, last = (pick(clear, key=lambda one: one.layer) for pick in (min, max))  # the first of several in a block
    return Choice(first, last, constant_places(first, tally))


def constant_places(one: Detection, tally: Tally) -> tuple[int, ...]:
    """The places that are artifacts in every image, if they hold all of them; empty otherwise."""
    place = SOURCES.index(one.source)
    counts = tally.places[one.layer, place, SIDES.index(one.side), one.level]
    if tally.seen < MIN_FOR_POSITIONS:
        return ()
    constant = counts >= (CONSTANT - one.valley.overlap) * tally.seen  # some norms lie on the wrong side
    held = counts[constant].sum() / counts.sum()
    return tuple(np.flatnonzero(constant).tolist()) if held >= CONSTANT else ()


def watched_places(tally: Tally) -> Watched | None:
    """The places that the CLS token looks at in every image, or None; to be asked where norms show nothing.

    What it looks at in a picture is not in the same place in every picture, so these places themselves attract it.
    """
    if tally.seen < MIN_FOR_POSITIONS:
        return None
    found = []
    for layer in range(len(tally.watched)):
        counts, share = tally.watched[layer], float(tally.looks[layer] / tally.seen)
        constant = counts >= EVERY * tally.seen
        if share < LOOKS or constant.mean() > MOST or counts[constant].sum() < max(MOSTLY * counts.sum(), 1):
            continue
        found.append(Watched(layer, tuple(np.flatnonzero(constant).tolist()), share))
    if not found:
        return None
    return replace(max(found, key=lambda one: one.attention), layer=found[0].layer)


def no_artifacts(tally: Tally) -> str:
    """The reason for a recommendation of nothing: what comes closest to artifacts, and what the CLS token looks at."""
    closest = max(_candidates(tally), key=lambda one: one.valley.gap, default=None)
    if closest is None:
        return f"no artifacts in these images: in every block all norms lie in one mode{_unseen(tally)}"
    return (
        f"no artifacts in these images: those that come closest are {closest.share:.2%} of the patches, whose "
        f"{closest.source} norms in block {closest.layer} are {closest.valley.gap:.2f} times "
        f"{'above' if closest.side == 'high' else 'below'} those of the others, {_objection(closest, tally)}"
        f"{_unseen(tally)}"
    )


def _unseen(tally: Tally) -> str:
    """A sentence on patches that the CLS token looks at though norms don't set them apart; empty if there are few."""
    layer = int(tally.looks.argmax())
    share = tally.looks[layer] / tally.seen
    if share < MENTIONED:
        return ""
    patches = tally.watched[layer].sum() / tally.seen
    return (
        f"; but {share:.0%} of the CLS token's attention in block {layer} falls on {patches:.1f} of "
        f"{tally.watched.shape[1]} patches an image, {WATCHED:g} times the mean or more each, and norms don't separate "
        "these from the others: they may be what the picture shows, or artifacts that no threshold of norms finds"
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
