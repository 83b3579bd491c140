"""`X.onnx.tuned.json`: how a model runs fastest on this machine, as `bench --tune` measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.contract.argument_types import as_text
from runtime.contract.atomic import write_atomically
from runtime.contract.driver import read_driver
from runtime.contract.errors import BackendError, InputError, UsageError
from runtime.contract.hashed_json import HashedJson
from runtime.contract.instructions import cpu_instructions, cpu_name
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest

TUNED = "tuned"
"""A name in the place of a provider: stands for the one that `bench --tune` chose, with its compute type."""
TUNED_FILE = HashedJson("choice of `bench --tune`", InputError, 1, format="itae-tuned")
MAX_BATCH = 1 << 16
MAX_STREAMS = 256
LIBRARIES = ("itae", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "numpy")
"""Packages whose version can change what is fastest, or what comes out."""


@dataclass(frozen=True)
class Choice:
    """The fastest way to run a model within a limit."""

    provider: str
    """As `resolve_provider` returns it."""
    compute: str
    batch: int
    """Number of images to run at a time."""
    streams: int
    """Number of sessions at the same time, which share the cores."""


def tuned_path(model: Path) -> Path:
    """Where the choice for `model` lies: `X.onnx` -> `X.onnx.tuned.json`."""
    return model.with_name(f"{model.name}.tuned.json")


def this_machine() -> dict[str, Any]:
    """Return what a choice depends on besides the model: the CPU, the cores of this process, GPUs, libraries."""
    try:
        gpus = [gpu.name for gpu in read_driver().gpus]
    except BackendError:
        gpus = []
    return {
        "cpu": cpu_name(),
        "instructions": list(cpu_instructions()),
        "cores": usable_cores(),
        "gpus": gpus,
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def write_tuned(
    model: Path, manifest: Manifest, choice: Choice, min_cosine: float, measured: Mapping[str, Any]
) -> Path:
    """Write the choice for this machine beside the model; returns where.

    Args:
        model: the model's file.
        manifest: its manifest.
        choice: what was fastest.
        min_cosine: smallest cosine to the golden sample that was allowed.
        measured: the figures, for people.

    Raises:
        OutputFileError: the file can't be written.
    """
    content = {
        "model": _model(manifest),
        "machine": this_machine(),
        "choice": asdict(choice),
        "min_cosine": min_cosine,
        "measured": measured,
    }
    path = tuned_path(model)
    write_atomically(path, TUNED_FILE.to_bytes(content, indent=1))
    return path


def read_tuned(model: Path, manifest: Manifest) -> Choice:
    """Read the choice for `model` on this machine.

    Raises:
        InputError: the file is damaged, or of a later version.
        UsageError: there is none, or it is of another machine, model or library.
    """
    path = tuned_path(model)
    again = f"run `python -m runtime bench {model} --tune`"
    try:
        fields = TUNED_FILE.read(path, again)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}, which the provider {TUNED} needs: {again}") from error
    found = {name: fields.get(name) for name in ("model", "machine")}
    for name, here in (("model", _model(manifest)), ("machine", this_machine())):
        if (there := found[name]) != here:
            raise UsageError(f"{path} is for another {name}: {_difference(there, here)}; {again}")
    return _choice(fields.get("choice"), path, again)


def settled(
    model: Path, manifest: Manifest, provider: str, compute: str | None
) -> tuple[str, str | None, Choice | None]:
    """Return provider and compute type with `tuned` replaced by what it stands for, and the choice if it was asked for.

    Raises:
        InputError: as `read_tuned`.
        UsageError: as `read_tuned`; or a compute type is given beside `tuned`, or the model is an engine.
    """
    if as_text(provider, "provider") != TUNED:
        return provider, compute, None
    if compute is not None:
        raise UsageError(f"compute {compute}: the provider {TUNED} has a compute type of its own; give one of the two")
    if manifest.builder.name != "onnx":
        raise UsageError(f"{model} is an engine, which runs in one way: drop the provider {TUNED}")
    choice = read_tuned(model, manifest)
    return choice.provider, choice.compute, choice


def _choice(fields: object, path: Path, again: str) -> Choice:
    if isinstance(fields, dict) and set(fields) == {"provider", "compute", "batch", "streams"}:
        provider, compute, batch, streams = (fields[name] for name in ("provider", "compute", "batch", "streams"))
        if (
            isinstance(provider, str)
            and provider not in (TUNED, "auto")
            and isinstance(compute, str)
            and _is_number(batch, MAX_BATCH)
            and _is_number(streams, MAX_STREAMS)
        ):
            return Choice(provider, compute, batch, streams)
    raise InputError(f"{path}: its choice is none that `bench --tune` makes; {again}")


def _is_number(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _model(manifest: Manifest) -> dict[str, str]:
    weights = manifest.files.external_data
    more = {} if weights is None else {"external_data_sha256": weights.sha256}
    return {"sha256": manifest.files.model.sha256, **more}


def _difference(there: object, here: Mapping[str, Any], prefix: str = "") -> str:
    """The first difference in words: `cores is 8 there, 2 here`."""
    if not isinstance(there, dict):
        return "it does not say for which"
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new, f"{prefix}{name}.")
        return f"{prefix}{name} is {_short(old)} there, {_short(new)} here"
    raise AssertionError("they are equal")


def _short(value: object) -> str:
    text = "missing" if value is None else value if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:24]}..."


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
