"""The report of a calibration: one page, drawn by the runtime's own elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.calibration.findings import figures
from exporter.calibration.recommendation import NOTHING
from exporter.calibration.rule import beyond
from exporter.calibration.scored import METRICS
from exporter.calibration.subject import Subject
from exporter.calibration.tally import BINS, LEVELS, OCTAVES, PER_OCTAVE, edges
from exporter.calibration.work import Result, as_options
from exporter.intake import Intake
from exporter.methods.itae.options import SOURCES, ItaeConfig, Source
from runtime.report import Artifacts, FlaggedImage, Headline, Norms, Places, Report, Table, write_report
from runtime.sources.at_hand import at_hand

_BARS = 80
"""Bars of a histogram, about, at most."""
_MOST_HISTOGRAMS = 8


def write_views(
    path: Path, result: Result, subject: Subject, intake: Intake, found: Mapping[str, Any], command: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: the page.
        result: what it shows.
        subject: the model and the size of its images.
        intake: the images.
        found: the content of the JSON file.
        command: the command that was run, and the one to run next.
    """
    write_report(path, _report(result, subject, intake, found, command), at_hand)


def _report(
    result: Result, subject: Subject, intake: Intake, found: Mapping[str, Any], command: Sequence[str]
) -> Report:
    images = found["images"]
    facts = [
        ("command", command[0]),
        ("next", command[1]),
        ("model", f"{subject.name}, weights {found['model']['weights']}"),
        ("SHA-256 of the weights", found["model"]["sha256"]),
        ("image size", f"{subject.image_size[0]} x {subject.image_size[1]}, fit by {subject.fit}"),
        ("images", f"{images['choosing']:,} to choose by, {images['reporting']:,} to report on"),
        ("can't be read", f"{images['failed']:,}" + (f"; {intake.first_failure()}" if images["failed"] else "")),
        *((f"passed over: {why}", f"{number:,}") for why, number in images["skipped"].items()),
    ]
    return Report(
        title="Calibration of ITAE",
        lead=NOTHING if result.itae is None else f"Recommended: {_words(result.itae)}",
        facts=facts,
        headlines=_headlines(result),
        notes=_notes(result),
        tables=[_settings(result), *([_sources(result)] if result.found else [])],
        artifacts=_artifacts(result, subject, intake),
    )


def _words(itae: ItaeConfig | None) -> str:
    options = as_options(itae) or {}
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items()) or "plain"


def _headlines(result: Result) -> list[Headline]:
    found = figures(result)
    if result.itae is None:
        return [Headline("Artifacts", "none", "in the images that were looked at")]
    tiles = [
        Headline("Patches flagged", f"{found['flagged']:.2%}", f"in {found['images_with_artifacts']:.0%} of the images")
    ]
    if result.chosen is not None:
        first = result.chosen.first
        tiles.append(Headline("Gap", f"{first.valley.gap:.1f} times", f"{first.source} norms of block {first.layer}"))
    tiles += [
        Headline(
            "CLS attention on them",
            f"{found['attention_before']:.1%} → {found['attention_after']:.1%}",
            "mean over these images and the attenuated blocks",
        ),
        Headline("Cosine to plain", f"{found['cosine_to_plain']:.4f}", "of the images with artifacts"),
    ]
    if result.scores is not None:
        tiles += [
            Headline(metric.upper(), f"{found[f'{metric}_plain']:.3f} → {found[metric]:.3f}", "plain → recommended")
            for metric in ("nmi", "acc")
        ]
    return tiles


def _notes(result: Result) -> list[str]:
    notes = [f"{result.reason[0].upper()}{result.reason[1:]}."]
    notes.append(
        "One half of the images chose the options, by norms and attention alone; the histograms and the table of where "
        "patches stand apart are of that half, all other figures of the other half."
    )
    if result.chosen is not None:
        best = result.chosen.first
        notes.append(
            "Bimodality of these norms (Ashman's D of their logarithms, split in the valley): "
            f"{best.valley.bimodality:.1f}."
        )
    if result.scores is not None:
        notes.append(
            "Scores are means over seeds of k-means, with k the number of folders; intervals are over resampled images."
        )
    return notes


def _settings(result: Result) -> Table:
    header = ["setting", "options", "flagged", "images", "attention before", "after", "cosine", "agreement"]
    if result.scores is not None:
        header[2:2] = [metric.upper() for metric in METRICS]
    return Table(
        title="Settings",
        header=header,
        rows=[_row(result, number) for number in range(len(result.trials))],
        note="Agreement: patches that this setting and the first one both flag, as a share of those that either flags. "
        "Attention: of the CLS token on the flagged patches, mean over attenuated blocks and the images that have any."
        + (" NMI: in brackets what it has more than plain, and the ends of the interval." if result.scores else ""),
        best=[(0, 0)] if result.itae is not None else [],
    )


def _row(result: Result, number: int) -> list[str]:
    trial = result.trials[number]
    row = [trial.setting.name, _short(trial.setting.itae)]
    if result.scores is not None:
        score = result.scores[number]
        row += [f"{score.mean[metric]:.3f}" for metric in METRICS]
        if trial.setting.itae is not None:
            by, low, high = score.difference["nmi"]
            row[2] += f" ({by:+.3f}, {low:+.3f} to {high:+.3f})"
    if trial.setting.itae is None:
        return [*row, "", "", "", "", "", ""]
    agreement = trial.agreement if result.itae is not None else None
    return [
        *row,
        f"{trial.share:.2%}",
        f"{trial.with_artifacts / max(trial.images, 1):.0%}",
        f"{trial.attention('before'):.1%}",
        f"{trial.attention('after'):.1%}",
        f"{trial.cosine:.4f}",
        "" if agreement is None else f"{agreement:.2f}",
    ]


def _short(itae: ItaeConfig | None) -> str:
    if itae is None:
        return "no ITAE"
    where = "" if itae.detect_layer is None else f" of block {itae.detect_layer}"
    what = itae.threshold if itae.source is None else f"{itae.source}{where}, {itae.threshold} {itae.side}"
    return f"layers {itae.layers}: {what}, {itae.attenuate}"


def _sources(result: Result) -> Table:
    return Table(
        title="Where patches stand apart",
        header=[
            "norms",
            "block",
            "side",
            "valley",
            "gap",
            "bimodality",
            "flagged",
            "images",
            "times the fair attention",
        ],
        rows=[
            [
                one.source,
                str(one.layer),
                one.side,
                f"{one.valley.near:.2f} to {one.valley.far:.2f}",
                f"{one.valley.gap:.1f}",
                f"{one.valley.bimodality:.1f}",
                f"{one.share:.2%}",
                f"{one.image_share:.0%}",
                ", ".join(f"{pull:.0f}" for pull in one.pull),
            ]
            for one in result.found
        ],
        note="Norms are given as times the median of their image. The last column has a number for each block from "
        "this one to the last.",
    )


def _artifacts(result: Result, subject: Subject, intake: Intake) -> Artifacts | None:
    if not result.shown:
        return None
    trial = result.trials[0]
    share = (result.places / max(result.reported, 1)).tolist()
    return Artifacts(
        model=subject.name,
        detection=_short(trial.setting.itae) + (" (not recommended, for comparison)" if result.itae is None else ""),
        grid=subject.grid,
        preprocessing=intake.how,
        images=[FlaggedImage(key, flag.astype(float).tolist()) for key, flag in result.shown],
        norms=_histograms(result),
        seed=intake.seed,
        drawn="of those that did not choose, some as they come and those with most flagged patches",
        places=Places(
            share,
            f"Share of {result.reported:,} images in which a place is flagged: at most {max(share, default=0):.1%}.",
        )
        if any(share)
        else None,
    )


def _histograms(result: Result) -> list[Norms]:
    """The blocks and sources where patches stand apart; without any, the residual norms of some blocks."""
    depth = result.tally.counts.shape[0]
    if result.chosen is None:
        blocks = sorted({1, depth // 2, depth - 2, depth - 1} & set(range(depth)))
        return [_histogram(result, layer, "residual", None, "high") for layer in blocks]
    best = result.chosen.first
    wanted: list[tuple[int, Source]] = [(best.layer, best.source)]
    wanted += [(depth - 1, source) for source in SOURCES] + [(one.layer, one.source) for one in result.found]
    drawn = []
    for layer, source in list(dict.fromkeys(wanted))[:_MOST_HISTOGRAMS]:
        same = [one for one in result.found if (one.layer, one.source) == (layer, source)]
        one = max(same, key=lambda one: one.valley.width, default=None)
        if one is None:
            drawn.append(_histogram(result, layer, source, None, "high"))
        else:
            valley = sorted(round((np.log2(at) + OCTAVES) * PER_OCTAVE) for at in (one.valley.near, one.valley.far))
            drawn.append(_histogram(result, layer, source, (LEVELS[one.level], valley), one.side))
    return drawn


def _histogram(result: Result, layer: int, source: Source, cut: tuple[float, list[int]] | None, side: str) -> Norms:
    """Counts by ratio to the median; empty ends are left out."""
    counts = result.tally.counts[layer, SOURCES.index(source)]
    flagged = counts * beyond(cut[0], side) if cut is not None else np.zeros_like(counts)
    present = np.flatnonzero(counts)
    merged = next(one for one in (1, 2, 4, 8) if one == 8 or present[-1] - present[0] < one * _BARS)
    start = max(0, (int(present[0]) // merged - 1) * merged)
    stop = min(BINS, (int(present[-1]) // merged + 2) * merged)
    normal, beyond_it = (
        one[start:stop].reshape(-1, merged).sum(axis=1).tolist() for one in (counts - flagged, flagged)
    )
    valley = None if cut is None else ((cut[1][0] - start) // merged, (cut[1][1] - start) // merged)
    return Norms(
        layer,
        edges()[start : stop + 1 : merged].tolist(),
        normal,
        beyond_it,
        source=f"{source} norms, times the median",
        valley=valley,
    )
