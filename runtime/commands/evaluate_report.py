"""`evaluate --report`: the A/B tables, and one model's clusters of one data set to look at."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.commands import options

if TYPE_CHECKING:
    from runtime.contract.keys import Key
    from runtime.evaluation.presentation import DatasetResult
    from runtime.evaluation.protocol import Evaluation
    from runtime.report import Artifacts, Headline, Table

MASKS = ("artifact_mask", "artifact_norm")


def write(arguments: argparse.Namespace, results: Sequence[DatasetResult], command: str) -> str:
    """Write the report to `arguments.report`, and give a line about it.

    The model with the highest mean ACC on the first data set is the one whose clusters are shown, at its median seed.

    Raises:
        ItaeError: a model can't be run, or the file can't be written.
    """
    from runtime import report
    from runtime.clustering.clusters import nearest_other
    from runtime.commands.report_clusters import count_confusion, describe_clusters
    from runtime.evaluation.protocol import METRICS, points_of
    from runtime.sources.at_hand import at_hand

    shown = max(results[0].evaluations, key=lambda one: one.mean("acc"))
    points, labels = points_of(shown.embedded, shown.normalisation), shown.clustering.labels
    keys = shown.embedded.keys
    classes = [shown.classes[label] for label in shown.truth]

    def key_of(row: int) -> Key:
        return keys[row]

    random = [one.name for one in results[0].embedded if one.manifest.has_random_weights]
    notes = [arguments.note] if arguments.note else []
    if random:
        notes.append(f"The weights of {', '.join(random)} are random: nothing here says anything of DINOv2 or ITAE.")
    baseline = next(
        one
        for one in results[0].evaluations
        if one.embedded is results[0].embedded[0] and one.normalisation == shown.normalisation
    )
    made = report.Report(
        title=f"Evaluation on {', '.join(result.embedded[0].dataset.name for result in results)}",
        lead=f"Summary, clusters, map and classes are of the highest mean ACC: {_what(shown)}; clusters by seed "
        f"{shown.scores[shown.median].seed}, of median ACC.",
        headlines=[_headline(shown, baseline, metric) for metric in METRICS],
        facts=_facts(arguments, results, command),
        notes=notes,
        tables=[_table(result) for result in results],
        clusters=describe_clusters(
            shown.clustering, nearest_other([points], shown.clustering), key_of, classes=classes
        ),
        map=report.draw_map(points.__getitem__, labels, key_of, classes=classes, seed=arguments.seed),
        confusion=count_confusion(labels, classes),
        artifacts=_artifacts(arguments, results[0], keys),
    )
    written = report.write_report(
        arguments.report,
        made,
        functools.partial(at_hand, read=shown.embedded.dataset.read_image, sixteen_bit=arguments.sixteen_bit),
    )
    line = f"report {arguments.report}: {written.bytes / 1000:,.0f} kB, {written.images:,} images"
    return line + (f", {len(written.unreadable):,} of them can't be read any more" if written.unreadable else "")


def _what(one: Evaluation) -> str:
    how = "embeddings as they are" if one.normalisation == "raw" else "embeddings divided by their L2 norm"
    return f"{one.embedded.name} on {one.embedded.dataset.name}, {how}"


def _headline(one: Evaluation, baseline: Evaluation, metric: str) -> Headline:
    """The score of the model that is shown, and the baseline's, if that is another."""
    from runtime.report import Headline

    deviation = one.deviation(metric)
    spread = "" if deviation is None else f"± {deviation:.4f} over {len(one.scores)} seeds"
    before = "" if one is baseline else f"{baseline.embedded.name}: {baseline.mean(metric):.4f}"
    return Headline(metric.upper(), f"{one.mean(metric):.4f}", "; ".join(filter(None, (spread, before))))


def _table(result: DatasetResult) -> Table:
    """A data set's models beside each other, and beside the paper's figures where these apply."""
    from runtime.evaluation.presentation import WHAT_P_MEANS, notes, rows
    from runtime.report import Table

    header, *body = rows(result)
    said = [f"{note[0].upper()}{note[1:]}." for note in notes(result)]
    if result.comparisons:
        said.append(" ".join(WHAT_P_MEANS.split()))
    shown = [(name.replace("  ", "\u2003"), *cells) for name, *cells in body]  # HTML drops spaces
    return Table(
        title=f"{result.embedded[0].dataset.name}: {result.images:,} images",
        header=header,
        rows=shown,
        note=" ".join(said),
    )


def _artifacts(arguments: argparse.Namespace, result: DatasetResult, keys: Sequence[Key]) -> Artifacts | None:
    """The flags of the first model that outputs them; None if no model does."""
    from runtime import load
    from runtime.commands.report_artifacts import sample_artifacts

    for path, one in zip(arguments.model, result.embedded, strict=True):
        if all(name in one.manifest.output_names() for name in MASKS):
            provider, compute, _ = options.what_runs(arguments, path, one.manifest)
            with load(path, provider, compute=compute) as model:
                return sample_artifacts(
                    model,
                    len(keys),
                    keys.__getitem__,
                    seed=arguments.seed,
                    read=one.dataset.read_image,
                    sixteen_bit=arguments.sixteen_bit,
                )
    return None


def _facts(arguments: argparse.Namespace, results: Sequence[DatasetResult], command: str) -> list[tuple[str, str]]:
    from runtime.evaluation.presentation import describe

    first = results[0]
    facts = [
        ("command", command),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    for path, one in zip(arguments.model, first.embedded, strict=True):
        facts.append((Path(path).name, f"{describe(one.manifest)}; SHA-256 {one.manifest.files.model.sha256}"))
    for result in results:
        dataset = result.embedded[0].dataset
        facts.append((dataset.name, f"{dataset.path}: {result.images:,} of {len(dataset):,} images"))
    seeds = [score.seed for score in first.evaluations[0].scores]
    facts.append(("seeds", ", ".join(map(str, seeds))))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("itae", "numpy", "scikit-learn"))
    return [*facts, ("versions", versions)]
