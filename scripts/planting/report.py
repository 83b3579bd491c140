"""Measure on planted models the cost of artifacts, what is found, and what ITAE wins back: `scripts/plant --report`.

It runs `calibrate` as a user does, and the eager model with ITAE, which every export is checked against. What was
measured is kept as JSON, so that the same command continues where it was stopped; table and figure show what there is.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch

from exporter.__main__ import main as exporter
from exporter.calibration.recommendation import read
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from runtime.clustering.kmeans import cluster
from runtime.clustering.metrics import score
from runtime.contract.atomic import write_atomically
from runtime.contract.errors import CheckError
from scripts.planting import pictures
from scripts.planting.plan import Plan
from scripts.planting.plant import Trunk, pixels
from scripts.planting.write import PICTURES, WEIGHTS, write

CALIBRATE = "calibrate"
SETTINGS: dict[str, ItaeConfig | None] = {
    "default": ItaeConfig(),
    CALIBRATE: None,
    "key mad:5": ItaeConfig(source="key", threshold="mad:5", side="both"),
}
"""Options of ITAE by the name that the table gives them; for `calibrate` they come from the file that it makes."""
CURVES = ("default", CALIBRATE)
"""Settings that the figure has."""
SEEDS_OF_KMEANS = 10
COSTLY = 0.05
"""NMI or ACC that artifacts must cost before it is said how much of it is won back."""

Say = Callable[[str], None]
Scores = tuple[float, float]
"""NMI and ACC."""


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

    def won_back(self, metric: str = "nmi") -> float | None:
        """The share of the lost NMI or ACC that ITAE wins back; None if less than `COSTLY` was lost."""
        clean, planted, itae, _ = getattr(self, metric)
        return (itae - planted) / (clean - planted) if clean - planted >= COSTLY else None


@dataclass(frozen=True, eq=False)
class _Treated:
    """A model's embeddings with one setting."""

    detection: str
    flagged: npt.NDArray[np.bool_]
    """(n, P)."""
    scores: Scores


@dataclass(frozen=True, eq=False)
class _Model:
    """A planted model's pictures, embedded plain and with each setting."""

    truth: npt.NDArray[np.bool_]
    """(n, P): the patches that are artifacts."""
    plain: Scores
    treated: dict[str, _Treated]


def measure(plans: Sequence[Plan], per_class: int, work: Path, say: Say) -> None:
    """Measure every plan, and write table.md and strength.png into `work` after each.

    Raises:
        CheckError: `calibrate` failed.
        OutputFileError: the folder can't be written.
    """
    rows: list[Row] = []
    for plan in plans:
        rows += _rows(plan, per_class, work, say)
        write_atomically(work / "table.md", as_markdown(rows).encode())
        plot(rows, work / "strength.png")


def in_order(plan: Plan, kinds: Sequence[str], seeds: Sequence[int], strengths: Sequence[float]) -> list[Plan]:
    """The plans of a report: the first seed with every strength, then the others, the strongest artifacts first."""
    first = itertools.product(seeds[:1], strengths, kinds)
    others = ((seed, strength, kind) for strength in strengths for seed in seeds[1:] for kind in kinds)
    return [
        dataclasses.replace(plan, seed=seed, strength=strength, kind=kind)
        for seed, strength, kind in itertools.chain(first, others)
    ]


def _rows(plan: Plan, per_class: int, work: Path, say: Say) -> list[Row]:
    """The rows of one plan, read where an earlier run kept them."""
    name = f"{plan.arch.name}-{plan.image_size}-{plan.seed}-{plan.name}-{plan.strength:g}-{per_class}"
    kept = work / "rows" / f"{name}.json"
    if not kept.exists():
        rows = _measure(plan, per_class)
        for row in rows:
            say(
                f"{name}, {row.setting} ({row.detection}): NMI {' '.join(f'{one:.3f}' for one in row.nmi)}, "
                f"recall {row.recall:.3f}, precision {row.precision:.3f}"
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps([dataclasses.asdict(row) for row in rows]).encode())
    return [
        Row(**{**fields, "nmi": tuple(fields["nmi"]), "acc": tuple(fields["acc"])})
        for fields in json.loads(kept.read_text())
    ]


def _measure(plan: Plan, per_class: int) -> list[Row]:
    """A row for each setting."""
    clean = _model(dataclasses.replace(plan, strength=0.0, kind="place", values="payload", fade=False), per_class)
    planted = _model(plan, per_class)
    rows = []
    for name, treated in planted.treated.items():
        hits = int((treated.flagged & planted.truth).sum())
        scores = (clean.plain, planted.plain, treated.scores, clean.treated[name].scores)
        nmi, acc = zip(*scores, strict=True)
        rows.append(
            Row(
                plan.arch.name,
                plan.image_size,
                plan.seed,
                plan.name,
                plan.strength,
                name,
                treated.detection,
                recall=hits / int(planted.truth.sum()),
                precision=hits / int(treated.flagged.sum()) if treated.flagged.any() else 1.0,
                flagged_clean=float(clean.treated[name].flagged.mean()),
                nmi=nmi,
                acc=acc,
            )
        )
    return rows


@functools.lru_cache(maxsize=16)
def _model(plan: Plan, per_class: int) -> _Model:
    """Make a planted model and its pictures, choose options by `calibrate`, and embed with every setting."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        truth = write(plan, folder, per_class)
        trunk = Trunk(plan, safetensors.torch.load_file(folder / WEIGHTS))
        settings = {name: itae or _calibrated(plan, folder) for name, itae in SETTINGS.items()}
    made = pictures.make(plan.seed, per_class, plan.image_size)
    classes = [one.name.partition("/")[0] for one in made]
    start = min(_first_block(itae, plan.arch.depth) for itae in settings.values())
    found: dict[str | None, list[reference.Eager]] = {name: [] for name in (None, *settings)}
    for image in pixels(plan, made).split(1):
        kept = reference.Kept(start)
        for name, eager in found.items():
            eager.append(reference.embed(trunk.model, image, settings[name] if name else None, kept=kept))
    embedded = {name: reference.concatenate(eager) for name, eager in found.items()}
    scores = {name: _scores(eager.embedding.numpy(), classes) for name, eager in embedded.items()}
    treated = {
        name: _Treated(_words(itae), embedded[name].artifact.any(dim=1).numpy(), scores[name])
        for name, itae in settings.items()
    }
    return _Model(truth, scores[None], {name: treated[name] for name in settings})


def _first_block(itae: ItaeConfig | None, depth: int) -> int:
    """The first block that ITAE looks at."""
    if itae is None:
        return depth - 1
    first = itae.layer_indices(depth)[0]
    return first if itae.source is None else min(first, itae.detects_in(first))


def _calibrated(plan: Plan, folder: Path) -> ItaeConfig | None:
    """The options that `calibrate` recommends for a planted model and its pictures, without labels."""
    target = folder / "calibration.json"
    model = ["--size", plan.arch.name, "--weights", str(folder / WEIGHTS), "--image-size", str(plan.image_size)]
    if exporter(["calibrate", *model, "--images", str(folder / PICTURES), "--out", str(target), "--quiet"]):
        raise CheckError(f"calibrate failed on {plan.arch.name}, {plan.name}, seed {plan.seed}")
    options = read(target).options
    return None if options is None else ItaeConfig(**options)


def _words(itae: ItaeConfig | None) -> str:
    if itae is None:
        return "nothing"
    where = "" if itae.detect_layer is None else f" of block {itae.detect_layer}"
    what = itae.threshold if itae.source is None else f"{itae.source}{where}, {itae.threshold} {itae.side}"
    return f"{itae.layers}: {what}"


def _scores(embedding: npt.NDArray[np.float32], classes: list[str]) -> Scores:
    """NMI and ACC, means over seeds of k-means."""
    labels = (cluster(embedding, pictures.CLASSES, seed).labels for seed in range(SEEDS_OF_KMEANS))
    found = [score(classes, one, pictures.CLASSES) for one in labels]
    return float(np.mean([one.nmi for one in found])), float(np.mean([one.acc for one in found]))


def as_markdown(rows: Sequence[Row]) -> str:
    """A line for each kind of planted model, strength and setting; several seeds are summed up in it."""
    lines = [
        "| model | kind | strength | seeds | setting | found by | recall | precision | flagged, clean model "
        "| NMI clean | planted | with ITAE | won back | clean with ITAE | ACC clean | planted | with ITAE | won back |",
        "|" + "---|" * 18,
    ]
    groups: dict[tuple[str, str, float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((f"{row.size} {row.image_size}", row.kind, row.strength, row.setting), []).append(row)
    for (model, kind, strength, setting), same in sorted(groups.items(), key=lambda one: (*one[0][:2], -one[0][2])):
        seeds = sorted(row.seed for row in same)
        cells = [model, kind, f"{strength:g}", ", ".join(map(str, seeds)), setting, _detections(same)]
        cells += [_span([row.recall for row in same]), _span([row.precision for row in same])]
        cells.append(f"{max(row.flagged_clean for row in same):.2%}")
        for metric in ("nmi", "acc"):
            spans = [_span([getattr(row, metric)[place] for row in same]) for place in range(4)]
            shares = [back for row in same if (back := row.won_back(metric)) is not None]
            cells += [*spans[:3], _span(shares, "{:.0%}")] + ([spans[3]] if metric == "nmi" else [])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _span(values: Sequence[float], form: str = "{:.3f}") -> str:
    """The least and the greatest."""
    ends = list(dict.fromkeys(form.format(one) for one in (min(values), max(values)))) if values else []
    return "-".join(ends)


def _detections(rows: Sequence[Row]) -> str:
    """The different ways in which the seeds' artifacts are found; places differ between seeds."""
    return "; ".join(dict.fromkeys(re.sub("positions:.*", "positions", row.detection) for row in rows))


def plot(rows: Sequence[Row], target: Path) -> None:
    """Draw recall and NMI by strength, means over the seeds, a panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({row.kind for row in rows})
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.6), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        here = [row for row in rows if row.kind == kind and row.setting in CURVES]
        axis.plot(*_curve(here, lambda row: row.nmi[0]), "-o", color="0.6", label="NMI, unplanted")
        axis.plot(*_curve(here, lambda row: row.nmi[1]), "-o", color="tab:red", label="NMI, planted")
        for setting, colour in zip(CURVES, ("tab:blue", "tab:green"), strict=True):
            one = [row for row in here if row.setting == setting]
            axis.plot(*_curve(one, lambda row: row.nmi[2]), "-o", label=f"NMI, ITAE, {setting}", color=colour, ms=4)
            axis.plot(*_curve(one, lambda row: row.recall), "--x", label=f"recall, {setting}", color=colour, ms=4)
        axis.set(xscale="log", xlabel="strength (1: 30 median norms)", title=f"artifacts by {kind}", ylim=(-0.03, 1.05))
        axis.grid(alpha=0.3)
    axes[0, -1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _curve(rows: Sequence[Row], value: Callable[[Row], float]) -> tuple[list[float], list[float]]:
    """The strengths, and the mean of a value at each."""
    strengths = sorted({row.strength for row in rows})
    return strengths, [float(np.mean([value(row) for row in rows if row.strength == one])) for one in strengths]
