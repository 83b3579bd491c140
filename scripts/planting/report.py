"""Measure on planted models the cost of artifacts, what is found, and what ITAE wins back: `scripts/plant --report`.

Exporter and runtime are run as commands, as a user runs them. Each measured row is kept as JSON, so that the same
command continues where it was stopped; table and figure show what was measured so far.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime

from exporter.models.architecture import Architecture
from runtime.contract.atomic import write_atomically
from runtime.contract.errors import CheckError
from runtime.contract.manifest import read_manifest
from scripts.planting import pictures
from scripts.planting.plan import Kind, Plan
from scripts.planting.plant import pixels
from scripts.planting.write import PICTURES, TRUTH, WEIGHTS, write

CALIBRATE = "calibrate"
SETTINGS: dict[str, list[str]] = {
    "default": [],
    CALIBRATE: [],
    "key mad:5": ["--source", "key", "--threshold", "mad:5", "--side", "both"],
}
"""Options of ITAE by the name that the table gives them; for `calibrate` they come from a file that it makes."""
SWEPT = ("default", CALIBRATE)
"""Settings of the curve."""
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
    detection: str
    """The options that find artifacts, in words; "nothing" if `calibrate` recommends none."""
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
    """Measure every case, first those of the curve, and write table.md and strength.png into `work`.

    Raises:
        CheckError: a command failed.
        OutputFileError: the folder can't be written.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    curve = [Plan(arch, seeds[0], kind, one, image_size=image_size) for one in STRENGTHS for kind in kinds]
    plans = [Plan(arch, seed, kind, image_size=image_size) for seed in seeds for kind in kinds]
    swept: list[Row] = []
    rows: list[Row] = []
    for found, plan, settings in (
        *((swept, plan, SWEPT) for plan in curve),
        *((rows, plan, tuple(SETTINGS)) for plan in plans),
    ):
        found += _rows(plan, settings, per_class, work, say)
        write_atomically(work / "table.md", as_markdown(rows, swept).encode())
        plot(swept, work / "strength.png")


def _rows(plan: Plan, settings: Sequence[str], per_class: int, work: Path, say: Say) -> list[Row]:
    """The rows of one plan, read where an earlier run kept them."""
    name = f"{plan.arch.name}-{plan.image_size}-{plan.seed}-{plan.kind}-{plan.strength:g}"
    kept = {one: work / "rows" / f"{name}-{one}-{per_class}.json" for one in settings}
    if missing := [one for one in settings if not kept[one].exists()]:
        (work / "rows").mkdir(parents=True, exist_ok=True)
        for row in _measure(plan, missing, per_class, work):
            say(
                f"{name}, {row.setting} ({row.detection}): NMI {' '.join(f'{one:.3f}' for one in row.nmi)}, "
                f"recall {row.recall:.3f}, precision {row.precision:.3f}"
            )
            write_atomically(kept[row.setting], json.dumps(dataclasses.asdict(row)).encode())
    found = [json.loads(kept[one].read_text()) for one in settings]
    return [Row(**{**fields, "nmi": tuple(fields["nmi"]), "acc": tuple(fields["acc"])}) for fields in found]


def _measure(plan: Plan, settings: Sequence[str], per_class: int, work: Path) -> list[Row]:
    """A row for each setting; one evaluation scores all models."""
    clean = dataclasses.replace(plan, strength=0.0, kind="place")
    plain = [_exported(one, None, per_class, work) for one in (clean, plan)]
    treated = {name: [_exported(one, name, per_class, work) for one in (plan, clean)] for name in settings}
    data = _planted(plan, per_class, work) / PICTURES
    words = ["--data", f"folder:{data}", "--json", "--cache", str(work / "cache")]
    models = dict.fromkeys((*plain, *(one for pair in treated.values() for one in pair)))
    evaluated = json.loads(_run(work, "runtime", "evaluate", *map(str, models), *words))["datasets"][0]["evaluations"]
    scores = {one["model"]: one for one in evaluated if one["normalisation"] == "raw"}
    truth = np.load(_planted(plan, per_class, work) / TRUTH)["artifact"]
    rows = []
    for name, pair in treated.items():
        nmi, acc = ([scores[one.name][metric]["mean"] for one in (*plain, *pair)] for metric in ("nmi", "acc"))
        flagged, flagged_clean = (
            np.zeros_like(truth) if one in plain else _flagged(plan, one, per_class) for one in pair
        )
        hits = int((flagged & truth).sum())
        rows.append(
            Row(
                plan.arch.name,
                plan.image_size,
                plan.seed,
                plan.kind,
                plan.strength,
                name,
                "nothing" if pair[0] in plain else read_manifest(pair[0]).options.method.detection,
                recall=hits / int(truth.sum()),
                precision=hits / int(flagged.sum()) if flagged.any() else 1.0,
                flagged_clean=float(flagged_clean.mean()),
                nmi=tuple(nmi),
                acc=tuple(acc),
            )
        )
    return rows


def _planted(plan: Plan, per_class: int, work: Path) -> Path:
    """The folder of a planted model, made unless it is there."""
    folder = work / f"{plan.arch.name}-{plan.image_size}-{plan.seed}-{plan.kind}-{plan.strength:g}-{per_class}"
    if not (folder / TRUTH).exists():  # written last
        write(plan, folder, per_class)
    return folder


def _exported(plan: Plan, setting: str | None, per_class: int, work: Path) -> Path:
    """The ONNX file of a planted model, plain or with a setting of ITAE, made unless it is there.

    Where `calibrate` recommends nothing, it is the plain model's.
    """
    folder = _planted(plan, per_class, work)
    options = ["--no-itae"] if setting is None else [*SETTINGS[setting], "--outputs", "embedding,artifact_mask"]
    if setting == CALIBRATE:
        calibration = _calibrated(plan, folder, work)
        if json.loads(calibration.read_text())["itae"] is None:
            return _exported(plan, None, per_class, work)
        options += ["--config", str(calibration)]
    target = folder / f"{plan.kind}-{plan.strength:g}-{(setting or 'plain').replace(' ', '-')}.onnx"
    if not target.with_name(f"{target.name}.json").exists():
        words = ["--image-size", str(plan.image_size), "--out", str(target), "--quiet", *options]
        _run(work, "exporter", "--size", plan.arch.name, "--weights", str(folder / WEIGHTS), *words)
    return target


def _calibrated(plan: Plan, folder: Path, work: Path) -> Path:
    """The file by `calibrate` on the pictures of a planted model, without labels, made unless it is there."""
    target = folder / "calibration.json"
    if not target.exists():
        words = ["--image-size", str(plan.image_size), "--images", str(folder / PICTURES), "--out", str(target)]
        model = ["--size", plan.arch.name, "--weights", str(folder / WEIGHTS)]
        _run(work, "exporter", "calibrate", *model, *words, "--quiet")
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
    """The two tables: a line per planted model and setting, and a line per strength and setting."""
    lines: list[str] = []
    if rows:
        lines += [
            "| model | kind | seed | setting | found by | recall | precision | flagged, clean model "
            "| NMI clean | planted | with ITAE | won back | clean with ITAE | ACC clean | planted | with ITAE |",
            "|" + "---|" * 16,
        ]
    for row in rows:
        back = "" if row.won_back is None else f"{row.won_back:.0%}"
        nmi, acc = ([f"{one:.3f}" for one in three] for three in (row.nmi, row.acc))
        cells = [f"{row.size} {row.image_size}", row.kind, str(row.seed), row.setting, row.detection]
        cells += [f"{row.recall:.3f}", f"{row.precision:.3f}", f"{row.flagged_clean:.2%}", *nmi[:3], back, nmi[3]]
        lines.append(f"| {' | '.join([*cells, *acc[:3]])} |")
    lines += ["", "| kind | strength | setting | found by | recall | precision | NMI clean | planted | with ITAE |"]
    lines.append("|" + "---|" * 9)
    for row in sorted(swept, key=lambda row: row.kind):  # in a kind, in the order in which they were measured
        cells = [row.kind, f"{row.strength:g}", row.setting, row.detection, f"{row.recall:.3f}"]
        cells += [f"{row.precision:.3f}", *(f"{one:.3f}" for one in row.nmi[:3])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(swept: Sequence[Row], target: Path) -> None:
    """Draw recall and NMI by strength, a panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({row.kind for row in swept})
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.6), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        here = sorted((row for row in swept if row.kind == kind), key=lambda row: row.strength)
        one = [row for row in here if row.setting == here[0].setting]
        axis.plot(*_curve(one, lambda row: row.nmi[0]), "-o", color="0.6", label="NMI, unplanted")
        axis.plot(*_curve(one, lambda row: row.nmi[1]), "-o", color="tab:red", label="NMI, planted")
        for setting, colour in zip(SWEPT, ("tab:blue", "tab:green"), strict=True):
            one = [row for row in here if row.setting == setting]
            style = {"color": colour, "markersize": 4}
            axis.plot(*_curve(one, lambda row: row.nmi[2]), "-o", label=f"NMI, ITAE, {setting}", **style)
            axis.plot(*_curve(one, lambda row: row.recall), "--x", label=f"recall, {setting}", **style)
        axis.set(xscale="log", xlabel="strength (1: 30 median norms)", title=f"artifacts by {kind}", ylim=(-0.03, 1.05))
        axis.grid(alpha=0.3)
    axes[0, -1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _curve(rows: Sequence[Row], value: Callable[[Row], float]) -> tuple[list[float], list[float]]:
    """The strengths, and a value at each."""
    return [row.strength for row in rows], [value(row) for row in rows]
