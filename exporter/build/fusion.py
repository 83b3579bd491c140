"""Whether each attention is one kernel: the graph's attention sites against the kernels of the engine.

The builder says of each kernel which ONNX nodes it computes. An attention is fused where one kernel computes its first
MatMul, its Softmax and its second MatMul, whatever that kernel is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from runtime.contract.errors import FusionError
from runtime.contract.manifest import Fusion

if TYPE_CHECKING:
    from exporter.options import ExportSpec

FUSES = ("fp16", "bf16")
"""Precisions in which TensorRT fuses attention over all queries; that of a single query it may fuse in fp32 too."""
_REASONS = {
    "precision": f"TensorRT fuses attention over all queries in {' and '.join(FUSES)} only",
    "unfused": "--unfused was given",
    None: "the builder chose otherwise",
}
Reason = Literal["precision", "unfused"]
"""An option that keeps an attention from being one kernel."""


class Kernel(Protocol):
    """The facts that are read about a kernel; `exporter.build.build_log` makes them."""

    @property
    def name(self) -> str:
        """The builder's name of the kernel."""

    @property
    def nodes(self) -> frozenset[str]:
        """The ONNX nodes that it computes."""

    @property
    def takes_int8(self) -> bool | None:
        """Whether it takes int8 numbers and int8 weights; None if the builder doesn't say."""


def unfusable_layers(spec: ExportSpec) -> dict[int, Reason]:
    """The layers whose attention the options keep from being one kernel, each with the option that does.

    No attenuation does: the surgery writes each so that the attention can stay one kernel.
    """
    if spec.unfused:
        return dict.fromkeys(range(spec.backbone.depth), "unfused")
    if spec.resolved_precision in FUSES:
        return {}
    return dict.fromkeys(range(spec.backbone.depth), "precision")


def read_fusion(
    sites: Sequence[frozenset[str]], kernels: Sequence[Kernel], unfusable: Mapping[int, Reason]
) -> Fusion | None:
    """Find the kernels that serve each attention; returns None if the builder names no kernels.

    Args:
        sites: the nodes of each attention, by layer, from `exporter.surgery.attention.attention_nodes`.
        kernels: the kernels of the engine, in the order of execution.
        unfusable: the result of `unfusable_layers`.
    """
    if not kernels:
        return None
    serving = [[kernel for kernel in kernels if kernel.nodes & site] for site in sites]
    fused = [any(site <= kernel.nodes for kernel in serving[layer]) for layer, site in enumerate(sites)]
    unfused = tuple(layer for layer, is_fused in enumerate(fused) if not is_fused)
    return Fusion(
        sites=len(sites),
        expected=sum(layer not in unfusable for layer in range(len(sites))),
        fused=sum(fused),
        kernels=tuple(tuple(kernel.name for kernel in one) for one in serving),
        unfused_layers=unfused,
        reasons=tuple(unfusable.get(layer) for layer in unfused),
        engine_kernels=len(kernels),
    )


def count_int8(products: Sequence[str], kernels: Sequence[Kernel]) -> int | None:
    """Count the products that a kernel computes from int8 numbers; returns None if the builder names no types.

    Args:
        products: the nodes of the int8 layers' matrix products.
        kernels: the kernels of the engine.
    """
    if all(kernel.takes_int8 is None for kernel in kernels):
        return None
    return sum(any(kernel.takes_int8 and name in kernel.nodes for kernel in kernels) for name in products)


def require(fusion: Fusion | None) -> None:
    """Check an engine for `--require-fusion`.

    Raises:
        FusionError: an attention that could be fused is not, or the builder names no kernels.
    """
    leave = "leave --require-fusion out to take the engine as it is"
    if fusion is None:
        raise FusionError(f"the builder names no kernels, so it is not known which attentions are fused; {leave}")
    short = [layer for layer, why in zip(fusion.unfused_layers, fusion.reasons, strict=True) if why is None]
    if short:
        raise FusionError(
            f"--require-fusion: attention is not fused in {_layers(short)}, where the options allow it "
            f"({fusion.fused} of {fusion.sites} are); layer {short[0]} became {', '.join(fusion.kernels[short[0]])}: "
            f"try another version of the builder, or {leave}"
        )


def require_none(fusion: Fusion | None) -> None:
    """Check an engine for `--unfused`; one whose kernels are not named passes.

    Raises:
        FusionError: an attention is one kernel all the same.
    """
    if fusion is None or not fusion.fused:
        return
    fused = [layer for layer in range(fusion.sites) if layer not in fusion.unfused_layers]
    raise FusionError(
        f"--unfused: the builder made one kernel of the attention in {_layers(fused)} all the same "
        f"({', '.join(fusion.kernels[fused[0]])} in layer {fused[0]}): try another version of the builder, or leave "
        "--unfused out to take the engine as it is"
    )


def describe(fusion: Fusion | None) -> str:
    """One line for people."""
    if fusion is None:
        return "not known: the builder names no kernels"
    text = f"attention fused: {fusion.fused} of {fusion.sites}"
    why: dict[Reason | None, list[int]] = {}
    for layer, reason in zip(fusion.unfused_layers, fusion.reasons, strict=True):
        why.setdefault(reason, []).append(layer)
    for reason, layers in why.items():
        text += f"; not {_layers(layers)}: {_REASONS[reason]}"
    return f"{text}; {fusion.engine_kernels} kernels in all"


def _layers(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0-2,5`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    text = ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
    return f"layer {text}" if len(layers) == 1 else f"layers {text}"
