"""The study: models are exported, each data set calibrates its own ITAE, and `evaluate` compares all on it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from exporter.methods.itae.options import PRESETS
from runtime.contract.atomic import cannot_write
from runtime.contract.errors import CheckError, InputError, one_line
from runtime.contract.manifest import read_manifest
from runtime.evaluation.datasets.dataset import Dataset, identity_of_file, identity_of_files, stratified
from runtime.sources.at_hand import at_hand
from scripts.studies.commands import Command
from scripts.studies.steps import Say, Steps

MODELS = {
    "plain": "plain",
    "calibrated": "ITAE, calibrated",
    "paper": "ITAE, the paper's form",
    "registers": "registers",
}
"""By the name of its file: a model in words. The first is the baseline."""
PICTURES = 1000
"""Pictures of a data set, at most, that `calibrate` looks at: one half chooses the options, the other half reports."""
QUANTILE = "0.01"
"""The quantile of a data set's key norms that stands in for the paper's θ, which is not known."""
STEPS_FOR_ALL = 2
STEPS_FOR_EACH = 5


@dataclass(frozen=True)
class Settings:
    """The choices of a study."""

    size: str
    """The size of the model without registers, as `--size` takes it."""
    weights: str
    """As `--weights` of the exporter takes it."""
    registers_weights: str
    """The same for the model with registers."""
    device: str
    """`cpu` or `cuda`."""
    seeds: int
    """Number of clusterings of each model's embeddings."""
    limit: int | None
    """Number of images of each data set; None for all."""


@dataclass(frozen=True)
class Failure:
    """A part of the study that could not be done."""

    what: str
    reason: str


@dataclass(frozen=True)
class DatasetStudy:
    """The results on one data set."""

    folder: Path
    calibration: Mapping[str, Any] | None
    """The file of `calibrate`; None if it failed."""
    theta: float | None
    """The threshold that stands in for the paper's θ; None if it is not known."""
    evaluation: Mapping[str, Any]
    """The data set's part of the summary by `evaluate`."""


@dataclass
class Study:
    """The results of a study."""

    settings: Settings
    remarks: list[str] = field(default_factory=list)
    """Sentences that a reader must know, without their full stops."""
    datasets: list[DatasetStudy] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def run(settings: Settings, datasets: Sequence[Dataset], out: Path, command: Command, say: Say) -> Study:
    """Do what is missing in `out`; what fails is recorded, and the study goes on with the rest.

    Raises:
        OutputFileError: `out` can't be written.
        UsageError: `limit` is smaller than the number of classes of a data set.
    """
    for dataset in datasets:
        _rows(dataset, settings.limit)
    return _Run(settings, datasets, out, command, say).run()


def _rows(dataset: Dataset, limit: int | None) -> Sequence[int]:
    return [int(row) for row in stratified(dataset.labels, limit or len(dataset), 0)]


class _Run:
    """A run of a study."""

    def __init__(self, settings: Settings, datasets: Sequence[Dataset], out: Path, command: Command, say: Say) -> None:
        self._settings, self._out, self._command, self._say = settings, out, command, say
        self._datasets = dict(zip(folder_names(datasets), datasets, strict=True))
        self._steps = Steps(out, STEPS_FOR_ALL + STEPS_FOR_EACH * len(datasets), say)
        self._study = Study(settings)
        self._weights = {one: weights_identity(one) for one in (settings.weights, settings.registers_weights)}

    def run(self) -> Study:
        size, weights = self._settings.size, self._settings.weights
        plain = self._export(self._out / "models" / "plain.onnx", size, weights, ["--no-itae"], MODELS["plain"])
        registers = self._export(
            self._out / "models" / "registers.onnx",
            f"{size}_reg",
            self._settings.registers_weights,
            ["--no-itae"],
            MODELS["registers"],
        )
        for name, dataset in self._datasets.items():
            self._study_dataset(name, dataset, plain, registers)
        return self._study

    def _study_dataset(self, name: str, dataset: Dataset, plain: Path | None, registers: Path | None) -> None:
        folder = self._out / name
        folder.mkdir(parents=True, exist_ok=True)
        models = [plain]
        calibration, theta = None, None
        if plain is None:
            for what in ("pictures to calibrate on", "calibrate", MODELS["calibrated"], MODELS["paper"]):
                self._steps.leave_out(f"{name}: {what}", "left out, as plain has no weights")
        else:
            calibration = self._calibrate(name, dataset, folder)
            theta = None if calibration is None else theta_of(calibration)
            models += self._export_itae(name, folder, calibration, theta)
        there = [one for one in (*models, registers) if one is not None]
        found = self._evaluate(name, dataset, folder, there) if there else None
        if found is not None:
            self._study.datasets.append(DatasetStudy(folder, calibration, theta, found))

    def _export_itae(
        self, name: str, folder: Path, calibration: Mapping[str, Any] | None, theta: float | None
    ) -> list[Path | None]:
        """The models with ITAE of a data set; without a calibration, or artifacts, there is none of that kind."""
        size, weights = self._settings.size, self._settings.weights
        models: list[Path | None] = []
        what = f"{name}: {MODELS['calibrated']}"
        if calibration is None or calibration["itae"] is None:
            self._steps.leave_out(what, "left out: " + ("no calibration" if calibration is None else "as plain"))
        else:
            options = ["--config", str(folder / "calibration.json")]
            made_from = {"calibration": calibration["sha256"]}
            models.append(self._export(folder / "calibrated.onnx", size, weights, options, what, made_from))
        what = f"{name}: {MODELS['paper']}"
        if theta is None:
            self._steps.leave_out(what, "left out: no calibration that θ could be taken from")
        else:
            options = ["--preset", "paper", "--threshold", f"absolute:{theta:g}"]
            models.append(self._export(folder / "paper.onnx", size, weights, options, what))
        return models

    def _export(
        self,
        target: Path,
        size: str,
        weights: str,
        options: Sequence[str],
        what: str,
        made_from: Mapping[str, str] | None = None,
    ) -> Path | None:
        """Export a model; returns None if that failed."""
        inputs = {
            "itae": metadata.version("itae"),
            "size": size,
            "weights": self._weights[weights],
            **(made_from or {"options": list(options)}),
        }
        words = ["--size", size, "--weights", weights, *options, "--out", str(target)]
        outputs = [target, target.with_name(f"{target.name}.json")]

        def export() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._command("exporter", words)

        name = ".".join(target.relative_to(self._out).with_suffix("").parts)
        return target if self._tried(f"{what}: export {size}", name, inputs, outputs, export) else None

    def _calibrate(self, name: str, dataset: Dataset, folder: Path) -> Mapping[str, Any] | None:
        """The file of `calibrate` on pictures of a data set; None if that failed."""
        count = min(PICTURES, self._settings.limit or PICTURES)
        pictures = folder / "pictures"
        inputs: dict[str, Any] = {"data": dataset.identity, "pictures": count}
        if dataset.kind == "folder":
            pictures = dataset.path
            self._steps.leave_out(f"{name}: pictures to calibrate on", "those of the folder")
        else:
            make = functools.partial(write_pictures, dataset, count, pictures)
            if not self._tried(f"{name}: pictures to calibrate on", f"{name}.pictures", inputs, [pictures], make):
                self._steps.leave_out(f"{name}: calibrate", "left out: no pictures")
                return None
        target, page = folder / "calibration.json", folder / "calibration.html"
        settings = self._settings
        inputs |= {"itae": metadata.version("itae"), "weights": self._weights[settings.weights], "size": settings.size}
        words = ["calibrate", "--size", settings.size, "--weights", settings.weights, "--images", str(pictures)]
        words += ["--limit", str(count), "--device", settings.device, "--out", str(target), "--report", str(page)]
        make = functools.partial(self._command, "exporter", words)
        if not self._tried(f"{name}: calibrate", f"{name}.calibrate", inputs, [target, page], make):
            return None
        found: Mapping[str, Any] = json.loads(target.read_bytes())
        return found

    def _evaluate(self, name: str, dataset: Dataset, folder: Path, models: Sequence[Path]) -> Mapping[str, Any] | None:
        """The data set's part of the summary by `evaluate`; None if that failed."""
        settings, target, page = self._settings, folder / "evaluation", folder / "report.html"
        inputs = {
            "itae": metadata.version("itae"),
            "models": {one.stem: read_manifest(one).files.model.sha256 for one in models},
            "data": dataset.identity,
            "labels": hashlib.sha256(repr(dataset.classes).encode() + dataset.labels.tobytes()).hexdigest(),
            "seeds": settings.seeds,
            "limit": settings.limit,
            "device": settings.device,
        }
        words = ["evaluate", *map(str, models), "--data", f"{dataset.kind}:{dataset.path}"]
        words += ["--seeds", str(settings.seeds), "--provider", settings.device, "--out", str(target)]
        words += ["--cache", str(self._out / "cache"), "--report", str(page)]
        words += [] if settings.limit is None else ["--limit", str(settings.limit)]
        make = functools.partial(self._command, "runtime", words)
        outputs = [target / "summary.json", page]
        if not self._tried(f"{name}: evaluate", f"{name}.evaluate", inputs, outputs, make):
            return None
        found: Mapping[str, Any] = json.loads(outputs[0].read_bytes())["datasets"][0]
        return found

    def _tried(
        self, what: str, name: str, inputs: Mapping[str, Any], outputs: Sequence[Path], make: Callable[[], object]
    ) -> bool:
        """Take a step; if it fails, record that and return False."""
        try:
            self._steps.take(name, what, inputs, outputs, make)
        except (CheckError, InputError) as error:
            self._study.failures.append(Failure(what, one_line(error)))
            self._say(f"FAILED {what}: {one_line(error)}")
            return False
        return True


def folder_names(datasets: Sequence[Dataset]) -> list[str]:
    """A folder's name for each data set: its own name, and part of its hash where two have the same."""
    names = [re.sub(r"[^A-Za-z0-9_-]+", "-", one.name).strip("-")[:60] or one.kind for one in datasets]
    reserved = {"models", "cache", "steps"}
    return [
        name if names.count(name) == 1 and name not in reserved else f"{name}-{one.identity[:8]}"
        for name, one in zip(names, datasets, strict=True)
    ]


def weights_identity(weights: str) -> str:
    """A text that changes when the weights do: a hash of the file, or of a folder's names, sizes and times."""
    path = Path(weights)
    if path.is_dir():
        files = sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())
        return identity_of_files(str(path), files)
    return identity_of_file(path) if path.is_file() else weights


def theta_of(calibration: Mapping[str, Any]) -> float | None:
    """A threshold in place of the paper's θ: a low quantile of the norms that the paper's form looks at.

    `calibrate` measures these norms on one half of its pictures, without labels. None if the quantile is 0.
    """
    last = max(one["layer"] for one in calibration["norms"])
    (norms,) = (
        one for one in calibration["norms"] if (one["layer"], one["source"]) == (last, PRESETS["paper"]["source"])
    )
    theta = float(f"{norms['median'] * norms['quantiles_by_median'][QUANTILE]:.6g}")
    return theta if theta > 0 else None


def write_pictures(dataset: Dataset, count: int, folder: Path) -> None:
    """Write pictures of a data set, each class with its share, as PNG files into a new folder.

    Raises:
        InputError: none of them can be read.
        OutputFileError: the folder can't be written.
    """
    rows = _rows(dataset, max(min(count, len(dataset)), len(set(dataset.labels.tolist()))))
    keys = [dataset.keys[row] for row in rows]
    part = folder.with_name(f"{folder.name}.part")
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with at_hand(keys, dataset.read_image) as read:
            for number, key in enumerate(keys):
                with contextlib.suppress(InputError):  # `evaluate` reports it
                    read(*key).convert("RGB").save(part / f"{number:05}.png")
        if not any(part.iterdir()):
            raise InputError(f"{dataset.name}: none of {len(keys)} pictures can be read")
        part.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
