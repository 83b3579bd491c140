"""`python -m runtime triton`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from runtime.backends.compute import COMPUTES, resolve_compute
from runtime.commands import options
from runtime.contract.console import text
from runtime.contract.errors import UsageError
from runtime.images.options import add_sixteen_bit

if TYPE_CHECKING:
    from runtime.contract.manifest import Manifest

WHAT = "write a model repository for NVIDIA Triton"
EXAMPLES = """examples:
  %(prog)s itae.onnx --out repository/
  %(prog)s itae.onnx --out repository/ --centroids clusters/
  %(prog)s itae.engine --out repository/ --instances 2 --queue-delay 2
  %(prog)s itae-2.onnx --out repository/ --name itae

Each MODEL becomes two models of Triton: NAME takes what the model itself takes, NAME_images takes JPEG, PNG and so on
and gives the embedding and, with --centroids, the cluster. A model that is there already gets a new version beside the
older ones. `scripts/serve repository/` starts a server with it on this machine's CPU."""

_BACKENDS = ("auto", "python", "onnxruntime", "tensorrt")
_PROVIDERS = ("cpu", "openvino")
_MAX_BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", type=options.path, help="X.onnx or X.engine, its manifest beside it"
    )
    parser.add_argument(
        "--out", metavar="REPO", type=options.path, required=True, help="model repository; made if need be"
    )
    parser.add_argument(
        "--name", metavar="NAME", type=text, help="name of the model in Triton, of one MODEL (default: its file's name)"
    )
    parser.add_argument(
        "--centroids",
        metavar="CLUSTERS",
        type=options.path,
        help="result of `cluster` for embeddings of MODEL: NAME_images also gives the nearest cluster and its distance",
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        default="auto",
        help="what runs the model in Triton: python is this package on the CPU; onnxruntime and tensorrt are Triton's "
        "own, on GPUs; auto is tensorrt for engines and python for ONNX (default: %(default)s)",
    )
    parser.add_argument(
        "--provider",
        choices=_PROVIDERS,
        help="of --backend python: what runs the model; cpu is ONNX Runtime (default: cpu)",
    )
    parser.add_argument(
        "--compute",
        choices=COMPUTES,
        help=f"of --backend python: {options.COMPUTE} (default: the precision of its file)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="of --backend python: threads that each instance computes with (default: its share of the cores)",
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=int,
        help=f"most images in a batch (default: {_MAX_BATCH}, or what the engine takes)",
    )
    parser.add_argument(
        "--queue-delay",
        metavar="MS",
        type=float,
        default=1.0,
        help="milliseconds that a request may wait for others to share a batch with it (default: 1)",
    )
    parser.add_argument(
        "--instances",
        metavar="N",
        type=int,
        default=1,
        help="copies of the model, on the CPU or on each GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus", metavar="LIST", type=text, help="numbers of the GPUs, as 0,1 (default: all that Triton sees)"
    )
    parser.add_argument(
        "--versions",
        metavar="N",
        type=int,
        default=1,
        help="newest versions that are served at a time (default: %(default)s)",
    )
    parser.add_argument("--max-pixels", metavar="N", type=int, help="larger images are refused (default: 178,956,970)")
    add_sixteen_bit(parser)
    parser.add_argument("--json", action="store_true", help="print the models and versions as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the repository; returns the exit code.

    Raises:
        UsageError: an option has no meaning, or a model does not fit what is there.
        ManifestError, InputError: a model or the centroids are missing, altered or too new.
        BackendError: package tritonclient is missing.
        OutputFileError: the repository can't be written.
    """
    for name, least, most in (
        ("max_batch", 1, 1 << 16),
        ("instances", 1, 64),
        ("versions", 1, 64),
        ("threads", 1, 1024),
        ("max_pixels", 1, 1 << 40),
    ):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be from {least} to {most}")
    if not 0 <= arguments.queue_delay <= 10_000:
        raise UsageError(f"--queue-delay {arguments.queue_delay}: must be from 0 to 10000 milliseconds")
    for name in ("name", "centroids"):
        if getattr(arguments, name) is not None and len(arguments.models) > 1:
            raise UsageError(f"--{name} is for one MODEL: write one at a time")
    from runtime.contract.manifest import read_manifest
    from runtime.images.decode import MAX_PIXELS
    from runtime.serving import repository
    from runtime.serving.model_config import ServingOptions, import_messages

    def options_of(manifest: Manifest) -> ServingOptions:
        backend = arguments.backend
        if backend == "auto":
            backend = "tensorrt" if manifest.builder.name == "tensorrt" else "python"
        gpus = _gpus(arguments.gpus)
        if gpus and backend == "python":
            raise UsageError(
                f"--gpus {arguments.gpus}: --backend python runs on the CPU; take onnxruntime, or an engine"
            )
        largest = (
            manifest.options.batch[2] if manifest.options.batch is not None and backend == "tensorrt" else _MAX_BATCH
        )
        max_batch = arguments.max_batch or largest
        settings = _settings(arguments, manifest, backend)
        return ServingOptions(
            backend, max_batch, arguments.queue_delay, arguments.instances, gpus, arguments.versions, settings
        )

    import_messages()  # before models are read
    sources = [
        repository.read_source(path, arguments.name, arguments.centroids, options_of(read_manifest(path)))
        for path in arguments.models
    ]
    published = repository.publish(sources, arguments.out, arguments.max_pixels or MAX_PIXELS, arguments.sixteen_bit)
    if arguments.json:
        models = [
            {"name": one.name, "version": one.version, "new": one.is_new, "backend": one.backend} for one in published
        ]
        sys.stdout.write(json.dumps({"repository": str(arguments.out), "models": models}, indent=2) + "\n")
    else:
        for one in published:
            sys.stdout.write(
                f"{arguments.out / one.name}: version {one.version}{'' if one.is_new else ', as it was'}\n"
            )
    return 0


def _settings(arguments: argparse.Namespace, manifest: Manifest, backend: str) -> dict[str, str]:
    """The parameters of a model of backend python that are not the usual ones.

    Raises:
        UsageError: they are for another backend, or the model can't compute so.
    """
    from runtime.serving.model_config import COMPUTE, PROVIDER, THREADS

    for name in (PROVIDER, COMPUTE, THREADS):
        if backend != "python" and getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is for --backend python, not {backend}")
    provider = arguments.provider or "cpu"
    compute = resolve_compute(manifest, provider, arguments.compute)
    return {
        **({PROVIDER: provider} if provider != "cpu" else {}),
        **({COMPUTE: compute} if compute != manifest.options.precision else {}),
        **({THREADS: str(arguments.threads)} if arguments.threads is not None else {}),
    }


def _gpus(listed: str | None) -> tuple[int, ...]:
    """The numbers of --gpus.

    Raises:
        UsageError: they are no list of numbers.
    """
    parts = [] if listed is None else listed.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) < 1024 for part in parts) or len({*parts}) < len(parts):
        raise UsageError(f"--gpus {listed}: must be different numbers, as 0,1")
    return tuple(map(int, parts))
