"""Compute types: what the matrix products of a model run in, as asked for and as found."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.contract.argument_types import as_text
from runtime.contract.errors import UsageError
from runtime.contract.manifest import Manifest

COMPUTES = ("fp32", "bf16")
"""Compute types that can be asked for; by default a model computes in the precision that it was exported in."""
LOWERED = ("fp32", "int8")
"""Precisions of files whose float32 products may be computed in bf16; an int8 file keeps its int8 products."""
_LESS_AND_LESS_PRECISE = ("fp32", "fp16", "bf16")


def resolve_compute(manifest: Manifest, provider: str, compute: str | None) -> str:
    """Return what a model computes in: `compute`, or the precision of the file if None.

    Args:
        manifest: of the model.
        provider: what runs it, as `runtime.backends.resolve_provider` returned it.
        compute: one of `COMPUTES`, or what this function returned.

    Raises:
        UsageError: there is no such compute type, or not for this model or provider.
    """
    own = manifest.options.precision
    if compute is None or as_text(compute, "compute") == own:
        return own
    if compute not in COMPUTES:
        raise UsageError(f"no compute type {compute!r}: choose from {', '.join(COMPUTES)}")
    name = manifest.files.model.name
    if manifest.builder.name != "onnx":
        raise UsageError(f"compute {compute}: {name} is an engine, which computes in {own} as it was built")
    if own not in LOWERED or compute == "fp32":
        raise UsageError(f"compute {compute}: {name} is {own}, which its graph holds: export it with --precision fp32")
    if provider != "openvino":
        raise UsageError(
            f"compute {compute}: an {own} file computes in it by the provider openvino alone, not {provider}"
        )
    return compute


def least_precise(computes: Iterable[str]) -> str:
    """Return the least precise of some compute types; a type that is not known here counts as the least."""
    order = _LESS_AND_LESS_PRECISE
    return max(computes, key=lambda one: order.index(one) if one in order else len(order))
