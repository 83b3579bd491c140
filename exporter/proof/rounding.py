"""How much rounding alone moves the eager model, and the limits of parity that follow from it.

Weights can amplify rounding: a steep step in an MLP, or a large number that a later block takes away again. Then a
right graph is off by more than the usual limits, and so is PyTorch in the same precision. How much is measured on the
golden images without any graph: eager PyTorch in that precision against float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from exporter.methods.itae.reference import FAR, Eager
from exporter.options import Precision
from exporter.proof.half_range import FLOAT16_MAX, INTO_RESIDUAL
from runtime.contract.comparison import LIMITS, usual_length
from runtime.contract.errors import WeightsError
from runtime.contract.manifest import ParityLimits, Rounding

ROOM = {"fp32": 8.0, "fp16": 3.0, "bf16": 3.0, "int8": 3.0}
"""How many times the measured rounding a graph may be off. Evidence: exporter/DECISIONS.md."""
WIDEST = ParityLimits(max_abs=0.05, min_cosine=0.98, flag_margin=0.5, batch_distance=0.2)
"""Limits beyond which a comparison would prove nothing: such an export is refused."""


@contextlib.contextmanager
def in_precision(model: Any, precision: Precision) -> Iterator[None]:  # noqa: ANN401  # transformers' DINOv2
    """Run a float32 model as this precision rounds, as long as the block runs.

    In half precision that is: weights, inputs and outputs of the projections are rounded, and computed with in float32.
    The biases of what is added to the residual stream are not rounded, nor is the patch projection in bf16.
    """
    if precision == "fp32":
        yield
        return
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        if precision == "fp16":  # what float16 can't hold is for `half_range` to refuse
            tensor = tensor.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        return tensor.to(dtype).float()

    def hooks(name: str, module: torch.nn.Linear | torch.nn.Conv2d) -> list[torch.utils.hooks.RemovableHandle]:
        def before(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return rounded(inputs[0])

        def after(_: torch.nn.Module, __: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            if module.bias is not None and name.endswith(INTO_RESIDUAL):
                return rounded(output - module.bias) + module.bias
            return rounded(output)

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    kinds = torch.nn.Linear | torch.nn.Conv2d if precision == "fp16" else torch.nn.Linear
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    weights = {name: module.weight.data for name, module in modules.items()}
    handles = []
    try:
        for name, module in modules.items():
            module.weight.data = rounded(weights[name])
            handles += hooks(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, module in modules.items():
            module.weight.data = weights[name]


@contextlib.contextmanager
def in_float64(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Run a float32 model in float64 as long as the block runs; one layer's weights at a time, to save memory."""
    kept: dict[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def own(module: torch.nn.Module) -> list[torch.Tensor]:
        return [*module.parameters(recurse=False), *module.buffers(recurse=False)]

    def widen(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        with torch.inference_mode(mode=False):  # the model is traced later, and must not hold inference tensors
            ours = [one for one in own(module) if one.is_floating_point()]
            kept[module] = [(one, one.data) for one in ours]  # stay where they lie: new copies would scatter the heap
            for one in ours:
                one.data = one.data.double()
        return tuple(one.double() if isinstance(one, torch.Tensor) else one for one in inputs)

    def narrow(module: torch.nn.Module, _: tuple[Any, ...], __: Any) -> None:  # noqa: ANN401
        with torch.inference_mode(mode=False):
            for one, data in kept.pop(module, []):
                one.data = data

    parts = [module for module in model.modules() if own(module)]
    handles = [part.register_forward_pre_hook(widen) for part in parts]
    handles += [part.register_forward_hook(narrow, always_call=True) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(rounded: Eager, exact: Eager, *, with_patch_tokens: bool, normalized: bool) -> Rounding:
    """Compare the model in one precision with itself in float64.

    Args:
        rounded: the results in the precision.
        exact: those in float64.
        with_patch_tokens: whether the patch tokens count beside the embedding.
        normalized: whether the embedding has length 1; its differences then count √C-fold.
    """
    pairs = [(rounded.embedding, exact.embedding, normalized)]
    if with_patch_tokens:
        pairs.append((rounded.patch_tokens, exact.patch_tokens, False))
    max_abs, cosine, distance = 0.0, 1.0, 0.0
    for got, want, is_normalized in pairs:
        off = got.double() - want
        weight = usual_length(want.shape[-1]) if is_normalized else 1.0
        max_abs = max(max_abs, weight * float(off.abs().max()))
        cosine = min(cosine, float(torch.cosine_similarity(got.double(), want, dim=-1).min()))
        distance = max(distance, float((off.norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-30)).max()))
    relative = (rounded.norm.double() - exact.norm).abs() / exact.norm.abs().clamp_min(1e-12)
    norm = float(relative.max()) if relative.numel() else 0.0
    return Rounding(
        max_abs=min(max_abs, FAR),
        min_cosine=min(cosine, 1.0),
        norm_relative=min(norm, FAR),
        distance=min(distance, FAR),
    )


def worst(measured: list[Rounding]) -> Rounding:
    """The worst figures of several images."""
    return Rounding(
        max_abs=max(one.max_abs for one in measured),
        min_cosine=min(one.min_cosine for one in measured),
        norm_relative=max(one.norm_relative for one in measured),
        distance=max(one.distance for one in measured),
    )


def limits(precision: Precision, rounding: Rounding, *, normalized: bool) -> ParityLimits:
    """The precision's limits, each widened to `ROOM` times the measured rounding where that is more."""
    usual, room = LIMITS[precision], ROOM[precision]

    def wider(limit: float | None, measured: float) -> float | None:
        return None if limit is None else max(limit, _rounded_up(room * measured))

    return ParityLimits(
        max_abs=wider(usual.max_abs, rounding.max_abs),
        min_cosine=None
        if usual.min_cosine is None
        else min(usual.min_cosine, 1 - _rounded_up(room * (1 - rounding.min_cosine))),
        flag_margin=wider(usual.flag_margin, rounding.norm_relative),
        batch_distance=wider(usual.batch_distance, rounding.distance),
        normalized=normalized,
    )


def excess(precision: Precision, rounding: Rounding) -> float:
    """How many times the precision's usual limits the image needs, by its worst figure; at least 1."""
    usual, needed = LIMITS[precision], limits(precision, rounding, normalized=False)
    return max(
        (needed.max_abs or 0) / usual.max_abs if usual.max_abs else 1.0,
        (1 - (needed.min_cosine or 0)) / (1 - usual.min_cosine) if usual.min_cosine else 1.0,
        (needed.flag_margin or 0) / usual.flag_margin if usual.flag_margin else 1.0,
        (needed.batch_distance or 0) / usual.batch_distance if usual.batch_distance else 1.0,
    )


def check_limits(precision: Precision, widened: ParityLimits, rounding: Rounding) -> None:
    """Refuse a precision in which the model itself is so far off that a comparison would prove nothing.

    Raises:
        WeightsError: a limit is beyond `WIDEST`.
    """
    if found := _wider(widened, WIDEST, rounding):
        cure = "float32 is too coarse for these weights" if precision == "fp32" else "use --precision fp32"
        raise WeightsError(
            f"these weights amplify rounding: {precision} alone moves PyTorch's own {' and '.join(found)} on the "
            f"golden images: {cure}"
        )


def is_beyond_reach(limits: ParityLimits) -> bool:
    """Whether a limit is beyond `WIDEST`."""
    nothing = Rounding(max_abs=0.0, min_cosine=1.0, norm_relative=0.0, distance=0.0)
    return bool(_wider(limits, WIDEST, nothing))


def describe(precision: Precision, widened: ParityLimits, rounding: Rounding) -> str | None:
    """A line about limits that are wider than the precision's usual ones; None if none is."""
    found = _wider(widened, LIMITS[precision], rounding)
    if not found:
        return None
    return (
        f"these weights amplify rounding: {precision} alone moves PyTorch's own {' and '.join(found)}, so the limits "
        f"of the comparison are {ROOM[precision]:g} times that"
    )


def _wider(limits: ParityLimits, than: ParityLimits, rounding: Rounding) -> list[str]:
    """The figures, in words, that rounding moves too far for the limits of `than`."""
    vectors = {
        f"embeddings by up to {rounding.max_abs:.2g}": (limits.max_abs or 0) > (than.max_abs or math.inf),
        f"embeddings to a cosine of {rounding.min_cosine:.5f}": (limits.min_cosine or 1) < (than.min_cosine or 0),
        f"norms by up to {rounding.norm_relative:.2g} of themselves": (limits.flag_margin or 0)
        > (than.flag_margin or math.inf),
        f"vectors by up to {rounding.distance:.2g} of their length": (limits.batch_distance or 0)
        > (than.batch_distance or math.inf),
    }
    return [what for what, is_wider in vectors.items() if is_wider]


def _rounded_up(value: float) -> float:
    """To two digits, so that a limit is a number to read."""
    if not 0 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.6g}")
