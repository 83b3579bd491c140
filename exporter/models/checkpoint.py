"""Checkpoint files and the names inside them: Meta's and Hugging Face's, both translated to transformers' modules.

A checkpoint comes from elsewhere: `torch.load` runs with `weights_only`, so that a pickle can't run code, and every
tensor is checked by name, shape and value before a model gets it.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from exporter.models.architecture import Architecture
from runtime.contract.errors import WeightsError

Tensors = dict[str, torch.Tensor]
MAX_NAMED = 3
"""How many wrong tensors an error names."""
MAX_INDEX_BYTES = 16 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its shape, and the parameters that its equal parts along dimension 0 become."""

    shape: tuple[int, ...]
    targets: tuple[str, ...]


def meta_entries(arch: Architecture) -> dict[str, Entry]:
    """Every tensor of Meta's state dict. Source: facebookresearch/dinov2, `vision_transformer.py`, `layers/`."""
    C = arch.width
    entries = {
        "cls_token": Entry((1, 1, C), ("embeddings.cls_token",)),
        "pos_embed": Entry((1, 1 + arch.trained_grid**2, C), ("embeddings.position_embeddings",)),
        "mask_token": Entry((1, C), ("embeddings.mask_token",)),
        "patch_embed.proj.weight": Entry(
            (C, 3, arch.patch, arch.patch), ("embeddings.patch_embeddings.projection.weight",)
        ),
        "patch_embed.proj.bias": Entry((C,), ("embeddings.patch_embeddings.projection.bias",)),
        "norm.weight": Entry((C,), ("layernorm.weight",)),
        "norm.bias": Entry((C,), ("layernorm.bias",)),
    }
    if arch.registers:
        entries["register_tokens"] = Entry((1, arch.registers, C), ("embeddings.register_tokens",))
    for layer in range(arch.depth):
        for name, shape, parts in _meta_block(arch):
            targets = tuple(f"encoder.layer.{layer}.{part}" for part in parts)
            entries[f"blocks.{layer}.{name}"] = Entry(shape, targets)
    return entries


def _meta_block(arch: Architecture) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Name, shape and parameters of each tensor of one of Meta's blocks."""
    C, M = arch.width, arch.mlp_width
    qkv = tuple(f"attention.{part}_proj" for part in "qkv")
    linear: list[tuple[str, int, int, tuple[str, ...]]] = [
        ("attn.qkv", 3 * C, C, qkv),
        ("attn.proj", C, C, ("attention.o_proj",)),
    ]
    if arch.swiglu:
        linear += [
            ("mlp.w12", 2 * M, C, ("mlp.gate_proj", "mlp.up_proj")),
            ("mlp.w3", C, M, ("mlp.down_proj",)),
        ]
    else:
        linear += [("mlp.fc1", M, C, ("mlp.fc1",)), ("mlp.fc2", C, M, ("mlp.fc2",))]
    for name, rows, columns, parts in linear:
        yield f"{name}.weight", (rows, columns), tuple(f"{part}.weight" for part in parts)
        yield f"{name}.bias", (rows,), tuple(f"{part}.bias" for part in parts)
    for norm in ("norm1", "norm2"):
        yield f"{norm}.weight", (C,), (f"{norm}.weight",)
        yield f"{norm}.bias", (C,), (f"{norm}.bias",)
    for number in (1, 2):
        yield f"ls{number}.gamma", (C,), (f"layer_scale{number}.lambda1",)


_HUGGING_FACE = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.gate_proj.", ".mlp.weights_in."),
    (".mlp.down_proj.", ".mlp.weights_out."),
)
"""A parameter of transformers' modules and what published checkpoints call it."""


def hugging_face_entries(arch: Architecture) -> dict[str, Entry]:
    """Every tensor of a checkpoint as the Hugging Face hub has it: as Meta's, but q, k, v are apart."""
    entries = {}
    for entry in meta_entries(arch).values():
        parts = len(entry.targets)
        groups = [entry.targets] if parts == 2 else [(target,) for target in entry.targets]
        for group in groups:
            name = group[0]
            for ours, published in _HUGGING_FACE:
                name = name.replace(ours, published)
            rows = entry.shape[0] * len(group) // parts
            entries[name] = Entry((rows, *entry.shape[1:]), group)
    return entries


def translate(tensors: Mapping[str, torch.Tensor], arch: Architecture, source: str) -> Tensors:
    """Parameters of transformers' DINOv2, float32, from a checkpoint in Meta's or Hugging Face's naming.

    Raises:
        WeightsError: a tensor is missing, superfluous, of another shape or type, or holds NaN or infinity.
    """
    entries = meta_entries(arch) if "cls_token" in tensors else hugging_face_entries(arch)
    _check_names(tensors, entries, arch, source)
    parameters: Tensors = {}
    for name, entry in entries.items():
        tensor = tensors[name].detach()
        if not tensor.is_floating_point():
            raise WeightsError(f"{source}: {name} is {tensor.dtype}, expected floating point")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{source}: {name} is sparse or has no values, expected a plain tensor")
        tensor = tensor.to(torch.float32)
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # NaN passes through both; no copy is made
            raise WeightsError(f"{source}: {name} holds NaN or infinity: the file is damaged, get it again")
        parameters.update(zip(entry.targets, tensor.chunk(len(entry.targets)), strict=True))
    return parameters


def _check_names(
    tensors: Mapping[str, torch.Tensor], entries: Mapping[str, Entry], arch: Architecture, source: str
) -> None:
    """Refuse a checkpoint that isn't exactly this model, naming the first few tensors that are wrong."""
    wrong = [
        f"{name} is {_shape(tensors[name].shape)}, expected {_shape(entry.shape)}"
        for name, entry in entries.items()
        if name in tensors and tuple(tensors[name].shape) != entry.shape
    ]
    missing = [f"{name} is missing" for name in entries if name not in tensors]
    extra = [f"{name} is not part of it" for name in sorted(tensors) if name not in entries]
    # Missing first: of a file that holds something else altogether, that says most.
    problems = [*missing, *extra, *wrong] if missing else [*wrong, *extra]
    if problems:
        more = f" (and {len(problems) - MAX_NAMED} more)" if len(problems) > MAX_NAMED else ""
        raise WeightsError(
            f"{source} is not a checkpoint of {arch.name}: {'; '.join(problems[:MAX_NAMED])}{more}. "
            "Is it of another --size? Training checkpoints and heads are not taken, only the backbone"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file, or of a Hugging Face folder.

    Raises:
        WeightsError: it can't be read, is damaged, or would run code.
    """
    if path.is_dir():
        return _read_folder(path)
    try:
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty: get the checkpoint again")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in (".pth", ".pt", ".bin"):
            return _read_pickle(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}): get it again") from error
    except OSError as error:
        raise WeightsError(f"can't read {path}: {error.strerror or error}") from error
    raise WeightsError(f"{path}: expected .pth (Meta's naming), .safetensors or a Hugging Face folder")


def _read_pickle(path: Path) -> Tensors:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated calls, into our one line
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors, and was not loaded, since it could run code: "
            "save its state dict alone"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is truncated or not a checkpoint ({first}): get it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
    ):
        raise WeightsError(f"{path} is not a state dict: expected tensors by name, as Meta publishes them")
    return tensors


def _read_folder(folder: Path) -> Tensors:
    """The tensors of a Hugging Face folder, whole or in shards."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise WeightsError(f"{folder} holds no model.safetensors: not a Hugging Face folder of a model")
        return read_checkpoint(single)
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise WeightsError(f"{index} is larger than {MAX_INDEX_BYTES} bytes: not an index of shards")
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not an index of shards ({error})") from error
    tensors: Tensors = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise WeightsError(f"{index} names {shard!r}, which is not a file of its folder")
        tensors.update(read_checkpoint(folder / shard))
    return tensors


def check_config(path: Path, arch: Architecture) -> None:
    """Compare a Hugging Face `config.json` with the architecture: the head count shows in no tensor's shape.

    Raises:
        WeightsError: it can't be read, or describes another model.
    """
    try:
        config = json.loads(path.read_text())
        found = {key: config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} is not the config of a DINOv2 ({error})") from error
    expected = {
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "use_swiglu_ffn": arch.swiglu,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "patch_size": arch.patch,
    }
    for key, value in expected.items():
        if (got := found.get(key, config.get(key, value))) != value:
            raise WeightsError(f"{path} says {key} {got}, {arch.name} has {value}: is it of another --size?")
