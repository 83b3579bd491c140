"""`scripts/bench bf16`: our bf16 file on a CPU beside transformers' exports and the machine's own matrix products."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.models.architecture import Architecture, architecture
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, OutputFileError, UsageError
from runtime.contract.machine import usable_cores
from scripts.benchmark.contestants import CONTESTANTS, Contestant
from scripts.benchmark.measure import accuracy, race, round_up
from scripts.benchmark.prepare import Prepared, prepare
from scripts.benchmark.report import machine
from scripts.benchmark.runners import Job
from scripts.benchmark.worker import Refused, Worker, in_a_process, started

OURS, PEER, EXACT = "openvino-itae-last-bf16", "openvino-transformers-bf16", "transformers"
MODELS = tuple(one for one in CONTESTANTS if one.name in (OURS, PEER, EXACT))
PRODUCTS = (
    Contestant("products-bf16", "its matrix products alone, bf16", "products", precision="bf16"),
    Contestant("products-int8", "its matrix products alone, int8", "products", precision="int8"),
)
GOALS = {EXACT: {1: 0.35, 8: 0.30}, PEER: {1: 0.80, 8: 0.75}}
"""Largest ratio of our time to another's, by batch."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench bf16",
        description="Time our file of --precision bf16 with ITAE in the last layer on OpenVINO, beside transformers' "
        "export on ONNX Runtime (fp32) and on OpenVINO (its own default, bf16), and beside the model's matrix products "
        "with weights alone, in bf16 and int8: the limit of this machine. Interleaved, a process each, warm. Markdown "
        "on stdout. Needs OpenVINO and a CPU with AVX512-BF16 or AMX. Some 4 minutes on two idle cores.",
    )
    options.add_argument("--size", default="vitb14", help="of the model, random weights (default: %(default)s)")
    options.add_argument("--batch", default="1,8", help="images a run, comma-separated (default: %(default)s)")
    what = "runs of each; rounded up to whole cycles of orders"
    options.add_argument("--rounds", type=int, default=20, help=f"{what} (default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    given = parser().parse_args(argv)
    arch = architecture(given.size)
    if arch.swiglu:
        raise UsageError(f"--size {given.size}: the products are those of an MLP, not of SwiGLU; take S, B or L")
    if given.rounds < 1:
        raise UsageError(f"--rounds {given.rounds}: must be 1 or more")
    try:
        batches = [int(part) for part in given.batch.split(",")]
    except ValueError:
        raise UsageError(f"--batch {given.batch}: must be numbers with commas") from None
    if min(batches) < 1:
        raise UsageError(f"--batch {given.batch}: must be 1 or more")
    if given.json is not None and not given.json.parent.is_dir():
        raise OutputFileError(f"can't write {given.json}: there is no folder {given.json.parent}; make it first")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        found, cosines = times(arch, batches, given.rounds, Path(scratch))
    print("\n".join(as_markdown(arch, found, cosines)))
    if given.json is not None:
        given.json.write_text(json.dumps({"size": arch.name, "cosines": cosines, "seconds": found}) + "\n")
    return 0


def times(
    arch: Architecture, batches: Sequence[int], rounds: int, folder: Path
) -> tuple[dict[int, dict[str, list[float]]], dict[str, float]]:
    """Seconds by batch and contestant, and the smallest cosine of each model's embeddings beside eager PyTorch's.

    Raises:
        CheckError: a contestant can't take part.
    """
    prepared = in_a_process(prepare, arch, MODELS, folder)
    cosines: dict[str, float] = {}
    found: dict[int, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for contestant in (*MODELS, *PRODUCTS):
            try:
                made = prepared.get(contestant.name, Prepared(None, None))
                worker = stack.enter_context(started(Job(contestant, arch, made.path, usable_cores())))
                worker.load()
                if made.check is not None:
                    got = accuracy(contestant, worker.embed(made.check.images), made.check)
                    cosines[contestant.name] = got.min_cosine
            except Refused as refused:
                raise CheckError(f"{contestant.name} can't take part: {refused}") from refused
            workers.append(worker)
        for batch in batches:
            found[batch] = _race(workers, batch, rounds, prepared[OURS])
    return found, cosines


def _race(workers: Sequence[Worker], batch: int, rounds: int, ours: Prepared) -> dict[str, list[float]]:
    assert ours.check is not None
    images = ours.check.images[[index % len(ours.check.images) for index in range(batch)]]
    for worker in workers:
        worker.warm(images)
    return race(workers, round_up(rounds, len(workers)), lambda done: None)


def as_markdown(arch: Architecture, found: dict[int, dict[str, list[float]]], cosines: dict[str, float]) -> list[str]:
    """The tables: times, then our time as a share of each other's, with the goals."""
    names = [contestant.name for contestant in (*MODELS, *PRODUCTS)]
    labels = {contestant.name: contestant.label for contestant in (*MODELS, *PRODUCTS)}
    here: dict[str, Any] = machine(usable_cores(), None)
    lines = [
        f"{arch.name}, {here['cpu']}, {here['threads']} threads; medians (quartiles), ms.",
        "",
        f"| | {' | '.join(f'batch {batch}' for batch in found)} | cosine |",
        "|---" * (len(found) + 2) + "|",
    ]
    for name in names:
        cells = [_quartiles(np.array(of_batch[name]) * 1000, ".0f") for of_batch in found.values()]
        cosine = f"{cosines[name]:.5f}" if name in cosines else ""
        lines.append(f"| {labels[name]} | {' | '.join(cells)} | {cosine} |")
    lines += [
        "",
        "Our time as a share of each other's, by round (goal):",
        "",
        f"| | {' | '.join(f'batch {batch}' for batch in found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for name in names:
        if name == OURS:
            continue
        cells = []
        for batch, of_batch in found.items():
            goal = GOALS.get(name, {}).get(batch)
            ratios = np.array(of_batch[OURS]) / np.array(of_batch[name])
            cells.append(_quartiles(ratios, ".2f") + (f" (goal {goal:.2f})" if goal and arch.name == "vitb14" else ""))
        lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
    return lines


def _quartiles(values: np.ndarray[Any, Any], form: str) -> str:
    low, middle, high = (format(float(one), form) for one in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} ({low}-{high})"
