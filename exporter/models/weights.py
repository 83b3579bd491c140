"""Where weights come from: the hub, a file, a folder, or a seed; and the model that they make."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import huggingface_hub.utils
import numpy as np
import torch
import transformers
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from exporter.models import backbone, checkpoint, hub, naming
from exporter.models.architecture import Architecture
from exporter.models.backbone import Tensors
from runtime.contract.errors import UsageError, WeightsError
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Weights


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and where these came from."""

    model: torch.nn.Module
    """A DINOv2 of transformers, float32, in eval mode, its position embedding as trained."""
    origin: Weights
    only_grid: int | None = None
    """Side, in patches, of the one square grid that the position embedding is of, if it was resized already."""

    def check_grid(self, grid: tuple[int, int], patch: int) -> None:
        """Refuse a grid that the position embedding is not of, where it can't be resized any more.

        Raises:
            WeightsError: it is of another.
        """
        side = self.only_grid
        if side is not None and grid != (side, side):
            raise WeightsError(
                f"{self.origin.source}: its position embedding was resized to {side}x{side} patches already, and is "
                f"exact there alone: give --image-size {side * patch}"
            )


def load(arch: Architecture, weights: str) -> LoadedModel:
    """Load the weights that `--weights` names into a model of this architecture.

    Raises:
        UsageError: the option's form is wrong.
        WeightsError: the hub can't be reached, or the checkpoint can't be read or isn't of this model.
    """
    revision = None
    came_from: Literal["hub", "path", "random"]
    if weights == "auto":
        if arch.hub is None:
            raise UsageError(f"--weights auto: {arch.name} has no official weights")
        weights = f"hf:{arch.hub}"
    kind, _, rest = weights.partition(":")
    if kind == "random":
        came_from, seed = "random", seed_of(weights, rest)
        entries: Mapping[str, object] = random_tensors(arch, seed)
        weights = f"random:{seed}"
    elif kind == "hf":
        came_from = "hub"
        entries, revision = hub.load(arch, rest)
    elif Path(weights).suffix.lower() == ".onnx":
        return _from_onnx(arch, Path(weights))
    else:
        came_from = "path"
        entries = _from_path(arch, Path(weights))
    found = backbone.translate(entries, arch, weights)
    del entries
    model = build_model(arch, found.parameters)
    sha256 = hash_parameters(found.parameters)
    origin = Weights(kind=came_from, source=weights, revision=revision, sha256=sha256, notes=found.notes)
    return LoadedModel(model, origin)


def _from_onnx(arch: Architecture, path: Path) -> LoadedModel:
    """The model whose weights lie in an ONNX file, proven by a run of the file."""
    from exporter.models import onnx_weights  # ONNX Runtime: not for other weights

    held = onnx_weights.read(path, arch)
    found = backbone.translate(held.entries, arch, str(path))
    model = build_model(arch, found.parameters)
    onnx_weights.check(held, model, arch)
    notes = (*held.notes, *found.notes)
    sha256 = hash_parameters(found.parameters)
    origin = Weights(kind="path", source=str(path), revision=None, sha256=sha256, notes=notes)
    return LoadedModel(model, origin, held.grid if held.grid != arch.trained_grid else None)


def build_model(arch: Architecture, parameters: Tensors) -> torch.nn.Module:
    """A DINOv2 of transformers that uses exactly these tensors, in eval mode; nothing is copied."""
    options = {
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "image_size": math.isqrt(parameters[naming.POSITION].shape[1] - 1) * arch.patch,
        "patch_size": arch.patch,
        "use_swiglu_ffn": arch.swiglu,
    }
    model: Any
    with torch.device("meta"):  # no time and memory for an initialisation that is thrown away
        if arch.registers:
            model = Dinov2WithRegistersModel(
                Dinov2WithRegistersConfig(num_register_tokens=arch.registers, **options)  # type: ignore[arg-type]
            )
        else:
            model = Dinov2Model(Dinov2Config(**options))  # type: ignore[arg-type]
    model.load_state_dict(parameters, strict=True, assign=True)
    return cast("torch.nn.Module", model.eval().requires_grad_(False))


def random_tensors(arch: Architecture, seed: int) -> Tensors:
    """A checkpoint in Meta's naming with every tensor drawn, scaled so that activations stay sane at any depth.

    Each tensor has a generator of its own, seeded by `seed` and its name, so that it doesn't depend on the others.
    """
    entries = naming.meta_entries(arch)
    with ThreadPoolExecutor(usable_cores()) as threads:  # numpy draws without Python's lock
        shapes = [entry.shape for entry in entries.values()]
        return dict(zip(entries, threads.map(partial(draw, seed), entries, shapes), strict=True))


def draw(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of this name, drawn; its scale is that of such tensors: norms, biases, weights, tokens."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    last = name.rpartition(".")[2]
    if last == "bias":
        x *= 0.05
    elif last == "gamma":
        x = x.mul_(0.1).add_(0.3)
    elif last == "weight" and "norm" in name:
        x = x.mul_(0.2).add_(1)
    elif last == "weight":
        gain = 1.2 if x.ndim == 2 else 1.0
        x *= gain / float(np.sqrt(np.prod(shape[1:])))
    else:
        x *= 0.2
    return x


def hash_parameters(parameters: Tensors) -> str:
    """SHA-256 over name, shape and float32 bytes of each parameter, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def seed_of(weights: str, text: str) -> int:
    """The seed in `random:SEED`, of which `text` is the part behind the colon; 0 if there is none.

    Raises:
        UsageError: it is no whole number.
    """
    if weights == "random":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"--weights {weights}: the seed must be a whole number, as in random:0")
    return int(text)


def _from_path(arch: Architecture, path: Path) -> checkpoint.Entries:
    try:
        return _read_path(arch, path)
    except OSError as error:
        raise WeightsError(f"--weights {path} can't be read: {error.strerror or error}") from error


def _read_path(arch: Architecture, path: Path) -> checkpoint.Entries:
    if not path.exists():
        raise WeightsError(
            f"--weights {path}: no such file or folder (and neither `auto`, `hf:REPO[@REVISION]` nor `random[:SEED]`)"
        )
    path = hub.snapshot(path) or path
    if path.is_dir() and (path / "config.json").is_file():
        checkpoint.check_config(path / "config.json", arch)
    return checkpoint.read_checkpoint(path)


def quiet_libraries() -> None:
    """Keep transformers' and the hub's progress bars and warnings off the terminal; we report errors ourselves."""
    libraries: tuple[Any, ...] = (transformers.utils.logging, huggingface_hub.utils.logging)  # untyped
    for logging in libraries:
        logging.set_verbosity_error()
    libraries[0].disable_progress_bar()
