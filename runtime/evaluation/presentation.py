"""An evaluation as a table for people, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from runtime.contract.keys import location
from runtime.contract.schema import Manifest
from runtime.evaluation.cache import EmbeddedDataset
from runtime.evaluation.differences import CONFIDENCE
from runtime.evaluation.paper import Figures, figures_for
from runtime.evaluation.protocol import METRICS, NORMALISATIONS, Comparison, Evaluation
from runtime.evaluation.resampling import RESAMPLES
from runtime.sources.names import printable

SUMMARY_FORMAT = 2
_TITLES = {"raw": "embeddings as they are", "l2": "divided by their L2 norm"}
_PAPER = "paper, with ITAE"


@dataclass(frozen=True, eq=False)
class DatasetResult:
    """Everything of one data set: every model, each way of normalising."""

    chosen: int
    """Images that were to be evaluated: all, or --limit."""
    embedded: tuple[EmbeddedDataset, ...]
    """By model, as evaluated: with the images alone that all models could embed."""
    evaluations: tuple[Evaluation, ...]
    """By normalisation, then by model; the first model is the baseline."""
    comparisons: tuple[Comparison, ...]
    """The comparison of each other model with the baseline, by normalisation."""

    @property
    def images(self) -> int:
        """How many were evaluated."""
        return len(self.embedded[0].rows)

    @property
    def paper(self) -> Figures | None:
        """The paper's figures, where they may stand beside these."""
        return figures_for(self.embedded[0].dataset.kind, [one.manifest for one in self.embedded])


def as_text(results: Sequence[DatasetResult]) -> str:
    """The tables for people."""
    pieces = ["\n".join(_table(result)) for result in results]
    if any(result.comparisons for result in results):
        pieces.append(WHAT_P_MEANS)
    return "\n\n".join(pieces) + "\n"


WHAT_P_MEANS = f"""\
±: standard deviation over the seeds. Differences: mean over the seeds, with two {CONFIDENCE:.0%} confidence intervals.
Over images: a bootstrap, {RESAMPLES:,} resamples of the images, the same for both models, clusters as they are. A small
p says that other images of this kind would show the difference again.
Over seeds: k-means' chance on these images; Student's interval, p by paired t-test / Wilcoxon's signed-rank test. A
small p says that other seeds would show the difference again, and nothing about other images.
No p is corrected for the number of tests; -: all differences are the same."""


def _table(result: DatasetResult) -> list[str]:
    first = result.evaluations[0]
    dataset = first.embedded.dataset
    seeds = [one.seed for one in first.scores]
    span = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    of_all = "" if result.images == len(dataset) else f" of {len(dataset):,}"
    lines = [
        f"{dataset.name}: {result.images:,}{of_all} images in {first.k} classes; "
        f"k-means with k = {first.k}, {_starts(first.starts)}, {span}"
    ]
    lines += [f"  {one.name}: {describe(one.manifest)}" for one in result.embedded]
    found = rows(result)
    widths = [max(len(row[column]) for row in found) for column in range(4)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]
    return lines + [f"note: {note}" for note in notes(result)]


def _starts(count: int) -> str:
    return "a single start" if count == 1 else f"best of {count} starts"


def rows(result: DatasetResult) -> list[tuple[str, str, str, str]]:
    """A data set's table: for each way of normalising a row of titles, then the models, each with its differences."""
    found: list[tuple[str, ...]] = []
    for normalisation in NORMALISATIONS:
        found.append((_TITLES[normalisation], *(metric.upper() for metric in METRICS)))
        for one in (one for one in result.evaluations if one.normalisation == normalisation):
            found.append((f"  {one.embedded.name}", *(_mean(one, metric) for metric in METRICS)))
            found += [row for beside in result.comparisons if beside.model is one for row in _difference(beside)]
    if (paper := result.paper) is not None:
        found.append((f"{_PAPER} (normalised or not: not known)", *(f"{getattr(paper, name):.4f}" for name in METRICS)))
    return [(name, *cells) for name, *cells in found]  # type: ignore[misc]  # three metrics


def _mean(one: Evaluation, metric: str) -> str:
    deviation = one.deviation(metric)
    return f"{one.mean(metric):.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _difference(found: Comparison) -> list[tuple[str, ...]]:
    seeds = [found.over_seeds[metric] for metric in METRICS]
    images = [found.over_images[metric] for metric in METRICS]
    rows: list[tuple[str, ...]] = [
        (f"    less {found.baseline.embedded.name}", *(f"{one.mean:+.4f}" for one in seeds)),
        ("      over images", *(_interval(one.low, one.high) for one in images)),
        ("      p over images", *(_p(one.p) for one in images)),
    ]
    if seeds[0].low is not None:  # several seeds
        rows += [
            ("      over seeds", *(_interval(one.low, one.high) for one in seeds)),
            ("      p over seeds", *(f"{_p(one.t_p)} / {_p(one.wilcoxon_p)}" for one in seeds)),
        ]
    return rows


def _interval(low: float | None, high: float | None) -> str:
    return f"{low:+.4f} to {high:+.4f}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def notes(result: DatasetResult) -> list[str]:
    """Remarks that a reader of the table needs."""
    manifests = [one.manifest for one in result.embedded]
    said = []
    if (paper := result.paper) is not None:
        said.append(f"{_PAPER}: {paper.backbone}, official weights, {paper.split}; as published")
        if any(one.has_random_weights for one in manifests):
            said.append("models here have random weights: the paper's figures are no measure for them")
        if result.images < len(result.embedded[0].dataset):
            said.append("the paper's figures are of all images, these are not")
    if any(one.has_random_weights for one in manifests):
        which = ", ".join(one.name for one in result.embedded if one.manifest.has_random_weights)
        said.append(f"random weights ({which}): scores of a try, which say nothing of DINOv2 or ITAE")
    dataset, k = result.embedded[0].dataset, result.evaluations[0].k
    if dataset.problems:
        first_of = dataset.problems[0]
        said.append(
            f"{len(dataset.problems):,} parts of the data can't be read and are not among these images; the first: "
            f"{printable(location(first_of.root, first_of.path))}: {first_of.error}"
        )
    if lost := len(set(dataset.labels.tolist())) - k:
        said.append(f"{lost} of the classes have no image left: k = {k} is the number of the others")
    if left := result.chosen - result.images:
        first = next((one.first_error for one in result.embedded if one.first_error), None)
        said.append(f"{left:,} images left out, that not every model could embed" + (f"; {first}" if first else ""))
    return said


def describe(manifest: Manifest) -> str:
    """A model in a few words."""
    options = manifest.options
    method = options.method
    what = "plain"
    if method.name == "itae":
        layers = ",".join(map(str, method.layers))
        what = f"ITAE {method.attenuate} in layers {layers}, {method.detection}"
    source = printable(manifest.model.weights.source)
    weights = "random weights" if manifest.has_random_weights else f"weights {source}"
    height, width = options.image_size
    return f"{options.size}, {what}, {options.precision}, {height}x{width}, {weights}"


def as_json(results: Sequence[DatasetResult]) -> dict[str, Any]:
    """The same as data; `results` has one entry at least."""
    first = results[0]
    return {
        "format": SUMMARY_FORMAT,
        "seeds": [one.seed for one in first.evaluations[0].scores],
        "starts": first.evaluations[0].starts,
        "confidence": CONFIDENCE,
        "models": [_model(one) for one in first.embedded],
        "datasets": [_dataset(result) for result in results],
        "versions": {name: metadata.version(name) for name in ("itae", "numpy", "scikit-learn", "scipy")},
    }


def _model(one: EmbeddedDataset) -> dict[str, Any]:
    options = one.manifest.options.model_dump(mode="json")
    return {
        "name": one.name,
        "sha256": one.manifest.files.model.sha256,
        "description": describe(one.manifest),
        "random_weights": one.manifest.has_random_weights,
        "weights_sha256": one.manifest.model.weights.sha256,
        "options": options,
    }


def _dataset(result: DatasetResult) -> dict[str, Any]:
    dataset, paper = result.embedded[0].dataset, result.paper
    left_out = dict.fromkeys(location(*key) for one in result.embedded for key in one.left_out)
    return {
        "kind": dataset.kind,
        "name": dataset.name,
        "path": printable(str(dataset.path)),
        "sha256": dataset.identity,
        "images": len(dataset),
        "chosen": result.chosen,
        "evaluated": result.images,
        "left_out": list(left_out),
        "skipped": dict(dataset.skipped),
        "unlisted": [f"{location(one.root, one.path)}: {one.error}" for one in dataset.problems],
        "classes": list(result.evaluations[0].classes),
        "paper": None
        if paper is None
        else {
            **{metric: getattr(paper, metric) for metric in METRICS},
            "backbone": paper.backbone,
            "weights": "official",
            "comparable": result.images == len(dataset)
            and not any(one.manifest.has_random_weights for one in result.embedded),
        },
        "evaluations": [_evaluation(one) for one in result.evaluations],
        "comparisons": [
            {
                "model": one.model.embedded.name,
                "baseline": one.baseline.embedded.name,
                "normalisation": one.model.normalisation,
                **{metric: _compared(one, metric) for metric in METRICS},
            }
            for one in result.comparisons
        ],
    }


def _compared(one: Comparison, metric: str) -> dict[str, Any]:
    seeds = dict(vars(one.over_seeds[metric]))
    return {"mean": seeds.pop("mean"), "over_images": vars(one.over_images[metric]), "over_seeds": seeds}


def _evaluation(one: Evaluation) -> dict[str, Any]:
    return {
        "model": one.embedded.name,
        "normalisation": one.normalisation,
        "k": one.k,
        **{
            metric: {"mean": one.mean(metric), "std": one.deviation(metric), "by_seed": one.values(metric).tolist()}
            for metric in METRICS
        },
        "inertia": [found.inertia for found in one.scores],
        "iterations": [found.iterations for found in one.scores],
        "median_seed": one.scores[one.median].seed,
        "confusion": one.confusion.tolist(),
        "embedded_now": one.embedded.computed,
        "notes": dict(one.embedded.notes),
        "embed_seconds": round(one.embedded.seconds, 3),
        "kmeans_seconds": round(one.seconds, 3),
    }
