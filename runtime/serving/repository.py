"""A model repository for Triton: a model that takes its own input, and beside it one that takes encoded images.

    REPO/itae/config.pbtxt                      takes (n, H, W, 3) uint8, or (n, 3, H, W) float32, as the model does
    REPO/itae/warmup/golden_sample
    REPO/itae/1/model.onnx, model.onnx.json...  the model, its manifest and golden sample; model.py for Python
    REPO/itae_images/config.pbtxt               takes JPEG, PNG and so on
    REPO/itae_images/1/images.json, model.py    and centroids.npy, if there are clusters

A version is written once and never changed; it appears by one rename, finished and checked. A model that is there gets
a new version beside the older ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.clustering import assign
from runtime.clustering.assign import OldClusters
from runtime.clustering.results import CENTROIDS
from runtime.contract.atomic import alone_in, cannot_write, sync_file, sync_folder, work_folder, write_atomically
from runtime.contract.errors import ManifestError, OutputFileError, UsageError, one_line
from runtime.contract.golden import Golden, read_golden
from runtime.contract.manifest import Manifest, manifest_path, verified_manifest
from runtime.serving import images_record, model_config
from runtime.serving.images_record import ImagesRecord
from runtime.serving.model_config import WARMUP, ServingOptions
from runtime.serving.tensor_model import MODEL_FILE

CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_IMAGES = "_images"
_MAX_CONFIG_BYTES = 1 << 20
_PROGRAM = """# Written by `python -m runtime triton`, for Triton's Python backend.
try:
    from runtime.serving.{module} import TritonPythonModel
except ImportError as error:
    text = "the Python that Triton runs lacks a package: install itae there, with its extra cpu"
    raise ImportError(f"{{text}} ({{error}})") from error

__all__ = ["TritonPythonModel"]
"""


@dataclass(frozen=True)
class Source:
    """A model that was read and checked, on its way into a repository."""

    path: Path
    name: str
    """Its name in Triton."""
    manifest: Manifest
    golden: Golden
    clusters: OldClusters | None
    options: ServingOptions


@dataclass(frozen=True)
class Published:
    """A version of a model in a repository."""

    name: str
    version: int
    is_new: bool
    """False if this version was there already, and is the same."""
    backend: str


def read_source(path: Path, name: str | None, centroids: Path | None, options: ServingOptions) -> Source:
    """Read and check a model, and the clusters that belong to it.

    Args:
        path: the model, its manifest and golden sample beside it.
        name: its name in Triton; that of the file without its suffix if None.
        centroids: a result of `cluster`, or its `centroids.npy`; None for no clusters.
        options: how Triton runs the model.

    Raises:
        UsageError: the name is none that Triton takes, the model can't be run by `options.backend` or has no embedding,
            or the clusters are of another model.
        ManifestError: the model, its external data, golden sample or manifest is missing, altered or too new.
        InputError: the centroids can't be read.
    """
    manifest = verified_manifest(path)
    name = path.stem if name is None else name
    if not _NAME.fullmatch(name) or name.endswith(_IMAGES):
        raise UsageError(
            f"{name!r} can't be a model's name in Triton: take letters, digits, `_`, `-` and `.`, and not {_IMAGES} at "
            "its end; give it another by --name"
        )
    _check_backend(path, manifest, options)
    if "embedding" not in manifest.output_names():
        raise UsageError(f"{path} has no `embedding` output: export it with --outputs embedding")
    golden = read_golden(path, manifest)
    clusters = None if centroids is None else assign.load(centroids)
    if clusters is not None:
        _check_clusters(path, manifest, clusters)
    return Source(path, name, manifest, golden, clusters, options)


def _check_backend(path: Path, manifest: Manifest, options: ServingOptions) -> None:
    builder, backend = manifest.builder.name, options.backend
    if builder == "tensorrt-rtx":
        raise UsageError(
            f"{path} is an engine of TensorRT-RTX, for which Triton has no backend: export it as .onnx, or by TensorRT"
        )
    if (backend == "tensorrt") != (builder == "tensorrt"):
        kind = "an engine of TensorRT" if builder == "tensorrt" else "an ONNX model"
        raise UsageError(f"--backend {backend}: {path} is {kind}")
    first = manifest.input.shape[0]
    if isinstance(first, int) and backend != "python":
        raise UsageError(f"{path} takes {first} images at a time, no fewer: take --backend python")
    if backend != "tensorrt" or manifest.options.batch is None:
        return
    smallest, _, largest = manifest.options.batch
    if smallest > 1:
        raise UsageError(
            f"{path} takes {smallest} images or more, and Triton gives single ones too: build it with --batch 1,..."
        )
    if options.max_batch > largest:
        raise UsageError(f"--max-batch {options.max_batch}: {path} takes {largest} at most")


def _check_clusters(path: Path, manifest: Manifest, clusters: OldClusters) -> None:
    if (width := clusters.centroids.shape[1]) != manifest.embedding_width:
        raise UsageError(
            f"--centroids {clusters.path} has width {width}, the embeddings of {path} {manifest.embedding_width}"
        )
    if clusters.model_sha256 not in (None, manifest.files.model.sha256):
        raise UsageError(
            f"--centroids {clusters.path} is of embeddings by another model than {path}: cluster those of this one"
        )


def publish(sources: list[Source], out: Path, max_pixels: int, sixteen_bit: str) -> list[Published]:
    """Write models into a repository, each as a new version unless its newest is the same.

    Args:
        sources: from `read_source`, of different names.
        out: the repository; made if need be.
        max_pixels: larger pictures are refused.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.

    Raises:
        UsageError: a model of that name is there that we did not write, or that clients would find changed; or two have
            one name.
        OutputFileError: a file can't be written; what was there is as before.
        ManifestError: a copy is not as its source.
    """
    names = [one.name for one in sources]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two models are called {doubled}: write one at a time, with --name")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    if not out.is_dir():
        raise UsageError(f"--out {out} is no folder: give it another name")
    published: list[Published] = []
    with alone_in(out, "run"), work_folder(beside=out) as work:
        for source in sources:  # nothing is written before all of them are known to fit
            for target in _targets(source, out):
                target.check()
        for source in sources:
            tensor, images = _targets(source, out)
            tensor_version = tensor.published(work, lambda folder, source=source: _fill_tensor(folder, source))
            record = _record(source, tensor_version.version, max_pixels, sixteen_bit)
            images_version = images.published(
                work, lambda folder, source=source, record=record: _fill_images(folder, source, record)
            )
            published += [tensor_version, images_version]
    return published


def _targets(source: Source, out: Path) -> tuple[_Target, _Target]:
    options, manifest = source.options, source.manifest
    name, images = source.name, f"{source.name}{_IMAGES}"
    tensor_config = model_config.tensor_config(name, manifest, options, _file(manifest))
    images_config = model_config.images_config(images, manifest, options, has_clusters=source.clusters is not None)
    golden = source.golden.input[0].tobytes()
    return _Target(out / name, tensor_config, {WARMUP: golden}), _Target(out / images, images_config, {})


def _file(manifest: Manifest) -> str:
    return MODEL_FILE[manifest.builder.name]


class _Target:
    """A model's folder in the repository, and what is to be in it."""

    def __init__(self, folder: Path, config: Any, warmup: dict[str, bytes]) -> None:  # noqa: ANN401
        self._folder, self._config, self._warmup = folder, config, warmup

    def check(self) -> None:
        """Check that a new version fits the model that is there.

        Raises:
            UsageError: what is there is not ours, or clients would find it changed.
        """
        there = self._there()
        if there is None:
            return
        if model_config.kind_of(there) != model_config.kind_of(self._config):
            raise UsageError(f"{self._folder} is of another program than `triton`: give the model another --name")
        before, now = _interface(there), _interface(self._config)
        if there.backend != self._config.backend or not before.items() <= now.items():
            changed = sorted(name for name, what in before.items() if now.get(name) != what) or ["backend"]
            raise UsageError(
                f"{self._folder} is served with another {', '.join(changed)}, which all versions of a model share: "
                "give this one another --name"
            )

    def _there(self) -> Any:  # noqa: ANN401
        """The configuration that is there; None if there is no folder.

        Raises:
            UsageError: it can't be read.
        """
        if not self._folder.exists():
            return None
        path = self._folder / CONFIG
        try:
            with path.open("rb") as file:
                return model_config.parse(file.read(_MAX_CONFIG_BYTES))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            raise UsageError(
                f"{path} can't be read ({reason}): give the model another --name, or remove {self._folder}"
            ) from error

    def published(self, work: Path, fill: Any) -> Published:  # noqa: ANN401  # a function of a folder
        """Write the new version, if the newest is another; then the configuration.

        Raises:
            OutputFileError: it can't be written.
            ManifestError: a copy is not as its source.
        """
        name = self._folder.name
        fresh = work / name
        newest = max(versions(self._folder), default=0)
        is_known = self._folder.exists()
        with _written(self._folder):
            fresh.mkdir()
            (fresh / "version").mkdir()
            fill(fresh / "version")
            is_new = not newest or _digest(fresh / "version") != _digest(self._folder / str(newest))
            version = newest + is_new
            if not is_known:
                (fresh / "version").rename(fresh / str(version))
                (fresh / CONFIG).write_bytes(model_config.as_text(self._config))
                for file, data in self._warmup.items():
                    (fresh / "warmup").mkdir(exist_ok=True)
                    (fresh / "warmup" / file).write_bytes(data)
                _sync(fresh)
                fresh.rename(self._folder)
                sync_folder(self._folder.parent)
            elif is_new:
                _sync(fresh / "version")
                (fresh / "version").rename(self._folder / str(version))
                sync_folder(self._folder)
        if is_known:
            for file, data in self._warmup.items():
                _replace(self._folder / "warmup" / file, data)
            _replace(self._folder / CONFIG, model_config.as_text(self._config))
        return Published(name, version, is_new, self._config.backend)


def versions(folder: Path) -> list[int]:
    """The versions of a model in its folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(one.name) for one in folder.iterdir() if one.is_dir() and re.fullmatch("[1-9][0-9]*", one.name))


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except shutil.Error as error:
        raise OutputFileError(f"can't write {folder}: {one_line(error)}") from error
    except OSError as error:
        raise cannot_write(folder, error) from error


def _replace(path: Path, data: bytes) -> None:
    """Write a file unless it is there with the same content: Triton loads a model again whose files are newer."""
    try:
        if path.read_bytes() == data:
            return
        path.parent.mkdir(exist_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise cannot_write(path, error) from error
    write_atomically(path, data)


def _interface(config: Any) -> dict[str, tuple[Any, ...]]:  # noqa: ANN401
    """Type and shape of inputs and outputs, by what and name."""
    found = {f"input `{one.name}`": (one.data_type, *one.dims) for one in config.input}
    return {**found, **{f"output `{one.name}`": (one.data_type, *one.dims) for one in config.output}}


def _fill_tensor(folder: Path, source: Source) -> None:
    """Copy a model with all that belongs to it, and check the copy."""
    files = source.manifest.files
    model = folder / _file(source.manifest)
    for origin, copy in (
        (source.path, model),
        (manifest_path(source.path), manifest_path(model)),
        (source.path.with_name(files.parity.name), folder / files.parity.name),
    ):
        shutil.copyfile(origin, copy)
    if files.external_data is not None:
        shutil.copyfile(source.path.with_name(files.external_data.name), folder / files.external_data.name)
    if source.options.backend == "python":
        _write_program(folder, "tensor_model")
    if verified_manifest(model) != source.manifest:  # the model may have been exchanged meanwhile
        raise ManifestError(f"{source.path} changed while it was copied: run the same command again")
    read_golden(model, source.manifest)


def _record(source: Source, version: int, max_pixels: int, sixteen_bit: str) -> ImagesRecord:
    manifest, clusters = source.manifest, source.clusters
    (output,) = [one for one in manifest.outputs if one.name == "embedding"]
    return ImagesRecord.model_validate(
        {
            "model": source.name,
            "version": version,
            "sha256": manifest.files.model.sha256,
            "max_batch": source.options.max_batch,
            "input": manifest.input.name,
            "output": output.name if source.options.backend == "python" else output.name_in_file,
            "preprocessing": manifest.preprocessing,
            "max_pixels": max_pixels,
            "sixteen_bit": sixteen_bit,
            "metric": None if clusters is None else clusters.metric or "cosine",
            "centroids_sha256": None if clusters is None else hashlib.sha256(_npy(clusters)).hexdigest(),
        }
    )


def _fill_images(folder: Path, source: Source, record: ImagesRecord) -> None:
    if source.clusters is not None:
        (folder / CENTROIDS).write_bytes(_npy(source.clusters))
    (folder / images_record.FILE).write_bytes(record.to_json())
    _write_program(folder, "images_model")


def _write_program(folder: Path, module: str) -> None:
    (folder / "model.py").write_text(_PROGRAM.format(module=module))
    # Python would write a folder of this name when it runs the program, and a server that polls would load it again.
    (folder / "__pycache__").write_text("This file is in the place of a folder, so that nothing is written here.\n")


def _npy(clusters: OldClusters) -> bytes:
    import io

    import numpy as np

    sink = io.BytesIO()
    np.save(sink, clusters.centroids, allow_pickle=False)
    return sink.getvalue()


def _digest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a version."""
    found = {}
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _sync(folder: Path) -> None:
    """Make all files in a folder durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                sync_file(file.fileno(), path)
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
