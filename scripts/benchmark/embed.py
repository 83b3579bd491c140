"""`scripts/bench embed`: what reading, decoding and storing add to the bare model. `scripts/bench embed --help`.

Decoding takes the cores from the model. So what it costs in CPU time is measured alone, in one thread, and the table
says what `embed` would take if nothing else cost anything: the model's time, and the decoding spread over the cores.
Threads and processes that decode are compared without the model.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.models.architecture import architecture
from runtime.backends import PROVIDERS, open_session
from runtime.backends.compute import COMPUTES
from runtime.backends.session import Session
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Preprocessing
from runtime.contract.progress import Silent
from runtime.embedding.embedder import embed_sources
from runtime.embedding.stream import embed_stream
from runtime.images.decode import Wanted, decode_file, keep_freed_memory, load_image
from runtime.images.preprocess import preprocess, resized_to
from runtime.sources import open_sources
from runtime.store import Store
from runtime.store.writer import open_writer
from scripts.benchmark.measure import orders

BARE, DRAFT = "bare model", "`embed --draft`"
JPEG, DECODE, DECODE_DRAFT = "decoding alone", "decoding and resizing alone", "the same with --draft"
THREADS, PROCESSES = "decoding and resizing, {} threads", "the same, {} processes, which send the pixels back"
TOLERANCE = 1e-5
"""Between an embedding from the pipeline and the bare model's: batches of ONNX Runtime agree to the bit here."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench embed",
        description="Time `embed` beside its bare model: JPEG files to a finished store, against the same images, "
        "decoded before, through the same session. Interleaved in one process, on the CPU. Markdown on stdout.",
    )
    options.add_argument("--size", default="vitb14", help="of the model, random weights (default: %(default)s)")
    options.add_argument("--model", metavar="FILE", type=Path, help="an exported .onnx in place of --size")
    options.add_argument("--precision", default="fp32", help="of the model of --size (default: %(default)s)")
    options.add_argument("--provider", choices=PROVIDERS, default="auto", help="(default: %(default)s)")
    options.add_argument("--compute", choices=COMPUTES, help="(default: the precision of the file)")
    options.add_argument("--images", type=int, default=48, help="in each run (default: %(default)s)")
    options.add_argument("--side", type=int, default=500, help="of the JPEGs, pixels (default: %(default)s)")
    options.add_argument("--batch", type=int, default=8, help="(default: %(default)s)")
    options.add_argument(
        "--workers",
        type=_numbers,
        default=[usable_cores()],
        help="threads that decode; several numbers, comma-separated, are compared (default: the cores)",
    )
    options.add_argument("--draft", action="store_true", help="race `embed --draft` too; give a large --side")
    options.add_argument("--rounds", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    given = parser().parse_args(argv)
    if min(given.images, given.side, given.batch, *given.workers, given.rounds) < 1:
        raise UsageError("every number must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        model = given.model or _exported(given.size, given.precision, folder)
        megabytes = draw(folder / "images", given.images, given.side)
        with contextlib.closing(open_session(model, given.provider, compute=given.compute)) as session:
            times = _race(session, folder, given)
            name = session.name
    print(_as_markdown(given, name, megabytes, times))
    if given.json:
        found = {what: asdict(one) for what, one in times.items()}
        given.json.write_text(json.dumps({"backend": name, **_plain(vars(given)), **found}, indent=2) + "\n")
    return 0


def _exported(size: str, precision: str, folder: Path) -> Path:
    path = folder / f"{architecture(size).name}.onnx"
    print(f"bench: exporting {size} in {precision}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "exporter", "--size", size, "--weights", "random:0", "--precision", precision]
    command += ["--out", str(path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        raise CheckError(done.stderr.splitlines()[-1])
    return path


def draw(folder: Path, count: int, side: int) -> float:
    """Write seeded JPEGs of quality 90, as rich in detail as photographs; gives their megabytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 16 + 1, side // 16 + 1, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        image = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        image.save(folder / f"{number:05}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


@dataclass(frozen=True)
class Times:
    """The runs of one contestant, one a round."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of all threads of the process; a library's threads that wait for each other count too."""


def _race(session: Session, folder: Path, given: Any) -> dict[str, Times]:  # noqa: ANN401  # argparse's namespace
    files = sorted((folder / "images").iterdir())
    how = session.manifest.preprocessing
    keep_freed_memory()  # as `embed` does
    arrays = [np.stack([preprocess(load_image(file), how) for file in files[start : start + given.batch]])
              for start in range(0, len(files), given.batch)]  # fmt: skip
    expected = np.concatenate([session.run(array)["embedding"] for array in arrays])
    stores = 0

    def bare() -> None:
        for array in arrays:
            session.run(array, ["embedding"])

    def pipeline(workers: int, *, draft: bool = False) -> None:
        nonlocal stores
        stores += 1
        out = folder / f"store{stores}"
        with open_writer(out, {}) as writer:
            embed = functools.partial(embed_stream, session, batch=given.batch, workers=workers, draft=draft)
            embed_sources(embed, open_sources([str(folder / "images")]), writer, Silent())
        found = Store(out).load()
        if draft:
            norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
            cosine = float(((found * expected).sum(axis=1) / norms).min())
            print(f"bench: with --draft the smallest cosine is {cosine:.6f}", file=sys.stderr, flush=True)
        elif np.abs(found - expected).max() > TOLERANCE:
            raise CheckError("the pipeline's embeddings are not the bare model's")

    def decode(draft: Wanted | None = None) -> None:
        for file in files:
            preprocess(decode_file(file, draft=draft), how)

    def decode_only() -> None:
        for file in files:
            decode_file(file)

    def spread(pool: Executor) -> None:
        collections.deque(pool.map(functools.partial(_prepared, how=how), files), maxlen=0)

    runs: dict[str, Callable[[], None]] = {BARE: bare}
    runs |= {_embed(workers): functools.partial(pipeline, workers) for workers in given.workers}
    if given.draft:
        runs[DRAFT] = functools.partial(pipeline, given.workers[0], draft=True)
    cycle = orders(list(runs))
    for run in runs.values():
        run()
    alone: dict[str, Callable[[], None]] = {DECODE: decode, JPEG: decode_only}
    if given.draft:
        alone[DECODE_DRAFT] = functools.partial(decode, functools.partial(resized_to, how=how))
    cores = usable_cores()
    context = multiprocessing.get_context("spawn")  # a fork would copy the model's threads half
    with ThreadPoolExecutor(cores) as threads, ProcessPoolExecutor(cores, context) as processes:
        pools = {THREADS: functools.partial(spread, threads), PROCESSES: functools.partial(spread, processes)}
        for run in pools.values():
            run()  # the processes start
        alone |= pools
        runs |= alone
        times = {name: Times() for name in runs}
        for number in range(given.rounds):
            for name in (*cycle[number % len(cycle)], *alone):
                cpu, start = time.process_time(), time.perf_counter()
                runs[name]()
                times[name].seconds.append(time.perf_counter() - start)
                times[name].cpu_seconds.append(time.process_time() - cpu)
            ratio = times[_embed(given.workers[0])].seconds[-1] / times[BARE].seconds[-1]
            print(f"bench: round {number + 1} of {given.rounds}: {ratio:.3f}", file=sys.stderr, flush=True)
    return times


def _prepared(file: Path, how: Preprocessing) -> npt.NDArray[Any]:
    """A picture as the model takes it."""
    return preprocess(decode_file(file), how)


def _embed(workers: int) -> str:
    return f"`embed`, {workers} decoding thread{'s' * (workers > 1)}"


def _as_markdown(given: Any, name: str, megabytes: float, times: dict[str, Times]) -> str:  # noqa: ANN401
    bare = np.array(times[BARE].seconds)

    def row(what: str, seconds: npt.NDArray[np.float64]) -> str:
        low, middle, high = np.quantile(seconds / bare, (0.25, 0.5, 0.75))
        ratio = "1" if what == BARE else f"{middle:.3f} ({low:.3f}-{high:.3f})"
        each, cpu = np.median(seconds), np.median(times[what].cpu_seconds)
        return f"| {what} | {ratio} | {each / given.images * 1000:.1f} | {cpu / given.images * 1000:.1f} |"

    alone = (DECODE, JPEG, DECODE_DRAFT, THREADS, PROCESSES)
    rows = [row(what, np.array(one.seconds)) for what, one in times.items() if what not in alone]
    cores = usable_cores()
    for what in (DECODE, DECODE_DRAFT):
        if what in times:
            decode = float(np.median(times[what].cpu_seconds))
            least = 1 + decode / cores / float(np.median(bare))
            rows.append(f"| {what}, one thread | | | {decode / given.images * 1000:.1f} |")
            rows.append(f"| bare model and that, spread over the cores | {least:.3f} | | |")
    rows.append(f"| {JPEG}, one thread | | | {np.median(times[JPEG].cpu_seconds) / given.images * 1000:.1f} |")
    rows += [
        f"| {what.format(cores)} | | {np.median(times[what].seconds) / given.images * 1000:.1f} | |"
        for what in (THREADS, PROCESSES)
    ]
    model = given.model.name if given.model else f"{given.size}, {given.precision}"
    return "\n".join(
        [
            f"{model}, {name}; {given.images} JPEGs of {given.side} px ({megabytes / given.images * 1000:.0f} kB each)"
            f", batch {given.batch}, {cores} cores, {given.rounds} rounds",
            "",
            "| | time / bare model | ms an image | CPU time, ms an image |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
