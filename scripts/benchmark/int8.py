"""`scripts/bench int8`: our int8 file on a CPU beside the same model in bf16 and fp32; time, size and embeddings."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.intake import Intake, open_intake
from exporter.models.architecture import architecture
from exporter.options import CALIBRATE_LIMIT, MIN_COSINE, ExportSpec
from exporter.pipeline import load_and_trace, operate
from exporter.proof.gate import open_model
from exporter.quantization.figures import Figures, compare
from exporter.quantization.within_limit import Quantized, quantize
from runtime.backends.openvino import BF16, SETTINGS, import_openvino
from runtime.contract.console import Parser
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.machine import usable_cores
from scripts.benchmark.measure import orders
from scripts.benchmark.report import machine
from scripts.planting import pictures

PER_CLASS = 8
"""Made pictures of each of 8 classes, where no others are given."""
GOAL = 0.75
"""Largest ratio of our int8 time to the faster bf16 time on OpenVINO."""
INT8, BF16_FILE, BF16_HINT = "int8 file, OpenVINO", "bf16 file, OpenVINO", "fp32 file under bf16, OpenVINO"

Run = Callable[[np.ndarray[Any, Any]], object]


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench int8",
        description="Time an int8 file with ITAE in the last layer on OpenVINO and ONNX Runtime, in turns with the "
        "same model in bf16 and fp32; sizes and embeddings beside. Random weights. Markdown on stdout. Needs OpenVINO. "
        "Some 5 minutes on two idle cores.",
    )
    options.add_argument("--size", default="vits14,vitb14", help="of the model, comma-separated (default: %(default)s)")
    options.add_argument("--batch", type=int, default=8, help="images a run (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=8, help="runs of each (default: %(default)s)")
    options.add_argument("--pictures", metavar="SOURCE", help="for the scales (default: made ones)")
    options.add_argument(
        "--check",
        type=int,
        default=0,
        help="embed N more of them in fp32 and int8 (default: 0; 2000 take some 4 minutes with vits14, 14 with vitb14)",
    )
    options.add_argument("--min-cosine", type=float, default=MIN_COSINE, help="of the int8 file (default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    sizes = [architecture(size).name for size in given.size.split(",")]
    if min(given.batch, given.rounds) < 1 or given.check < 0:
        raise UsageError("--batch and --rounds must be 1 or more, --check 0 or more")
    if given.json is not None and not given.json.parent.is_dir():
        raise OutputFileError(f"can't write {given.json}: there is no folder {given.json.parent}; make it first")
    here: dict[str, Any] = machine(usable_cores(), None)
    print(f"{here['cpu']}, {here['threads']} threads, batch {given.batch}; medians (quartiles).")
    found = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
            folder = Path(scratch)
            source = given.pictures
            if source is None:
                source = str(folder / "pictures")
                pictures.write(pictures.make(0, PER_CLASS), Path(source))
            exact, half, made = files(size, source, given.min_cosine, folder)
            seconds = times(exact, half, made.model, given.batch, given.rounds)
            figures = checked(exact, made.model, source, given.check) if given.check else None
            print("\n".join(as_markdown(size, seconds, given.batch, exact, made, figures)), flush=True)
            found[size] = {
                "seconds": seconds,
                "quantization": made.record.model_dump(mode="json"),
                "checked": None if figures is None else dataclasses.asdict(figures),
            }
    if given.json is not None:
        given.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0


def files(size: str, source: str, min_cosine: float, folder: Path) -> tuple[Path, Path, Quantized]:
    """The fp32 file, the bf16 file and the int8 model."""
    spec = ExportSpec("x.onnx", size=size, weights="random:0")
    (folder / "traced").mkdir()
    loaded, traced = load_and_trace(spec, folder / "traced")
    del loaded
    exact = operate(spec, traced, folder / "fp32").model
    half = operate(dataclasses.replace(spec, precision="bf16"), traced, folder / "bf16").model
    intake = open_intake(source, spec.preprocessing(), CALIBRATE_LIMIT)
    made = quantize(exact, folder / "int8", "x.onnx.data", intake, min_cosine, open_model, lambda line: None)
    return exact, half, made


def times(exact: Path, half: Path, int8: Path, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by what ran."""
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    work: dict[str, Run] = {
        INT8: _openvino(int8, SETTINGS),
        "int8 file under bf16, OpenVINO": _openvino(int8, {**SETTINGS, **BF16}),
        BF16_FILE: _openvino(half, SETTINGS),
        BF16_HINT: _openvino(exact, {**SETTINGS, **BF16}),
        "fp32 file, OpenVINO": _openvino(exact, SETTINGS),
        "int8 file, ONNX Runtime": _onnx_runtime(int8),
        "fp32 file, ONNX Runtime": _onnx_runtime(exact),
    }
    for run in work.values():
        run(images)  # warm
    seconds: dict[str, list[float]] = {name: [] for name in work}
    turns = orders(list(work))
    for number in range(rounds):
        for name in turns[number % len(turns)]:
            start = time.perf_counter()
            work[name](images)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def checked(exact: Path, int8: Path, source: str, count: int) -> Figures:
    """The figures of other pictures; some of them may have chosen the scales where there are few."""
    intake: Intake = open_intake(source, ExportSpec("x.onnx").preprocessing(), count)
    intake.seed = 1
    one, other = open_model(exact), open_model(int8)
    wanted, got = [], []
    for half in (0, 1):
        for batch in intake.batches(half):
            wanted.append(one.run(["embedding"], {"pixel_values": batch.pixels})[0])
            got.append(other.run(["embedding"], {"pixel_values": batch.pixels})[0])
    return compare(np.concatenate(wanted), np.concatenate(got))


def as_markdown(
    size: str, seconds: dict[str, list[float]], batch: int, exact: Path, made: Quantized, figures: Figures | None
) -> list[str]:
    """The table of a model, and its figures in sentences."""
    faster = min((BF16_FILE, BF16_HINT), key=lambda name: float(np.median(seconds[name])))
    lines = ["", f"{size} | ms an image | share of bf16", "---|---|---"]
    for name, its in seconds.items():
        ratio = _quartiles(np.array(its) / np.array(seconds[faster]), ".2f")
        goal = f" (goal {GOAL})" if name == INT8 else ""
        lines.append(f"{name} | {_quartiles(np.array(its) * 1000 / batch, '.1f')} | {ratio}{goal}")
    share = made.model.stat().st_size / exact.stat().st_size
    record = made.record
    lines += [
        "",
        f"File: {share:.3f} of the fp32 file. {record.int8_layers} layers in int8, {len(record.float32_layers)} in "
        f"float32. {record.checked} pictures that chose no scale: cosine {record.worst_cosine:.5f} at worst, "
        f"{record.median_cosine:.5f} in the median.",
    ]
    if figures is not None:
        lines.append(
            f"{figures.pictures} more pictures: cosine {figures.worst_cosine:.5f} at worst, "
            f"{figures.median_cosine:.5f} in the median; {figures.neighbours:.1%} of the nearest neighbours and "
            f"{figures.same_centroid:.1%} of the nearest centroids stay."
        )
    return lines


def _openvino(model: Path, settings: dict[str, str]) -> Run:
    core = import_openvino().Core()
    request = core.compile_model(str(model), "CPU", {**settings}).create_infer_request()
    return lambda images: request.infer({"pixel_values": images}, share_outputs=True)


def _onnx_runtime(model: Path) -> Run:
    session = open_model(model)
    return lambda images: session.run(["embedding"], {"pixel_values": images})


def _quartiles(values: np.ndarray[Any, Any], form: str) -> str:
    low, middle, high = (format(float(one), form) for one in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} ({low}-{high})"
