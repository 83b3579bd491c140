"""The figures of a calibration as data, for the JSON file and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.calibration.rule import Detection, beyond
from exporter.calibration.subject import Subject
from exporter.calibration.tally import LEVELS, SIDES, edges
from exporter.calibration.trials import Trial
from exporter.calibration.valley import find_valleys
from exporter.calibration.work import Result, as_options
from exporter.intake import Intake
from exporter.methods.itae.options import SOURCES

_DIGITS = 6
"""Significant digits of a figure."""
QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)


def content(result: Result, subject: Subject, intake: Intake) -> Mapping[str, Any]:
    """Everything that the file has, but for its format and hash."""
    return {
        "itae": as_options(result.itae),
        "reason": result.reason,
        "model": {
            "size": subject.name,
            "weights": subject.weights,
            "sha256": subject.sha256,
            "image_size": list(subject.image_size),
            "fit": subject.fit,
            "pos_embed": subject.pos_embed,
        },
        "images": {
            "choosing": result.tally.seen,
            "reporting": result.reported,
            "failed": len(intake.failed),
            "skipped": intake.sources.skipped,
        },
        "figures": _rounded(figures(result)),
        "detections": [_rounded(_detection(one)) for one in result.found],
        "norms": [_rounded(one) for one in norms(result)],
        "settings": [_rounded(setting(result, number)) for number in range(len(result.trials))],
    }


def figures(result: Result) -> dict[str, float]:
    """The figures of the recommended setting, on the half that reports; few where nothing was found."""
    if result.itae is None:
        return {"flagged": 0.0}
    trial, found = result.trials[0], {}
    if result.chosen is not None:
        valley = result.chosen.first.valley
        found = {"gap": valley.gap, "valley": valley.width, "bimodality": valley.bimodality}
    found |= {
        "flagged": trial.share,
        "images_with_artifacts": trial.with_artifacts / max(trial.images, 1),
        "attention_before": trial.attention("before"),
        "attention_after": trial.attention("after"),
        "cosine_to_plain": trial.cosine,
    }
    if result.scores is not None:
        for metric, value in result.scores[0].mean.items():
            found |= {metric: value, f"{metric}_plain": result.scores[-1].mean[metric]}
    return found


def _detection(one: Detection) -> dict[str, Any]:
    return {
        "layer": one.layer,
        "source": one.source,
        "side": one.side,
        "threshold": one.threshold,
        "valley": [one.valley.near, one.valley.far],
        "gap": one.valley.gap,
        "overlap": one.valley.overlap,
        "bimodality": one.valley.bimodality,
        "flagged": one.share,
        "images": one.image_share,
        "attention": list(one.caught),
        "pull": list(one.pull),
    }


def norms(result: Result) -> list[dict[str, Any]]:
    """The distribution of each source's norms in each block, on the half that chose."""
    tally, found = result.tally, []
    middles = np.sqrt(edges()[:-1] * edges()[1:])
    for layer in range(tally.counts.shape[0]):
        for place, source in enumerate(SOURCES):
            counts = tally.counts[layer, place]
            total = counts.sum()
            until = np.cumsum(counts)
            quantiles = [float(middles[np.searchsorted(until, share * total)]) for share in QUANTILES]
            valleys = [one for side in SIDES for one in find_valleys(counts, side)]
            widest = max(valleys, key=lambda one: one.width, default=None)
            found.append(
                {
                    "layer": layer,
                    "source": source,
                    "median": float(tally.medians[layer, place] / tally.seen),
                    "quantiles_by_median": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
                    "beyond": {
                        side: {f"ratio:{level:g}": float(counts[beyond(level, side)].sum() / total) for level in LEVELS}
                        for side in SIDES
                    },
                    "widest_valley": None
                    if widest is None
                    else {
                        "side": widest.side,
                        "from": widest.near,
                        "to": widest.far,
                        "gap": widest.gap,
                        "bimodality": widest.bimodality,
                        "overlap": widest.overlap,
                        "share_beyond": widest.share,
                    },
                }
            )
    return found


def setting(result: Result, number: int) -> dict[str, Any]:
    """The figures of one setting on the half that reports."""
    trial: Trial = result.trials[number]
    found: dict[str, Any] = {"name": trial.setting.name, "itae": as_options(trial.setting.itae)}
    if trial.setting.itae is not None:
        found |= {
            "flagged": trial.share,
            "images_with_artifacts": trial.with_artifacts / max(trial.images, 1),
            "attention_before": trial.attention("before"),
            "attention_after": trial.attention("after"),
            "cosine_to_plain": trial.cosine,
            "agreement": trial.agreement if result.itae is not None else None,
        }
    if result.scores is not None:
        scores = result.scores[number]
        found |= scores.mean
        found["less_plain"] = {metric: list(value) for metric, value in scores.difference.items()}
    return found


def _rounded(value: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
