"""The command: prepare, load, check, race, report. `scripts/bench --help`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from exporter.models.architecture import Architecture, architecture
from runtime.contract.console import Parser, run
from runtime.contract.driver import require_gpu
from runtime.contract.errors import BackendError, CheckError, OutputFileError, UsageError
from scripts.benchmark import bf16, by_ray, calibrate, cluster, cpp, dedup, embed, foreign, int8, seeding, triton
from scripts.benchmark.contestants import CONTESTANTS, REFERENCE, Contestant, Device, choose
from scripts.benchmark.gpu import gpu_name
from scripts.benchmark.measure import Accuracy, Race, accuracy, race, round_up, timings
from scripts.benchmark.plot import plot, require_matplotlib
from scripts.benchmark.prepare import Prepared, prepare
from scripts.benchmark.report import Report, Skipped, as_json, as_markdown, machine
from scripts.benchmark.runners import Job
from scripts.benchmark.worker import Refused, Worker, in_a_process, started

SECONDS_BETWEEN_LINES = 10.0
MAX_ROUNDS = 10_000
MAX_BATCH = 1024


def parser() -> Parser:
    """The command line."""
    names = ", ".join(contestant.name for contestant in CONTESTANTS)
    options = Parser(
        prog="scripts/bench",
        description="Time ITAE's models beside what a user would have: interleaved, warm, every contestant equally "
        "often in every place, each compared with eager PyTorch first. Markdown on stdout, progress on stderr. With an "
        "NVIDIA GPU, its contestants race too. `scripts/bench embed --help`: what reading and decoding add to that. "
        "`scripts/bench cpp --help`: the same in C++. `scripts/bench bf16 --help`: bf16 on a CPU, and how far from the "
        "limit. `scripts/bench int8 --help`: int8 beside bf16. "
        "`scripts/bench foreign --help`: other people's files with ITAE. "
        "`scripts/bench calibrate --help`: what a calibration's settings add to a pass of the model. "
        "`scripts/bench cluster --help`: k-means beside other libraries'. `scripts/bench seeding --help`: its start. "
        "`scripts/bench dedup --help`: near-duplicates, in time, memory and recall. "
        "`scripts/bench triton --help`: a model in Triton beside the direct call. "
        "`scripts/bench ray --help`: what Ray adds to `embed`.",
    )
    options.add_argument(
        "--sizes", default="vits14,vitb14", help="of the model, comma-separated (default: %(default)s)"
    )
    options.add_argument("--batch", default="1,8", help="images a run, comma-separated (default: %(default)s)")
    options.add_argument(
        "--rounds", default="24", help="runs of each contestant; rounded up to whole cycles of orders (default: 24)"
    )
    options.add_argument("--contestants", help=f"only these, and the reference: comma-separated, of {names}")
    options.add_argument("--json", metavar="FILE", help="write every time there too; `-`: to stdout, without the table")
    options.add_argument("--plot", metavar="FILE", type=Path, help="draw the ratios as a PNG; FILE-cuda.png for a GPU")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code: 1 where a contestant was refused as another model."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["embed"]:
        return run("bench", lambda: embed.bench(words[1:]))
    if words[:1] == ["bf16"]:
        return run("bench", lambda: bf16.bench(words[1:]))
    if words[:1] == ["int8"]:
        return run("bench", lambda: int8.bench(words[1:]))
    if words[:1] == ["foreign"]:
        return run("bench", lambda: foreign.bench(words[1:]))
    if words[:1] == ["calibrate"]:
        return run("bench", lambda: calibrate.bench(words[1:]))
    if words[:1] == ["cpp"]:
        return run("bench", lambda: cpp.bench(words[1:]))
    if words[:1] == ["seeding"]:
        return run("bench", lambda: seeding.bench(words[1:]))
    if words[:1] == ["dedup"]:
        return run("bench", lambda: dedup.bench(words[1:]))
    if words[:1] == ["triton"]:
        return run("bench", lambda: triton.bench(words[1:]))
    if words[:1] == ["ray"]:
        return run("bench", lambda: by_ray.bench(words[1:]))
    if words[:1] == ["cluster"]:
        return run("bench", lambda: cluster.bench(words[1:]))
    return run("bench", lambda: _bench(words))


def _bench(argv: Sequence[str] | None) -> int:
    given = parser().parse_args(argv)
    sizes = [architecture(size) for size in given.sizes.split(",")]
    batches = _numbers("--batch", given.batch, MAX_BATCH)
    (rounds,) = _numbers("--rounds", given.rounds, MAX_ROUNDS, count=1)
    names = given.contestants.split(",") if given.contestants else None
    teams = {device: choose(names, device) for device in _devices()}
    for file in (given.plot, Path(given.json) if given.json not in (None, "-") else None):
        if file is not None and not file.parent.is_dir():
            raise OutputFileError(f"can't write {file}: there is no folder {file.parent}; make it first")
    if given.plot:
        require_matplotlib()
    found: list[Race] = []
    skipped: list[Skipped] = []
    for arch in sizes:
        for device, team in teams.items():
            found += races(arch, device, team, batches, rounds, skipped)
    here = machine(cores(), gpu_name() if "cuda" in teams else None)
    report = Report(here, rounds, tuple(found), tuple(skipped))
    _write(report, given.json, given.plot)
    wrong = [one for one in skipped if one.reason.startswith("wrong")]
    if wrong:
        raise CheckError(f"{wrong[0].name} at {wrong[0].size} was not timed: {wrong[0].reason}")
    return 0


def races(
    arch: Architecture,
    device: Device,
    team: Sequence[Contestant],
    batches: Sequence[int],
    rounds: int,
    skipped: list[Skipped],
) -> list[Race]:
    """Prepare, load and check a team at one size, then a race for each batch.

    Raises:
        CheckError: the reference itself can't run.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="itae-bench-")))
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        _say(f"{arch.name}: exporting what the {device} contestants run")
        prepared = in_a_process(prepare, arch, tuple(team), folder)
        workers: dict[str, Worker] = {}
        accuracies: dict[str, Accuracy] = {}
        for contestant in team:
            try:
                worker, found = _entered(stack, arch, contestant, prepared[contestant.name])
            except Refused as refused:
                skipped.append(Skipped(arch.name, contestant.name, str(refused)))
                _say(f"{arch.name}: {contestant.name} is left out: {refused}")
                continue
            workers[contestant.name], accuracies[contestant.name] = worker, found
        reference = REFERENCE[device]
        finished: list[Race] = []
        for batch in batches:
            if reference not in workers:
                raise CheckError(f"the reference {reference} can't run: {skipped[-1].reason}")
            _warm(arch, batch, workers, prepared, skipped)
            count = round_up(rounds, len(workers))
            seconds = race(list(workers.values()), count, _progress(f"{arch.name}, batch {batch}, {device}", count))
            finished.append(Race(arch.name, batch, device, reference, timings(seconds, reference, batch, accuracies)))
    return finished


def _entered(
    stack: contextlib.ExitStack, arch: Architecture, contestant: Contestant, prepared: Prepared
) -> tuple[Worker, Accuracy]:
    """A loaded worker whose embeddings are right.

    Raises:
        Refused: it can't be loaded, or is another model.
    """
    if prepared.check is None:
        raise Refused(prepared.reason)
    start = time.monotonic()
    worker = stack.enter_context(started(Job(contestant, arch, prepared.path, cores())))
    version = worker.load()
    found = accuracy(contestant, worker.embed(prepared.check.images), prepared.check)
    _say(f"{arch.name}: {contestant.name}, {version}: max abs {found.max_abs:.1e} ({time.monotonic() - start:.0f} s)")
    return worker, found


def _warm(
    arch: Architecture,
    batch: int,
    workers: dict[str, Worker],
    prepared: dict[str, Prepared],
    skipped: list[Skipped],
) -> None:
    """Give every worker the same batch; one that fails is left out from here on."""
    check = prepared[next(iter(workers))].check
    assert check is not None
    images = check.images[[index % len(check.images) for index in range(batch)]]
    for name, worker in list(workers.items()):
        try:
            worker.warm(images)
        except Refused as refused:
            if name in REFERENCE.values():
                raise CheckError(f"the reference {name} failed at batch {batch}: {refused}") from refused
            skipped.append(Skipped(arch.name, name, f"at batch {batch}: {refused}"))
            del workers[name]


def _write(report: Report, json_file: str | None, png: Path | None) -> None:
    if json_file == "-":
        print(as_json(report))
    else:
        print(as_markdown(report))
        if json_file:
            try:
                Path(json_file).write_text(as_json(report) + "\n", encoding="utf-8")
            except OSError as error:
                raise OutputFileError(f"can't write {json_file}: {error}") from error
    if png is not None:
        here = report.machine
        on_cpu = [one for one in report.races if one.device == "cpu"]
        plot(on_cpu, f"{here['cpu']}, {here['threads']} threads, float32", png)
        on_gpu = [one for one in report.races if one.device == "cuda"]
        if on_gpu:
            plot(on_gpu, f"{here['gpu']}, half precision", png.with_stem(f"{png.stem}-cuda"))


def _devices() -> list[Device]:
    try:
        require_gpu("bench")
    except BackendError:
        return ["cpu"]
    return ["cpu", "cuda"]


def cores() -> int:
    """Physical cores that this process may use: the threads that ONNX Runtime takes by default, so all get as many."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            return len(allowed)
    return len(cores)


def _numbers(option: str, text: str, most: int, count: int | None = None) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts) or (
        count is not None and len(parts) != count
    ):
        what = "a number" if count == 1 else "numbers"
        raise UsageError(f"{option} {text}: must be {what} from 1 to {most}")
    return [int(part) for part in parts]


def _progress(what: str, total: int) -> Callable[[int], None]:
    """Return a function that reports the progress of a race from time to time."""
    start = last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total:
            _say(f"{what}: {total} rounds in {now - start:.0f} s")
        elif now - last >= SECONDS_BETWEEN_LINES:
            last = now
            _say(f"{what}: round {done} of {total}, {(now - start) / done * (total - done):.0f} s to go")

    return tell


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
