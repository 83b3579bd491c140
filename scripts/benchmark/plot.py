"""The races as a picture: a panel for each size, a row for each contestant, a mark for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.contract.errors import BackendError, OutputFileError
from scripts.benchmark.measure import Race
from scripts.benchmark.report import LABELS, OURS

BATCH_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Colours by Okabe and Ito, which colour-blind people can distinguish."""
MARKERS = ("o", "s", "D", "^", "v")


def require_matplotlib() -> None:
    """Refuse before the work what could not be drawn after it.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError(f"--plot needs matplotlib: pip install 'itae[bench]' ({error})") from error


def plot(races: Sequence[Race], subtitle: str, path: Path) -> None:
    """Draw the races of one device to a PNG.

    Raises:
        OutputFileError: the file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(race.size for race in races))
    names = _by_speed(races)
    figure, axes = pyplot.subplots(
        1, len(sizes), sharey=True, sharex=True, squeeze=False, layout="constrained",
        figsize=(3.2 + 4.4 * len(sizes), 1.7 + 0.52 * len(names)),
    )  # fmt: skip
    batches = sorted({race.batch for race in races})
    for panel, size in zip(axes[0], sizes, strict=True):
        _panel(panel, [race for race in races if race.size == size], names, batches)
    first = axes[0][0]
    first.set_yticks(range(len(names)), [LABELS[name] for name in names])
    for label, name in zip(first.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in OURS else "normal")
    first.set_ylim(len(names) - 0.5, -0.5)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(batches), frameon=False, fontsize=9)
    title = f"DINOv2 with ITAE (bold) beside what a user would have: left is faster\n{subtitle}"
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path, dpi=160, format="png")
    except OSError as error:
        raise OutputFileError(f"can't write {path}: {error}") from error
    finally:
        pyplot.close(figure)


def _by_speed(races: Sequence[Race]) -> list[str]:
    """All contestants, the fastest first."""
    ratios: dict[str, list[float]] = {}
    for race in races:
        for timing in race.timings:
            ratios.setdefault(timing.name, []).append(timing.ratio[1])
    return sorted(ratios, key=lambda name: sum(ratios[name]) / len(ratios[name]))


def _panel(panel: Any, races: Sequence[Race], names: Sequence[str], batches: Sequence[int]) -> None:  # noqa: ANN401
    """One size: median and quartiles of the ratios, with the time in words."""
    for race in races:
        index = batches.index(race.batch)
        offset = (index - (len(batches) - 1) / 2) * 0.36
        colour, marker = BATCH_COLOURS[index % 5], MARKERS[index % 5]
        rows = [names.index(timing.name) + offset for timing in race.timings]
        low, middle, high = zip(*(timing.ratio for timing in race.timings), strict=True)
        spread = [[m - a for a, m in zip(low, middle, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        panel.errorbar(
            middle, rows, xerr=spread, fmt=marker, color=colour, markersize=5.5, capsize=3, elinewidth=1.4,
            label=f"batch {race.batch}: median, quartiles; ms a batch",
        )  # fmt: skip
        for row, timing in zip(rows, race.timings, strict=True):  # in a column, right of the panel
            panel.text(
                1.02, row, f"{timing.ratio[1]:.2f}  {_ms(timing.ms[1])}", color=colour, fontsize=8, va="center",
                transform=panel.get_yaxis_transform(),
            )  # fmt: skip
    panel.axvline(1, color="0.35", linewidth=1, linestyle="--", zorder=1.5)
    panel.set_title(races[0].size, fontsize=11)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    for row in range(0, len(names), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    panel.margins(x=0.05)
    panel.set_xlabel(f"time relative to {LABELS[races[0].reference]}", fontsize=9)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _ms(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
