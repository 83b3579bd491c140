"""The result of an export from a foreign graph, and its summary in lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.build.fusion import describe
from exporter.foreign.embedding_output import EMBEDDING
from exporter.foreign.replica import Proof
from exporter.foreign.request import FLAG_OUTPUTS
from exporter.foreign.survey import Survey
from runtime.contract.manifest import Manifest


@dataclass(frozen=True)
class Delivered:
    """A published file."""

    path: Path
    manifest: Manifest | None
    """None if the runtime can't run the file."""
    found: Survey
    prefix: int
    proofs: tuple[Proof, ...]
    seconds: dict[str, float]


def summary(result: Delivered) -> list[str]:
    """The summary of an export, in lines for people."""
    last, found = result.found.backbone[-1], result.found
    used = [] if result.manifest is None else _used(result.manifest)
    origin = None if result.manifest is None else result.manifest.foreign
    made_from, maker = (origin.file, origin.producer) if origin else (found.file.path.name, found.file.producer)
    lines = [
        f"{result.path}: {result.path.stat().st_size / 1e6:.1f} MB, from {made_from} by {maker}",
        f"  model    {len(found.backbone)} layers, {last.heads} heads of {last.head_dim}, tokens before the patches: "
        f"{result.prefix}",
        *(f"  output   {one.name} {one.dtype} ({', '.join(map(str, one.shape))})" for one in found.outputs),
        *used,
    ]
    lines += [f"  proof    {_words(one)}" for one in result.proofs]
    if result.manifest is not None and result.manifest.builder.name != "onnx":
        made, by = result.manifest, result.manifest.builder
        lines.append(f"  engine   {made.options.precision} by {by.name} {by.version}; {describe(made.fusion)}")
    lines.append(f"  seconds  {', '.join(f'{name} {s:.1f}' for name, s in result.seconds.items())}")
    return lines


def _words(proof: Proof) -> str:
    """A comparison in words."""
    if proof.threshold is None:
        return f"plain; within {proof.max_abs:.2g} of the untouched graph, limit {proof.limit:g}"
    return (
        f"{proof.threshold}: {proof.flagged} of {proof.patches} patches flagged; within {proof.max_abs:.2g} of the "
        f"untouched graph with ITAE in numpy, limit {proof.limit:g}; ITAE moves outputs by up to {proof.effect:.2g}"
    )


def _used(manifest: Manifest) -> list[str]:
    """The input and the outputs that the file did not have, and the outputs that the runtime uses, a line each."""
    flags = [one for one in manifest.outputs if one.name in FLAG_OUTPUTS]
    lines = [f"  output   {one.name} {one.dtype} ({', '.join(map(str, one.shape))})" for one in flags]
    if manifest.input.dtype == "uint8":
        lines.append(f"  input    {manifest.input.name} uint8 ({', '.join(map(str, manifest.input.shape))})")
    used = [
        f"{info.name_in_file} ({', '.join(map(str, info.shape))})" for info in manifest.outputs if info not in flags
    ]
    if EMBEDDING not in manifest.output_names():
        return [*lines, f"  verify   compares {', '.join(used)}"]
    return [*lines, f"  embed    uses the output {used[0]}"]
