"""The command that exports a model again with outputs that it lacks, for messages."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.contract.manifest import Manifest

EMBEDDING = "embedding"
BY_NAME = ("hf:", "timm:")
"""The beginnings of a model's name where a library loaded it."""


def how_to_add(manifest: Manifest, names: Sequence[str]) -> str:
    """A clause that says how `names`, outputs that readers know, become outputs of the model."""
    options = f"--outputs {','.join(dict.fromkeys((EMBEDDING, *names)))}"
    foreign = manifest.foreign
    if foreign is None:
        return f"export one with {options}"
    if foreign.file.startswith(BY_NAME):
        return f"`python -m exporter --model {foreign.file} {options}` adds it"
    if EMBEDDING in names:
        return f"`python -m exporter --onnx {foreign.file} --embedding {_tokens(manifest)}` adds an embedding"
    return f"`python -m exporter --onnx {foreign.file} --add-outputs {','.join(names)}` adds it"


def _tokens(manifest: Manifest) -> str:
    """The name of an output of tokens (B, N, C), of which an embedding can be made; NAME if none looks so."""
    width = manifest.model.width
    found = [one.name for one in manifest.own_outputs if len(one.shape) == 3 and one.shape[-1] == width]
    return found[0] if found else "NAME"
