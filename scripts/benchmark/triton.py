"""`scripts/bench triton`: a model in Triton beside the direct call. `scripts/bench triton --help`."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from exporter.models.architecture import architecture
from runtime import Model, load
from runtime.contract.console import Parser
from runtime.contract.errors import BackendError, CheckError, UsageError
from scripts.benchmark.embed import draw
from scripts.serving.running import SERVE, running

TOLERANCE = 1e-5
"""Between an embedding from the server and the direct call's."""
Array = Any
Call = Callable[[int], Array]
"""Takes the number of a batch and returns its embeddings."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench triton",
        description="Time a model in Triton (scripts/serve, on the CPU) beside the direct call of the same model in "
        "this process: prepared pictures and JPEGs, by gRPC and HTTP, from several clients. Rounds are interleaved. "
        "Images a second, and the 99th percentile of the time of a request. Markdown on stdout.",
    )
    options.add_argument("--size", default="vits14", help="of the model, random weights (default: %(default)s)")
    options.add_argument("--model", metavar="FILE", type=Path, help="an exported .onnx in place of --size")
    options.add_argument("--batch", type=int, default=8, help="images in a request (default: %(default)s)")
    options.add_argument("--requests", type=int, default=6, help="in each run (default: %(default)s)")
    options.add_argument("--clients", type=int, default=2, help="that send requests at a time (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options.add_argument("--side", type=int, default=500, help="of the JPEGs, pixels (default: %(default)s)")
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    if min(given.batch, given.requests, given.clients, given.rounds, given.side) < 1:
        raise UsageError("every number must be 1 or more")
    try:
        import tritonclient.grpc
        import tritonclient.http
    except ImportError as error:
        raise BackendError(f"bench triton needs tritonclient: pip install '.[triton]' ({error})") from error
    _run([str(SERVE), "--setup-only"])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="itae-bench-")))
        model = given.model or _exported(given.size, folder)
        words = ["--out", str(folder / "repository"), "--name", "bench", "--max-batch", str(max(32, given.batch))]
        _run([sys.executable, "-m", "runtime", "triton", str(model), *words])
        draw(folder / "images", given.batch * given.requests, given.side)
        server = stack.enter_context(running(folder / "repository", folder / "log"))
        direct = stack.enter_context(load(model))
        data = _Data(direct, sorted((folder / "images").iterdir()), given.batch)
        calls = {name: _direct(direct, data, name) for name in data.inputs}
        runs: dict[str, tuple[str, Call, int]] = {f"{name}, direct": (name, call, 1) for name, call in calls.items()}
        for protocol, module, place in (
            ("gRPC", tritonclient.grpc, server.grpc),
            ("HTTP", tritonclient.http, server.http),
        ):
            for name in data.inputs:
                call = stack.enter_context(_served(module, place, direct, data, name))
                runs[f"{name}, {protocol}"] = (name, call, given.clients)
        times = _race(runs, data, given)
        print(_as_markdown(given, direct, times))
    if given.json:
        given.json.write_text(json.dumps({**{k: str(v) for k, v in vars(given).items()}, **times}, indent=2) + "\n")
    return 0


class _Data:
    """The batches of a run, prepared and as files, and what the direct call makes of them."""

    def __init__(self, model: Model, files: Sequence[Path], batch: int) -> None:
        from runtime.images.decode import load_image
        from runtime.images.preprocess import preprocess

        how = model.manifest.preprocessing
        jpegs = [file.read_bytes() for file in files]
        prepared = [preprocess(load_image(file), how) for file in files]
        starts = range(0, len(files), batch)
        self.inputs: dict[str, list[Any]] = {
            "prepared": [np.stack(prepared[start : start + batch]) for start in starts],
            "JPEG": [jpegs[start : start + batch] for start in starts],
        }
        self.expected = [model.run_inputs(inputs, ["embedding"])["embedding"] for inputs in self.inputs["prepared"]]


def _direct(model: Model, data: _Data, name: str) -> Call:
    if name == "prepared":
        return lambda number: model.run_inputs(data.inputs[name][number], ["embedding"])["embedding"]
    return lambda number: model.embed(data.inputs[name][number])


@contextlib.contextmanager
def _served(module: Any, place: str, model: Model, data: _Data, name: str) -> Iterator[Call]:  # noqa: ANN401
    """A function that asks the server; each thread has a client of its own."""
    local = threading.local()
    clients = []
    wanted = [module.InferRequestedOutput("embedding")]
    source = model.manifest.input
    dtype = {"uint8": "UINT8", "float32": "FP32"}[source.dtype]

    def call(number: int) -> Array:
        if not hasattr(local, "client"):
            local.client = module.InferenceServerClient(place)
            clients.append(local.client)
        inputs = data.inputs[name][number]
        if name == "prepared":
            tensor = module.InferInput(source.name, list(inputs.shape), dtype)
            tensor.set_data_from_numpy(inputs)
            return local.client.infer("bench", [tensor], outputs=wanted).as_numpy("embedding")
        tensor = module.InferInput("image", [len(inputs), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(inputs, np.object_)[:, None])
        return local.client.infer("bench_images", [tensor], outputs=wanted).as_numpy("embedding")

    yield call
    for client in clients:
        client.close()


def _race(runs: dict[str, tuple[str, Call, int]], data: _Data, given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Seconds of each round, and of each request, by run."""
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    requests: dict[str, list[float]] = {name: [] for name in runs}
    with ThreadPoolExecutor(given.clients, "client") as pool:
        for number in range(-1, given.rounds):  # the first one warms up, and its embeddings are compared
            names = list(runs) if number % 2 else list(runs)[::-1]
            for name in names:
                _, call, clients = runs[name]

                def timed(batch: int, call: Call = call) -> tuple[float, Array]:
                    start = time.perf_counter()
                    found = call(batch)
                    return time.perf_counter() - start, found

                start = time.perf_counter()
                batches = range(given.requests)
                answers = list(pool.map(timed, batches) if clients > 1 else map(timed, batches))
                if number < 0:
                    for (_, found), expected in zip(answers, data.expected, strict=True):
                        if np.abs(found - expected).max() > TOLERANCE:
                            raise CheckError(f"the embeddings of {name} are not the direct call's")
                    continue
                rounds[name].append(time.perf_counter() - start)
                requests[name] += [seconds for seconds, _ in answers]
            print(f"bench: round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    return {"rounds": rounds, "requests": requests}


def _as_markdown(given: Any, model: Model, times: dict[str, Any]) -> str:  # noqa: ANN401
    images = given.batch * given.requests
    lines = [
        f"{given.model.name if given.model else architecture(given.size).name}, {model.session.name}, "
        f"{given.requests} requests of {given.batch} images, {given.clients} clients, {given.rounds} rounds\n",
        "| pictures, call | images a second | of the direct call (median of rounds) | p50, ms | p99, ms |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in times["rounds"].items():
        beside = times["rounds"][f"{name.partition(',')[0]}, direct"]
        ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds, beside, strict=True))
        p50, p99 = np.percentile(times["requests"][name], [50, 99]) * 1000
        lines.append(f"| {name} | {images / statistics.median(seconds):.1f} | {ratio:.3f} | {p50:.0f} | {p99:.0f} |")
    return "\n".join(lines)


def _exported(size: str, folder: Path) -> Path:
    path = folder / f"{architecture(size).name}.onnx"
    print(f"bench: exporting {size}", file=sys.stderr, flush=True)
    words = ["--size", size, "--weights", "random:0", "--input", "uint8", "--out", str(path)]
    _run([sys.executable, "-m", "exporter", *words])
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        raise CheckError(done.stderr.splitlines()[-1])
