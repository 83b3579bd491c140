"""Measure on planted models the cost of artifacts, what is found, and what ITAE wins back: `scripts/plant --report`.

Exporter and runtime are run as commands, as a user runs them. Each measured row is kept as JSON, so that the same
command continues where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime

from exporter.models.architecture import Architecture
from runtime.contract.atomic import write_atomically
from runtime.contract.errors import CheckError
from scripts.planting import pictures
from scripts.planting.plan import Kind, Plan
from scripts.planting.plant import pixels
from scripts.planting.write import PICTURES, TRUTH, WEIGHTS, write

SETTINGS: dict[str, list[str]] = {
    "default": [],
    "key mad:5": ["--source", "key", "--threshold", "mad:5", "--side", "both"],
}
"""Options of ITAE by the name that the table gives them."""
STRENGTHS = (1.0, 0.3, 0.15, 0.1, 0.07, 0.05, 0.03)
"""Strengths of the curve; at 0.1 an artifact has 3 times the median norm."""
BATCH = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One planted model and one setting of ITAE on made pictures."""

    size: str
    image_size: int
    seed: int
    kind: str
    strength: float
    setting: str
    recall: float
    """Share of the planted patches that are flagged."""
    precision: float
    """Share of the flagged patches that are planted; 1 if none is flagged."""
    flagged_clean: float
    """Share of the unplanted model's patches that are flagged."""
    nmi: tuple[float, float, float, float]
    """The NMI of the unplanted model, the planted one, the planted one with ITAE, the unplanted one with ITAE."""
    acc: tuple[float, float, float, float]

    @property
    def won_back(self) -> float | None:
        """The share of the lost NMI that ITAE wins back; None if less than 0.05 was lost."""
        clean, planted, itae, _ = self.nmi
        return (itae - planted) / (clean - planted) if clean - planted >= 0.05 else None


def measure(arch: Architecture, image_size: int, seeds: Sequence[int], per_class: int, work: Path, say: Say) -> None:
    """Measure every case and write table.md and strength.png into `work`.

    Raises:
        CheckError: a command failed.
        OutputFileError: the folder can't be written.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    plans = [Plan(arch, seed, kind, image_size=image_size) for seed in seeds for kind in kinds]
    curve = [Plan(arch, seeds[0], kind, one, image_size=image_size) for one in STRENGTHS for kind in kinds]
    rows = [row for plan in plans for row in _rows(plan, SETTINGS, per_class, work, say)]
    swept = [row for plan in curve for row in _rows(plan, ["default"], per_class, work, say)]
    write_atomically(work / "table.md", as_markdown(rows, swept).encode())
    plot(swept, work / "strength.png")


def _rows(plan: Plan, settings: Iterable[str], per_class: int, work: Path, say: Say) -> list[Row]:
    """The rows of one plan, read where an earlier run kept them."""
    found = []
    for setting in settings:
        name = f"{plan.arch.name}-{plan.image_size}-{plan.seed}-{plan.kind}-{plan.strength:g}-{setting}-{per_class}"
        kept = work / "rows" / f"{name}.json"
        if kept.exists():
            fields = json.loads(kept.read_text())
            found.append(Row(**{**fields, "nmi": tuple(fields["nmi"]), "acc": tuple(fields["acc"])}))
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        row = _measure(plan, setting, per_class, work)
        say(f"{name}: NMI {' '.join(f'{one:.3f}' for one in row.nmi)}, recall {row.recall:.3f}")
        write_atomically(kept, json.dumps(dataclasses.asdict(row)).encode())
        found.append(row)
    return found


def _measure(plan: Plan, setting: str, per_class: int, work: Path) -> Row:
    clean = dataclasses.replace(plan, strength=0.0, kind="place")
    models = [
        _exported(plan, options, per_class, work)
        for plan, options in ((clean, None), (plan, None), (plan, setting), (clean, setting))
    ]
    data = _planted(plan, per_class, work) / PICTURES
    words = ["--data", f"folder:{data}", "--json", "--cache", str(work / "cache")]
    told = json.loads(_run(work, "runtime", "evaluate", *map(str, models), *words))
    scores = {one["model"]: one for one in told["datasets"][0]["evaluations"] if one["normalisation"] == "raw"}
    nmi, acc = ([scores[model.name][metric]["mean"] for model in models] for metric in ("nmi", "acc"))
    truth = np.load(_planted(plan, per_class, work) / TRUTH)["artifact"]
    flagged, flagged_clean = (_flagged(plan, model, per_class) for model in models[2:])
    hits = int((flagged & truth).sum())
    return Row(
        plan.arch.name,
        plan.image_size,
        plan.seed,
        plan.kind,
        plan.strength,
        setting,
        recall=hits / int(truth.sum()),
        precision=hits / int(flagged.sum()) if flagged.any() else 1.0,
        flagged_clean=float(flagged_clean.mean()),
        nmi=tuple(nmi),
        acc=tuple(acc),
    )


def _planted(plan: Plan, per_class: int, work: Path) -> Path:
    """The folder of a planted model, made unless it is there."""
    folder = work / f"{plan.arch.name}-{plan.image_size}-{plan.seed}-{plan.kind}-{plan.strength:g}-{per_class}"
    if not (folder / TRUTH).exists():  # written last
        write(plan, folder, per_class)
    return folder


def _exported(plan: Plan, setting: str | None, per_class: int, work: Path) -> Path:
    """The ONNX file of a planted model, plain or with a setting of ITAE, made unless it is there."""
    folder = _planted(plan, per_class, work)
    target = folder / f"{plan.kind}-{plan.strength:g}-{(setting or 'plain').replace(' ', '-')}.onnx"
    if not target.with_name(f"{target.name}.json").exists():
        options = ["--no-itae"] if setting is None else [*SETTINGS[setting], "--outputs", "embedding,artifact_mask"]
        words = ["--size", plan.arch.name, "--image-size", str(plan.image_size), "--out", str(target), "--quiet"]
        _run(work, "exporter", *words, "--weights", str(folder / WEIGHTS), *options)
    return target


def _flagged(plan: Plan, model: Path, per_class: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The patches that a model flags in the pictures of its plan, (n, P)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = pixels(plan, pictures.make(plan.seed, per_class, plan.image_size)).numpy()
    name = session.get_inputs()[0].name
    starts = range(0, len(images), BATCH)
    found = [session.run(["artifact_mask"], {name: images[start : start + BATCH]})[0] for start in starts]
    return np.concatenate(found)[:, 0]


def _run(work: Path, package: str, *words: str) -> str:
    """The stdout of a command.

    Raises:
        CheckError: it failed.
    """
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", package, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work, check=False)
    if done.returncode:
        raise CheckError(f"{package} {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def as_markdown(rows: Sequence[Row], swept: Sequence[Row]) -> str:
    """The two tables: a line per planted model and setting, and a line per strength."""
    lines = [
        "| model | kind | seed | setting | recall | precision | flagged, clean model "
        "| NMI clean | planted | with ITAE | won back | clean with ITAE | ACC clean | planted | with ITAE |",
        "|" + "---|" * 15,
    ]
    for row in rows:
        back = "" if row.won_back is None else f"{row.won_back:.0%}"
        nmi, acc = ([f"{one:.3f}" for one in three] for three in (row.nmi, row.acc))
        cells = [f"{row.size} {row.image_size}", row.kind, str(row.seed), row.setting]
        cells += [f"{row.recall:.3f}", f"{row.precision:.3f}", f"{row.flagged_clean:.2%}", *nmi[:3], back, nmi[3]]
        lines.append(f"| {' | '.join([*cells, *acc[:3]])} |")
    lines += ["", "| strength | kind | recall | precision | NMI clean | planted | with ITAE |", "|" + "---|" * 7]
    lines += [
        f"| {row.strength:g} | {row.kind} | {row.recall:.3f} | {row.precision:.3f} | "
        + " | ".join(f"{one:.3f}" for one in row.nmi[:3])
        + " |"
        for row in swept
    ]
    return "\n".join(lines) + "\n"


def plot(swept: Sequence[Row], target: Path) -> None:
    """Draw recall and NMI by strength, a panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({row.kind for row in swept})
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.6), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = sorted((row for row in swept if row.kind == kind), key=lambda row: row.strength)
        strength = [row.strength for row in rows]
        axis.plot(strength, [row.recall for row in rows], "k--o", label="artifacts found (recall)", markersize=4)
        for index, (label, colour) in enumerate((("clean", "0.6"), ("planted", "tab:red"), ("ITAE", "tab:blue"))):
            axis.plot(strength, [row.nmi[index] for row in rows], "-o", color=colour, label=f"NMI, {label}")
        axis.set(xscale="log", xlabel="strength (1: 30 median norms)", title=f"artifacts by {kind}", ylim=(-0.03, 1.05))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
