"""The names of DINOv2's tensors: Meta's, Hugging Face's, those of transformers' modules, and timm's.

All are translated to the parameters of transformers' modules. A tensor may hold several parameters, as equal parts
along its first dimension: `attn.qkv.weight` holds q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from exporter.models.architecture import REGISTERS, Architecture

POSITION = "embeddings.position_embeddings"
MASK_TOKEN = "embeddings.mask_token"


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its shape, and the parameters that its equal parts along dimension 0 become."""

    shape: tuple[int, ...]
    targets: tuple[str, ...]

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of each of its parameters."""
        return (self.shape[0] // len(self.targets), *self.shape[1:])


def meta_entries(arch: Architecture) -> dict[str, Entry]:
    """Every tensor of Meta's state dict. Source: facebookresearch/dinov2, `vision_transformer.py`, `layers/`."""
    C = arch.width
    entries = {
        "cls_token": Entry((1, 1, C), ("embeddings.cls_token",)),
        "pos_embed": Entry((1, 1 + arch.trained_grid**2, C), (POSITION,)),
        "mask_token": Entry((1, C), (MASK_TOKEN,)),
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


def module_entries(arch: Architecture) -> dict[str, Entry]:
    """Every parameter of transformers' modules under its own name, as `torch.save(model.state_dict())` writes them."""
    return {
        target: Entry(entry.target_shape, (target,))
        for entry in meta_entries(arch).values()
        for target in entry.targets
    }


_BLOCK = re.compile(r"(blocks|encoder\.layer)\.(\d+)\.(?:(\d+)\.)?(.+)")


def generalise(name: str) -> tuple[str, int | None]:
    """A name with `#` for the number of its block, and that number; `blocks.1.5.` is block 5, in a chunk of blocks."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name, None
    blocks, number, in_chunk, rest = match.groups()
    return f"{blocks}.#.{rest}", int(in_chunk or number)


def vocabulary(arch: Architecture) -> dict[str, tuple[str, ...]]:
    """Every name that a tensor of a DINOv2 goes by, generalised, and its parameters, generalised, in `arch`'s terms.

    Names that only other sizes have are among them, so that a checkpoint of another size is known as what it is.
    """
    words: dict[str, tuple[str, ...]] = {}
    for swiglu in (not arch.swiglu, arch.swiglu):  # the later one wins
        variant = replace(arch, depth=1, registers=arch.registers or REGISTERS, swiglu=swiglu)
        for entries in (module_entries(variant), hugging_face_entries(variant), meta_entries(variant)):
            for name, entry in entries.items():
                targets = tuple(generalise(target)[0] for target in entry.targets)
                words[generalise(name)[0]] = targets
    words["reg_token"] = words["register_tokens"]
    block = "blocks.#."
    for kind in ("weight", "bias"):
        for part, word in (("q", "query"), ("k", "key"), ("v", "value")):
            target = (f"encoder.layer.#.attention.{part}_proj.{kind}",)
            for name in (part, f"{part}_proj", f"to_{part}", word):
                words[f"{block}attn.{name}.{kind}"] = target
        words[f"{block}mlp.w1.{kind}"] = words[f"{block}mlp.fc1_g.{kind}"] = (f"encoder.layer.#.mlp.gate_proj.{kind}",)
        words[f"{block}mlp.w2.{kind}"] = words[f"{block}mlp.fc1_x.{kind}"] = (f"encoder.layer.#.mlp.up_proj.{kind}",)
        if arch.swiglu:  # timm has the two packed in fc1, as Meta has in w12
            words[f"{block}mlp.fc1.{kind}"] = words[f"{block}mlp.w12.{kind}"]
            words[f"{block}mlp.fc2.{kind}"] = words[f"{block}mlp.w3.{kind}"]
    return words
