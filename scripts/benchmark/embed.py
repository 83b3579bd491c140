"""`scripts/bench embed`: what reading, decoding and storing add to the bare model. `scripts/bench embed --help`."""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from exporter.models.architecture import architecture
from runtime.backends import open_session
from runtime.backends.session import Session
from runtime.contract.console import Parser
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.machine import usable_cores
from runtime.contract.progress import Silent
from runtime.embedding.embedder import embed_sources
from runtime.embedding.stream import embed_stream
from runtime.images.decode import load_image
from runtime.images.preprocess import preprocess
from runtime.sources import open_sources
from runtime.store import Store
from runtime.store.writer import open_writer

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
    options.add_argument("--images", type=int, default=48, help="in each run (default: %(default)s)")
    options.add_argument("--side", type=int, default=500, help="of the JPEGs, pixels (default: %(default)s)")
    options.add_argument("--batch", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--workers", type=int, default=usable_cores(), help="(default: the cores)")
    options.add_argument("--rounds", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    given = parser().parse_args(argv)
    if min(given.images, given.side, given.batch, given.workers, given.rounds) < 1:
        raise UsageError("every number must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as scratch:
        folder = Path(scratch)
        model = given.model or _exported(given.size, folder)
        megabytes = draw(folder / "images", given.images, given.side)
        with contextlib.closing(open_session(model)) as session:
            times = _race(session, folder, given)
            name = session.name
    print(_as_markdown(given, name, megabytes, times))
    if given.json:
        given.json.write_text(json.dumps({"backend": name, **_plain(vars(given)), **times}, indent=2) + "\n")
    return 0


def _exported(size: str, folder: Path) -> Path:
    path = folder / f"{architecture(size).name}.onnx"
    print(f"bench: exporting {size}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "exporter", "--size", size, "--weights", "random:0", "--out", str(path)]
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


def _race(session: Session, folder: Path, given: Any) -> dict[str, list[float]]:  # noqa: ANN401  # argparse's namespace
    files = sorted((folder / "images").iterdir())
    how = session.manifest.preprocessing
    arrays = [np.stack([preprocess(load_image(file), how) for file in files[start : start + given.batch]])
              for start in range(0, len(files), given.batch)]  # fmt: skip
    expected = np.concatenate([session.run(array)["embedding"] for array in arrays])
    stores = 0

    def bare() -> None:
        for array in arrays:
            session.run(array, ["embedding"])

    def pipeline() -> None:
        nonlocal stores
        stores += 1
        out = folder / f"store{stores}"
        with open_writer(out, {}) as writer:
            embed = functools.partial(embed_stream, session, batch=given.batch, workers=given.workers)
            embed_sources(embed, open_sources([str(folder / "images")]), writer, Silent())
        if np.abs(Store(out).load() - expected).max() > TOLERANCE:
            raise CheckError("the pipeline's embeddings are not the bare model's")

    def decode() -> None:
        for file in files:
            preprocess(load_image(file), how)

    runs: dict[str, Callable[[], None]] = {"bare": bare, "embed": pipeline, "decode": decode}
    bare()
    pipeline()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(given.rounds):
        names = ["bare", "embed"] if number % 2 else ["embed", "bare"]
        for name in [*names, "decode"]:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        ratio = times["embed"][-1] / times["bare"][-1]
        print(f"bench: round {number + 1} of {given.rounds}: {ratio:.3f}", file=sys.stderr, flush=True)
    return times


def _as_markdown(given: Any, name: str, megabytes: float, times: dict[str, list[float]]) -> str:  # noqa: ANN401
    ratios = [whole / bare for whole, bare in zip(times["embed"], times["bare"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3

    def per_image(what: str) -> str:
        return f"{statistics.median(times[what]) / given.images * 1000:.1f}"

    model = given.model.name if given.model else given.size
    return (
        f"{given.images} JPEGs of {given.side} px ({megabytes / given.images * 1000:.0f} kB each), "
        f"batch {given.batch}, {given.workers} decoding threads, {name}, {given.rounds} rounds\n\n"
        "| model | embed / bare model | embed, ms per image | bare model | decoding alone, one thread |\n"
        "|---|---|---|---|---|\n"
        f"| {model} | {statistics.median(ratios):.3f} ({quartiles[0]:.3f}-{quartiles[2]:.3f}) | {per_image('embed')} | "
        f"{per_image('bare')} | {per_image('decode')} |"
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
