"""The results of a study as a table, as data, and as a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.report import Headline, Report, Table, write_report
from runtime.sources.at_hand import at_hand
from scripts.studies.study import MODELS, QUANTILE, DatasetStudy, Study

FORMAT, VERSION = "itae-study", 1
METRICS = ("nmi", "acc", "ari")
NORMALISATIONS = {"raw": "embeddings as they are", "l2": "divided by their L2 norm"}
HEADER = ("model", *(metric.upper() for metric in METRICS), *(f"{metric.upper()} less plain" for metric in METRICS))
PAPER = "the paper's figures, with ITAE"
WHAT_IT_IS = (
    "Scores are means over k-means' seeds. Less plain: the difference to the plain model, with a 95 % bootstrap "
    "interval over the images. Each data set calibrates ITAE on pictures of its own, without labels."
)


def as_markdown(study: Study) -> str:
    """The tables for people, and what could not be done."""
    lines = [line for remark in study.remarks for line in (f"{remark}.", "")]
    for one in study.datasets:
        lines += [f"**{title(one)}**", "", _line(HEADER), "|" + "---|" * len(HEADER)]
        lines += [_line(row) for row in rows(one)]
        lines += ["", *(f"- {note}" for note in notes(one)), ""]
    if study.datasets:
        lines += [WHAT_IT_IS]
    if study.failures:
        lines += ["", "What could not be done:", "", *(f"- {one.what}: {one.reason}" for one in study.failures)]
    return "\n".join(lines).strip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def title(one: DatasetStudy) -> str:
    """A data set in words."""
    found = one.evaluation
    of_all = "" if found["evaluated"] == found["images"] else f" of {found['images']:,}"
    return f"{found['name']}: {found['evaluated']:,}{of_all} images in {len(found['classes'])} classes"


def rows(one: DatasetStudy) -> list[list[str]]:
    """The table of a data set: for each way of normalising a row of its name, then the models."""
    found = one.evaluation
    lines: list[list[str]] = []
    for normalisation, words in NORMALISATIONS.items():
        lines.append([words, *[""] * (len(HEADER) - 1)])
        scores = {Path(x["model"]).stem: x for x in found["evaluations"] if x["normalisation"] == normalisation}
        beside = {
            Path(x["model"]).stem: x
            for x in found["comparisons"]
            if x["normalisation"] == normalisation and Path(x["baseline"]).stem == "plain"
        }
        for name, model in MODELS.items():
            if name in scores:
                cells = [_score(scores[name][metric]) for metric in METRICS]
                lines.append([model, *cells, *(_difference(beside.get(name), metric) for metric in METRICS)])
            elif name == "calibrated" and one.calibration is not None and one.calibration["itae"] is None:
                lines.append([model, *["as plain"] * len(METRICS), *[""] * len(METRICS)])
    if (paper := found["paper"]) is not None:
        lines.append([PAPER, *(f"{paper[metric]:.4f}" for metric in METRICS), *[""] * len(METRICS)])
    return lines


def _score(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.4f}" + ("" if found["std"] is None else f" ± {found['std']:.4f}")


def _difference(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return ""
    images = found[metric]["over_images"]
    return f"{found[metric]['mean']:+.3f} ({images['low']:+.3f} to {images['high']:+.3f})"


def notes(one: DatasetStudy) -> list[str]:
    """Remarks on a data set's models."""
    said = []
    if one.calibration is not None:
        itae = one.calibration["itae"]
        options = "nothing" if itae is None else ", ".join(f"{name} {value}" for name, value in itae.items())
        said.append(f"calibrate recommends {options.replace('_', ' ')}: {one.calibration['reason']}")
    if one.theta is not None:
        said.append(
            f"the paper's form has θ = {one.theta:g}, the {float(QUANTILE):.0%} quantile of the key norms in the last "
            "block: the paper's own θ and its source (query, key or value) are not known"
        )
    if (paper := one.evaluation["paper"]) is not None and not paper["comparable"]:
        said.append("the paper's figures are of all images and official weights, these are not")
    return said


def as_json(study: Study, out: Path) -> dict[str, Any]:
    """The results as data."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": vars(study.settings),
        "remarks": study.remarks,
        "datasets": [
            {
                "folder": one.folder.relative_to(out).as_posix(),
                "calibration": None
                if one.calibration is None
                else {name: one.calibration[name] for name in ("itae", "reason", "figures", "sha256")},
                "theta": one.theta,
                **one.evaluation,
            }
            for one in study.datasets
        ],
        "failures": [vars(one) for one in study.failures],
        "versions": {name: metadata.version(name) for name in ("itae", "numpy", "scikit-learn", "torch")},
    }


def write_page(study: Study, out: Path, argv: Sequence[str]) -> None:
    """Write `study.html`.

    Raises:
        OutputFileError: it can't be written.
    """
    settings = study.settings
    facts = [
        ("command", shlex.join(["scripts/study", *argv])),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("model", f"{settings.size}, weights {settings.weights}"),
        ("with registers", f"{settings.size}_reg, weights {settings.registers_weights}"),
        ("seeds of k-means", f"{settings.seeds}"),
        *(
            (f"more on {one.evaluation['name']}", f"{one.folder.name}/report.html, {one.folder.name}/calibration.html")
            for one in study.datasets
        ),
    ]
    page = Report(
        title=f"Study: {settings.size} on {', '.join(one.evaluation['name'] for one in study.datasets)}",
        lead="Plain DINOv2, ITAE and registers side by side.",
        facts=facts,
        headlines=[tile for one in study.datasets for tile in _headlines(one)],
        notes=[
            *(f"{remark}." for remark in study.remarks),
            WHAT_IT_IS,
            *(f"Could not be done: {one.what}: {one.reason}." for one in study.failures),
        ],
        tables=[table for one in study.datasets for table in _tables(one)],
    )
    write_report(out / "study.html", page, at_hand)


def _tables(one: DatasetStudy) -> list[Table]:
    """The scores of a data set, and their differences to the plain model, which would be too wide for one table."""
    width = 1 + len(METRICS)
    scores = [row[:width] for row in rows(one)]
    differences = [[row[0], *row[width:]] for row in rows(one) if any(row[width:])]
    said = " ".join(f"{note[0].upper()}{note[1:]}." for note in notes(one))
    tables = [Table(title(one), HEADER[:width], scores, note=said)]
    if differences:
        how = f"The first {len(differences) // 2} are of embeddings as they are, the others of normalised ones."
        tables.append(Table("Less plain", (HEADER[0], *HEADER[1:width]), differences, note=how))
    return tables


def _headlines(one: DatasetStudy) -> list[Headline]:
    """NMI of plain and calibrated, where both are there."""
    scores = {Path(x["model"]).stem: x for x in one.evaluation["evaluations"] if x["normalisation"] == "raw"}
    if not {"plain", "calibrated"} <= scores.keys():
        return []
    plain, calibrated = (f"{scores[name]['nmi']['mean']:.3f}" for name in ("plain", "calibrated"))
    return [Headline(f"NMI on {one.evaluation['name']}", f"{plain} → {calibrated}", "plain → calibrated")]


def to_bytes(found: Mapping[str, Any]) -> bytes:
    """The bytes of study.json."""
    return (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()
