"""Results as JSON and as markdown."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.models.architecture import architecture
from scripts.benchmark.contestants import CONTESTANTS, Device
from scripts.benchmark.gpu import flops_per_image, peak_tflops
from scripts.benchmark.measure import Race, Timing

LABELS = {contestant.name: contestant.label for contestant in CONTESTANTS}
OURS = {contestant.name for contestant in CONTESTANTS if contestant.ours}
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch", "transformers")


@dataclass(frozen=True)
class Skipped:
    """A contestant that did not run at a size, and why."""

    size: str
    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """One run of `scripts/bench`."""

    machine: dict[str, Any]
    rounds_wanted: int
    races: tuple[Race, ...]
    skipped: tuple[Skipped, ...]


def machine(threads: int, gpu: str | None) -> dict[str, Any]:
    """Where this ran and with what."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cpu": _cpu(), "threads": threads, "gpu": gpu, "python": platform.python_version(), "packages": versions}


def as_json(report: Report) -> str:
    """The report with every single time, for other programs."""
    return json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False)


def as_markdown(report: Report) -> str:
    """A table for each device, and what was left out."""
    lines = [_where(report), ""]
    devices: dict[Device, list[Race]] = {}
    for race in report.races:
        devices.setdefault(race.device, []).append(race)
    for device, races in devices.items():
        lines += [*_table(races), ""]
        if device == "cuda":
            lines += [*_throughput(races, report.machine["gpu"]), ""]
    lines += [f"Left out at {one.size}: {LABELS[one.name]} ({one.reason})" for one in report.skipped]
    return "\n".join(lines).rstrip()


def _where(report: Report) -> str:
    here = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    counts = sorted({len(race.timings[0].seconds) for race in report.races})
    rounds = "-".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "no"
    gpu = f"; {here['gpu']}" if here["gpu"] else ""
    return (
        f"{here['cpu']}, {here['threads']} threads{gpu}; {packages}; random weights, 224 px; {rounds} rounds, each "
        "contestant equally often in each place. Time relative to the reference's in the same round: median "
        "(quartiles), median ms per batch."
    )


def _table(races: Sequence[Race]) -> list[str]:
    """Contestants down, sizes and batches across."""
    heads = [f"{race.size} b{race.batch}" for race in races]
    rows = [f"| | {' | '.join(heads)} | max abs |", "|---" * (len(races) + 2) + "|"]
    for name in dict.fromkeys(timing.name for race in races for timing in race.timings):
        found = [next((one for one in race.timings if one.name == name), None) for race in races]
        worst = max(one.accuracy.max_abs for one in found if one is not None)
        cells = [_cell(one, race.reference) for one, race in zip(found, races, strict=True)]
        label = f"**{LABELS[name]}**" if name in OURS else LABELS[name]
        rows.append(f"| {label} | {' | '.join(cells)} | {worst:.0e} |")
    return rows


def _cell(timing: Timing | None, reference: str) -> str:
    if timing is None:
        return ""
    if timing.name == reference:
        return f"1, {timing.ms[1]:.0f} ms"
    low, middle, high = timing.ratio
    return f"{middle:.2f} ({low:.2f}-{high:.2f}), {timing.ms[1]:.0f} ms"


def _throughput(races: Sequence[Race], gpu: str) -> list[str]:
    """Images a second, and what plain DINOv2's operations at that rate are of the GPU's dense peak."""
    peak = peak_tflops(gpu)
    rows = ["| | batch | images/s | share of the peak |", "|---|---|---|---|"]
    for race in races:
        flops = flops_per_image(architecture(race.size))
        for one in race.timings:
            share = f"{flops * one.images_per_second / (peak * 1e12):.0%}" if peak else "peak not known"
            rows.append(f"| {race.size}: {LABELS[one.name]} | {race.batch} | {one.images_per_second:.0f} | {share} |")
    return rows


def _cpu() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
