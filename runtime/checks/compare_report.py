"""The figures of `compare_ways` as a table, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.checks.compare import Comparison, Measured, Runs
from runtime.contract.errors import BackendError, OutputFileError

BATCH_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Colours by Okabe and Ito, which colour-blind people can distinguish."""
MARKERS = ("o", "s", "D", "^", "v")


def as_text(result: Comparison, chosen: tuple[Measured, Runs] | None = None) -> str:
    """The table for people; the row that `choose` returned has an arrow."""
    options = result.manifest.options
    what = f"{options.size}, {options.precision}, {options.image_size[0]}x{options.image_size[1]}"
    lines = [
        f"{result.manifest.files.model.name}: {what}; {result.cores} cores, in turns",
        "",
        "  provider  compute  streams  batch  ms, median (quartiles)    images/s  to first   peak MB  load s"
        "     max abs      cosine",
    ]
    for one in result.measured:
        start = f"{one.way.provider:<9} {one.way.compute:<7} {one.way.streams:8}"
        if one.problem is not None:
            lines.append(f"  {start}  no: {one.problem}")
        for runs in one.runs:
            mark = "> " if chosen == (one, runs) else "  "
            lines.append(mark + start + _figures(result, one, runs))
        lines += [f"  {'':28}{problem}" for problem in _problems(one)]
    lines += [
        "",
        "  ms: a batch in each stream, until the last has ended; to first: time an image / the first row's",
        "  peak MB: of all processes of the way, with Python and libraries; max abs, cosine: beside the golden sample",
    ]
    return "\n".join(lines)


def _figures(result: Comparison, one: Measured, runs: Runs) -> str:
    low, middle, high = (value * 1e3 for value in _quartiles(runs.seconds))
    times = f"{middle:.1f} ({low:.1f}-{high:.1f})"
    row = f"{runs.batch:7}  {times:<24}{one.images_per_second(runs):10.1f}{_ratio(result, one, runs):10.3f}"
    row += f"{(one.peak_rss or 0) / 1e6:10.0f}{one.load_seconds or 0:8.2f}"
    if one.distance is not None:
        row += f"{one.distance.max_abs:12.2g}{one.distance.min_cosine:12.7f}"
    return row


def _problems(one: Measured) -> list[str]:
    found = [f"not compared: {one.not_compared}"] if one.not_compared else []
    if one.distance is not None and one.distance.failure is not None:
        found.append(f"OFF: {one.distance.failure}")
    return found


def _ratio(result: Comparison, one: Measured, runs: Runs) -> float:
    """Time of an image, as a share of the first measured way's in the same round: the median over the rounds."""
    first = next(other for other in result.measured if other.runs)
    base = next(other for other in first.runs if other.batch == runs.batch)
    count = min(len(base.seconds), len(runs.seconds))
    shares = np.array(runs.seconds[:count]) / np.array(base.seconds[:count])
    return float(np.median(shares)) * first.way.streams / one.way.streams


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def as_json(result: Comparison) -> dict[str, Any]:
    """The same as data, times in the units of their names."""
    options = result.manifest.options
    return {
        "model": result.manifest.files.model.name,
        "model_sha256": result.manifest.files.model.sha256,
        "size": options.size,
        "precision": options.precision,
        "image_size": list(options.image_size),
        "cores": result.cores,
        "seed": result.seed,
        "ways": [_way_as_json(result, one) for one in result.measured],
    }


def _way_as_json(result: Comparison, one: Measured) -> dict[str, Any]:
    distance = one.distance
    return {
        "provider": one.way.provider,
        "compute": one.way.compute,
        "streams": one.way.streams,
        "backend": one.backend,
        "problem": one.problem,
        "load_s": None if one.load_seconds is None else round(one.load_seconds, 4),
        "peak_rss_bytes": one.peak_rss,
        "not_compared": one.not_compared,
        "max_abs": None if distance is None else distance.max_abs,
        "min_cosine": None if distance is None else distance.min_cosine,
        "keeps_its_limits": None if distance is None else distance.failure is None,
        "batches": [
            {
                "batch": runs.batch,
                "ms": [round(value * 1e3, 4) for value in runs.seconds],
                "median_ms": round(runs.median * 1e3, 4),
                "images_per_s": round(one.images_per_second(runs), 3),
                "time_to_first": round(_ratio(result, one, runs), 4),
            }
            for runs in one.runs
        ],
    }


def require_matplotlib() -> None:
    """Refuse before the work what could not be drawn after it.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError(f"--plot needs matplotlib: pip install 'itae[bench]' ({error})") from error


def plot(result: Comparison, path: Path) -> None:
    """Draw images a second of each way that ran, a mark for each batch size, as a PNG.

    Raises:
        OutputFileError: the file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    ran = [one for one in result.measured if one.runs]
    ran.sort(key=lambda one: max(map(one.images_per_second, one.runs)), reverse=True)
    figure, panel = pyplot.subplots(layout="constrained", figsize=(8.2, 1.9 + 0.62 * len(ran)))
    batches = [runs.batch for runs in ran[0].runs]
    for index, batch in enumerate(batches):
        rows, low, middle, high = [], [], [], []
        for row, one in enumerate(ran):
            runs = one.runs[index]
            slow, usual, quick = (one.way.streams * batch / value for value in _quartiles(runs.seconds)[::-1])
            rows.append(row + (index - (len(batches) - 1) / 2) * 0.3)
            low.append(usual - slow)
            middle.append(usual)
            high.append(quick - usual)
        panel.errorbar(
            middle, rows, xerr=[low, high], fmt=MARKERS[index % 5], color=BATCH_COLOURS[index % 5], markersize=6,
            capsize=3, elinewidth=1.4, label=f"batch {batch}",
        )  # fmt: skip
    for row, one in enumerate(ran):
        cosine = "" if one.distance is None else f"cosine {one.distance.min_cosine:.6f}\n"
        panel.text(
            1.02, row, f"{cosine}{(one.peak_rss or 0) / 1e6:.0f} MB", fontsize=8, va="center",
            transform=panel.get_yaxis_transform(),
        )  # fmt: skip
        if row % 2 == 0:
            panel.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    panel.set_yticks(range(len(ran)), [_label(one) for one in ran])
    panel.set_ylim(len(ran) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_xlabel("images a second: median and quartiles (right is faster)", fontsize=9)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=len(batches), frameon=False, fontsize=9)
    figure.suptitle(f"{result.manifest.files.model.name} on {result.cores} cores", fontsize=11)
    try:
        figure.savefig(path, dpi=160, format="png")
    except OSError as error:
        raise OutputFileError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)


def _label(one: Measured) -> str:
    streams = f", {one.way.streams} streams" if one.way.streams > 1 else ""
    return f"{one.way.provider}, {one.way.compute}{streams}"
