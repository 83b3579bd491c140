"""Checkpoint files and folders: what lies in them, by dotted name. `exporter.models.backbone` finds the DINOv2 in it.

A checkpoint comes from elsewhere: a pickle can't run code here, and what a file is, its first bytes say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from exporter.models.architecture import Architecture
from exporter.models.pickles import SAVE_TENSORS, StandIn, read_pickle
from runtime.contract.errors import WeightsError

Entries = dict[str, object]
"""By dotted name, tensors, and whatever else lies among them."""
MAX_INDEX_BYTES = 16 << 20
MAX_DEPTH = 12
"""How deep dictionaries in a checkpoint are followed."""
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Names of the weights in a Hugging Face folder, whole or in shards; the first that is there is read."""


def read_checkpoint(path: Path) -> Entries:
    """The content of a file of PyTorch or safetensors, or of a folder with one, by dotted name.

    Raises:
        WeightsError: it can't be read, is damaged, or would run code.
    """
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}): get it again") from error
    except OSError as error:
        raise WeightsError(f"can't read {path}: {error.strerror or error}") from error


def _read_file(path: Path) -> Entries:
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path} is empty: get the checkpoint again")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise WeightsError(f"{path} is a web page, not a checkpoint: get the file itself")
    suffix = path.suffix.lower()
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return dict(safetensors.torch.load_file(path))
    if start.startswith((b"PK\x03\x04", b"\x80")) or suffix in (".pth", ".pt", ".bin", ".ckpt"):
        return _flat(read_pickle(path), path)
    if suffix == ".safetensors":
        return dict(safetensors.torch.load_file(path))
    raise WeightsError(f"{path}: expected .pth, .ckpt or .bin of PyTorch, .safetensors or a Hugging Face folder")


def _flat(held: object, path: Path) -> Entries:
    """The content of nested dictionaries by dotted name.

    Raises:
        WeightsError: it is no dictionary, or has two values of one name.
    """
    if isinstance(held, StandIn):
        raise WeightsError(f"{path} holds a whole {type(held).full_name}, whose code would have to run: {SAVE_TENSORS}")
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path} is not a state dict: expected tensors by name, it holds {type(held).__name__}")
    entries: Entries = {}
    seen: set[int] = set()

    def add(prefix: str, value: object, depth: int) -> None:
        if isinstance(value, Mapping) and not isinstance(value, torch.Tensor):
            if id(value) in seen or depth > MAX_DEPTH:
                return
            seen.add(id(value))
            for key, one in value.items():
                if isinstance(key, (str, int)):
                    add(f"{prefix}.{key}" if prefix else str(key), one, depth + 1)
            return
        if prefix in entries:
            raise WeightsError(f"{path} holds two entries of the name {prefix}: save the state dict alone")
        entries[prefix] = value

    add("", held, 0)
    return entries


def _read_folder(folder: Path) -> Entries:
    """The content of a Hugging Face folder, whole or in shards; of another folder, its one checkpoint."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return _read_shards(folder / name) if name.endswith(".json") else read_checkpoint(folder / name)
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
    if len(found) == 1:
        return read_checkpoint(found[0])
    if found:
        shown = ", ".join(one.name for one in found[:3]) + (", …" if len(found) > 3 else "")
        raise WeightsError(f"{folder} holds {len(found)} checkpoints ({shown}): give one of them")
    if any(one.suffix == ".distcp" for one in folder.iterdir()):
        convert = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} whole.pth"
        raise WeightsError(f"{folder} is a checkpoint in pieces: make one file of it, {convert}")
    raise WeightsError(
        f"{folder} holds no model.safetensors or pytorch_model.bin: not a Hugging Face folder of a model"
    )


def _read_shards(index: Path) -> Entries:
    entries: Entries = {}
    for shard in shards_of(index):
        entries.update(read_checkpoint(index.parent / shard))
    return entries


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index of shards names.

    Raises:
        WeightsError: it is none, or names a file that is not of its folder.
    """
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise WeightsError(f"{index} is larger than {MAX_INDEX_BYTES} bytes: not an index of shards")
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not an index of shards ({error})") from error
    for shard in shards:
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or Path(shard).suffix not in (".safetensors", ".bin")
        ):
            raise WeightsError(f"{index} names {shard!r}, which is not a file of its folder")
    return shards


def check_config(path: Path, arch: Architecture) -> None:
    """Compare a Hugging Face `config.json` with the architecture: the head count shows in no tensor's shape.

    A `config.json` of timm's only names its architecture.

    Raises:
        WeightsError: it can't be read, or describes another model.
    """
    try:
        config = json.loads(path.read_text())
        if isinstance(config.get("architecture"), str) and "hidden_size" not in config:
            return _check_timm(path, config["architecture"], arch)
        found = {key: config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
            hint = ": is it of another --size?" if key in found else ""
            raise WeightsError(f"{path} says {key} {got}, {arch.name} has {value}{hint}")


def _check_timm(path: Path, name: str, arch: Architecture) -> None:
    size = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}.get(arch.name[:6])
    if size is None:
        return
    expected = f"vit_{size}_patch14_{'reg4_' if arch.registers else ''}dinov2"
    if name.partition(".")[0] != expected:
        raise WeightsError(f"{path} says architecture {name}, {arch.name} is {expected} in timm")
