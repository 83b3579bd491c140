"""`python -m runtime embed`: images -> model -> folder of embeddings."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runtime.backends import resolve_provider, uses_gpu
from runtime.backends.compute import resolve_compute
from runtime.commands import options
from runtime.contract.console import add_threads, text
from runtime.contract.errors import CheckError, UsageError, plain
from runtime.contract.machine import usable_cores
from runtime.images.options import add_image_column, add_selection, add_sixteen_bit

if TYPE_CHECKING:
    from runtime.contract.manifest import Manifest
    from runtime.contract.progress import Progress
    from runtime.embedding.distributed import RayRun
    from runtime.embedding.embedder import Embedder, Outcome
    from runtime.sources import Sources
    from runtime.store.writer import StoreWriter

WHAT = "embed images into a folder of parquet files, or go on with one"
EXAMPLES = """examples:
  %(prog)s itae.onnx photos/ --out embeddings/
  %(prog)s itae.onnx cat.jpg more/ 'shard-{000..099}.tar' --out embeddings/ --batch 32
  %(prog)s itae.engine s3://bucket/photos/ --out embeddings/ --devices 0,1 --max-failures 0.01
  %(prog)s itae.onnx photos/ --out embeddings/ --exclude 'thumbs/' --exclude '*_small.*' --follow-links
  %(prog)s itae.onnx train.parquet --image-column front --key-column id --out embeddings/
  %(prog)s itae.onnx microscope/ --out embeddings/ --sixteen-bit auto
  %(prog)s itae.onnx photos/ --out embeddings/ --threads 4
  %(prog)s itae.engine 'shard-{000..999}.tar' --out embeddings/ --ray auto
  find photos -name '*.jpg' -print0 | %(prog)s itae.onnx - --out embeddings/

IMAGES are image files; folders, searched through; lists of paths (LIST.txt, LIST.parquet, or - for standard input),
relative to the current folder; WebDataset tars; parquet with images (Hugging Face, Spark); or any of these as a URL
(s3://, gs://, hf://). JPEG, PNG, WebP, BMP, TIFF, GIF and AVIF are read, HEIC with pillow-heif (the extra `heif`).

In a folder or tar, a file is an image by its ending, or by its content if its ending says nothing. Passed over, and
counted by reason: other kinds of files; hidden files and folders, and those of systems (._*, Thumbs.db, @eaDir,
__MACOSX ...); links to folders, unless --follow-links. A PATTERN is as in a shell, but * stands for slashes too.
Without a slash it is compared with the names of files and of the folders above them, with one (a/b*) with the path
below IMAGES; thumbs/ means folders only. Files that are named themselves, or by a list, are always read.

DIR gets part-00000.parquet and so on (root, path, embedding), _store.json, and _errors.jsonl with what could not be
read. pandas.read_parquet("DIR") reads it. Rows are on disk after 256 images or 30 seconds. The same command again goes
on where a run ended, however it ended: images that are in the store are skipped, others embedded, those that failed
tried again.

exit code: 0 if any image of those found is embedded, 1 if none is or more than --max-failures failed, 2 for bad use"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        type=text,
        help="files, folders, lists, tars, parquet, URLs, or -",
    )
    parser.add_argument("--out", metavar="DIR", type=options.path, required=True, help="folder for the embeddings")
    parser.add_argument("--batch", metavar="N", type=int, help="images to run at a time (default: 8; an engine's own)")
    options.add_provider(parser)
    parser.add_argument(
        "--devices",
        metavar="LIST",
        type=_devices,
        help="one worker process for each: numbers of GPUs as in 0,1, or cpu (default: this process, one device)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=_positive, help="threads that decode images, per device (default: the cores)"
    )
    parser.add_argument(
        "--max-failures",
        metavar="SHARE",
        type=_share,
        help="stop with exit code 1 if a larger share of the images fails, as 0.01",
    )
    parser.add_argument(
        "--max-pixels", metavar="N", type=_positive, help="larger images are not decoded (default: 178,956,970)"
    )
    parser.add_argument(
        "--draft",
        action="store_true",
        help="decode JPEGs of at least four times the size that they are resized to at a half, a quarter or an eighth "
        "of it, which takes less time and moves pixels a little; rows with and without it don't mix",
    )
    add_sixteen_bit(parser)
    add_selection(parser)
    add_image_column(parser)
    parser.add_argument(
        "--key-column",
        metavar="NAME",
        type=text,
        help="column of parquet files whose value is added to an image's path in the store, which is then ROW/VALUE "
        "(default: the path that lies beside the image's bytes, as Hugging Face and Spark write it)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        type=text,
        help="Ray does the work, on all machines of a cluster: auto or HOST:PORT, or local to start Ray here "
        "(the extra `ray`)",
    )
    options.add_images_root(parser, "when a run goes on after its images were moved")
    options.add_no_verify_hash(parser)
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Embed `arguments.images` into `arguments.out`; returns the exit code.

    Raises:
        ItaeError: see `runtime.embedding.embedder.embed_sources`; rows that were embedded before are in the store.
    """
    from runtime.backends.session import check_names
    from runtime.contract.manifest import read_manifest
    from runtime.contract.progress import progress
    from runtime.embedding.embedder import embed_sources
    from runtime.embedding.stream import silence_pillow
    from runtime.images.decode import MAX_PIXELS
    from runtime.sources import Columns, Selection, open_sources
    from runtime.store.origin import origin_of
    from runtime.store.writer import open_writer

    silence_pillow()
    start = time.monotonic()
    _check_ray(arguments)
    max_pixels = arguments.max_pixels or MAX_PIXELS
    manifest = read_manifest(arguments.model)  # its files are checked where they are loaded
    check_names(manifest, ["embedding"])
    arguments = _settled(arguments, manifest)
    provider, devices = _placed(arguments, manifest)
    compute = resolve_compute(manifest, provider, arguments.compute)
    with open_writer(
        arguments.out, origin_of(manifest, provider, arguments.sixteen_bit, compute, draft=arguments.draft)
    ) as writer:
        moved = options.moved(arguments, writer.stored_images)
        columns = Columns(arguments.image_column, arguments.key_column)
        sources = open_sources(
            arguments.images, selection=Selection.from_arguments(arguments), max_pixels=max_pixels, columns=columns
        )
        how = {"max_failures": arguments.max_failures, "moved": moved}
        by_ray: RayRun | None = None
        try:
            with progress(sources.total) as shown:
                if arguments.ray:
                    outcome, by_ray = _embed_by_ray(arguments, provider, sources, writer, shown, **how)
                else:
                    with _embedder(arguments, provider, devices) as embed:
                        outcome = embed_sources(embed, sources, writer, shown, **how)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command goes on with what is in {arguments.out}") from None
    return _report(arguments, outcome, time.monotonic() - start, by_ray)


def _check_ray(arguments: argparse.Namespace) -> None:
    """Check that Ray is installed if it is asked for, and that nothing is asked for that Ray decides.

    Raises:
        BackendError: it is not installed.
        UsageError: --devices or --workers is given.
    """
    if arguments.ray is None:
        return
    from runtime.contract.ray_cluster import require_ray

    for option in ("devices", "workers"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} is not for --ray: Ray takes all GPUs, or all cores, of its machines")
    require_ray("--ray")


def _embed_by_ray(
    arguments: argparse.Namespace,
    provider: str,
    sources: Sources,
    writer: StoreWriter,
    shown: Progress,
    **how: Any,  # noqa: ANN401  # as `embed_by_ray`
) -> tuple[Outcome, RayRun]:
    from runtime.contract.machine import thread_limit
    from runtime.contract.ray_cluster import LOCAL
    from runtime.embedding.distributed import embed_by_ray
    from runtime.embedding.workers import WorkerOptions
    from runtime.images.decode import MAX_PIXELS

    worker = WorkerOptions(
        arguments.model.resolve(),
        provider,
        arguments.compute,
        options.verify_hash(arguments),
        arguments.batch,
        workers=1,
        threads=None if uses_gpu(provider) or arguments.ray != LOCAL else thread_limit(),
        max_pixels=arguments.max_pixels or MAX_PIXELS,
        sixteen_bit=arguments.sixteen_bit,
        draft=arguments.draft,
    )
    return embed_by_ray(arguments.ray, worker, sources, writer, arguments.out, shown, **how)


def _settled(arguments: argparse.Namespace, manifest: Manifest) -> argparse.Namespace:
    """Return the options with what `bench --tune` chose in the place of --provider tuned.

    Batch size and number of sessions are the chosen ones too, unless --batch or --devices says otherwise.

    Raises:
        InputError, UsageError: as `runtime.backends.tuned.settled`.
    """
    from runtime.backends.tuned import settled

    provider, compute, choice = settled(arguments.model, manifest, arguments.provider, arguments.compute)
    if choice is None:
        return arguments
    streams = f"{choice.streams} stream{'s' * (choice.streams > 1)}"
    sys.stderr.write(f"tuned: {choice.provider}, {choice.compute}, batch {choice.batch}, {streams}\n")
    devices = [None] * choice.streams if choice.streams > 1 else None
    return argparse.Namespace(
        **{
            **vars(arguments),
            "provider": provider,
            "compute": compute,
            "batch": choice.batch if arguments.batch is None else arguments.batch,
            "devices": arguments.devices or devices,
        }
    )


def _placed(arguments: argparse.Namespace, manifest: Manifest) -> tuple[str, list[int | None]]:
    """Return the name in the store of what runs the model, and the devices (None: the CPU).

    Raises:
        UsageError: provider and devices contradict each other, or the model.
    """
    devices: list[int | None] = arguments.devices or [None]
    on_gpu = devices[0] is not None
    provider = resolve_provider(manifest, arguments.provider)
    if on_gpu and arguments.provider == "auto" and provider == "cpu":
        provider = "cuda"
    if arguments.devices and on_gpu != uses_gpu(provider):
        named = devices[0] if on_gpu else "cpu"
        place = "a GPU: give numbers of GPUs" if uses_gpu(provider) else "the CPU: give `cpu`, or --provider cuda"
        raise UsageError(f"--devices {named}: {provider} runs {arguments.model} on {place}")
    return provider, devices


@contextlib.contextmanager
def _embedder(arguments: argparse.Namespace, provider: str, devices: Sequence[int | None]) -> Iterator[Embedder]:
    """Load the model, in this process or in a worker process for each of several devices."""
    from runtime.backends import open_session
    from runtime.embedding.stream import embed_stream
    from runtime.images.decode import MAX_PIXELS

    verify = options.verify_hash(arguments)
    cores = usable_cores()
    how = {
        "batch": arguments.batch,
        "workers": arguments.workers or max(1, cores // len(devices)),
        "max_pixels": arguments.max_pixels or MAX_PIXELS,
        "sixteen_bit": arguments.sixteen_bit,
        "draft": arguments.draft,
    }
    if len(devices) > 1:
        from runtime.embedding.workers import WorkerOptions, device_workers

        threads = max(1, cores // len(devices)) if devices[0] is None else None
        worker_options = WorkerOptions(arguments.model, provider, arguments.compute, verify, threads=threads, **how)
        with device_workers(devices, worker_options) as workers:
            yield workers
        return
    session = open_session(
        arguments.model, provider, compute=arguments.compute, device=devices[0] or 0, verify_hash=verify
    )
    with contextlib.closing(session):
        yield functools.partial(embed_stream, session, **how)


def _report(arguments: argparse.Namespace, outcome: Outcome, seconds: float, by_ray: RayRun | None) -> int:
    """Print what was done; returns the exit code.

    Raises:
        CheckError: no image was embedded.
    """
    from runtime.contract.keys import location
    from runtime.sources.selection import as_line
    from runtime.store.records import file_names

    out = arguments.out
    if outcome.embedded + outcome.present == 0:
        first = outcome.first_failure
        where = f"; the first: {location(first.root, first.path)}: {first.error}" if first else ""
        raise CheckError(f"none of {outcome.failed} images could be embedded{where}")
    count = f"{outcome.embedded:,} image{'s' if outcome.embedded != 1 else ''}"
    lines = [f"embedded {count} into {out} in {seconds:.1f} s"]
    if outcome.present:
        lines.append(f"{outcome.present:,} were there already")
    if outcome.failed:
        lines.append(f"{outcome.failed:,} failed: see {out / file_names(out).errors}")
    lines += [f"{note.text}: {count:,}" for note, count in outcome.notes.items()]
    if outcome.skipped:
        lines.append(as_line(outcome.skipped))
    if outcome.missing:
        lines.append(
            f"{outcome.missing:,} images of the store were not found this time, their rows stay: "
            f"{', '.join(outcome.first_missing)}{' ...' if outcome.missing > len(outcome.first_missing) else ''}"
        )
    sys.stderr.write("".join(f"{plain(line)}\n" for line in lines))
    if arguments.json:
        counts = {name: getattr(outcome, name) for name in ("embedded", "present", "failed", "missing")}
        by_kind = {"skipped": dict(outcome.skipped), "notes": dict(outcome.notes)}
        summary = {"out": str(out), **counts, **by_kind, "seconds": round(seconds, 3)}
        if by_ray is not None:
            start = round(by_ray.start_seconds, 3)
            summary |= {"engine": "ray", "nodes": by_ray.nodes, "actors": by_ray.actors, "start_seconds": start}
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    return 0


def _devices(text: str) -> list[int | None]:
    names = text.split(",")
    if all(name == "cpu" for name in names):
        return [None] * len(names)
    if all(name.isascii() and name.isdigit() for name in names) and len(set(names)) == len(names):
        return [int(name) for name in names]
    raise argparse.ArgumentTypeError(f"{text!r}: give numbers of GPUs, each once, as in 0,1; or cpu,cpu")


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share from 0 to 1, as 0.01")
    return value
