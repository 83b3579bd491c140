"""The scales of int8 layers: the range of what they read, and how much of it their weights take over from a norm.

One scale for all channels of an activation is coarse where few channels are large, as the massive activations of
DINOv2 are. So a factor for each channel moves from a norm's gain to the rows of the weights that read it (SmoothQuant,
arXiv 2211.10438), or from a multiplication of its own where there is no such norm, and the range may be narrower than
the largest value. Both are chosen by the error that they leave in the layers' results, relative to each token's own
result: a token with massive numbers counts as much as any other. Weights are then rounded one input channel after the
other, `exporter.quantization.compensated_rounding`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from exporter.quantization.compensated_rounding import Moments, round_to_int8
from exporter.quantization.observation import Seen
from exporter.surgery.quantize_linears import LEVELS, Group, QuantizedGroup, QuantizedLayer

Float32 = npt.NDArray[np.float32]
STRENGTHS = (0.0, 0.35, 0.5, 0.65, 0.8)
"""Shares of an activation's range that move to the weights, as powers; 0 moves nothing."""
RANGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the largest value that are the range."""
WORTH = 0.5
"""Largest share of the error with which a multiplication of its own is worth its time, where no norm can divide."""
SMALLEST = 1e-8


def choose(group: Group, seen: Mapping[str, Seen], values: Mapping[str, Float32]) -> QuantizedGroup:
    """The int8 form of a group.

    Args:
        group: the layers.
        seen: what they read, by tensor.
        values: matrices, biases, the norm's gain and shift, by name.
    """
    matrices = {
        name: np.concatenate([values[layer.weight] for layer in layers], axis=1)
        for name, layers in group.layers.items()
    }
    tried = [_try(_factors(strength, seen, matrices), seen, matrices) for strength in STRENGTHS]
    plain, best = tried[0], min(tried, key=lambda one: one[0])
    _, factors, scales = best if group.gain is not None or best[0] < WORTH * plain[0] else plain
    layers = {}
    for name, some in group.layers.items():
        read = _Input(seen[name], factors, scales[name], matrices[name])
        for layer in some:
            layers[layer.weight] = _layer(
                values[layer.weight], None if layer.bias is None else values[layer.bias], read
            )
    if group.gain is None or group.shift is None:
        return QuantizedGroup(scales, layers, divisors=None if (factors == 1).all() else factors)
    gain, shift = (np.asarray(values[name] / factors, np.float32) for name in (group.gain, group.shift))
    return QuantizedGroup(scales, layers, gain, shift)


def _factors(strength: float, seen: Mapping[str, Seen], matrices: Mapping[str, Float32]) -> Float32:
    """(C,): the divisor of each channel of what is read."""
    largest = np.maximum(np.max([seen[name].largest for name in matrices], axis=0), SMALLEST)
    if strength == 0:
        return np.ones_like(largest)
    rows = np.maximum(np.max([np.abs(matrix).max(axis=1) for matrix in matrices.values()], axis=0), SMALLEST)
    factors = largest**strength / rows ** (1 - strength)
    return np.asarray(factors / np.exp(np.log(factors).mean()), np.float32)


def _try(
    factors: Float32, seen: Mapping[str, Seen], matrices: Mapping[str, Float32]
) -> tuple[float, Float32, dict[str, float]]:
    """The error with these factors, the factors, and the best scale of each tensor."""
    error, scales = 0.0, {}
    for name, matrix in matrices.items():
        tokens = seen[name].tokens
        weight = matrix * factors[:, None]
        power = np.square(weight).sum(axis=1)  # (C,): how much an error in a channel counts
        moved = tokens / factors
        signal = np.square(moved) @ power  # (n,)
        signal += signal.mean() * 1e-3  # tokens of next to nothing
        largest = float((seen[name].largest / factors).max())
        tried = []
        for share in RANGES:
            scale = max(largest * share / LEVELS, SMALLEST)
            off = np.square(moved - _rounded(moved, scale)) @ power
            tried.append((float((off / signal).mean()), scale))
        least, scales[name] = min(tried)
        scales_of_weight = _scales(weight)
        lost = np.square(weight - np.rint(weight / scales_of_weight) * scales_of_weight).sum(axis=1)  # (C,)
        error += least + float((np.square(moved) @ lost / signal).mean())
    return error / len(matrices), factors, scales


class _Input:
    """The input of layers, rounded to int8."""

    def __init__(self, seen: Seen, factors: Float32, scale: float, matrix: Float32) -> None:
        """`matrix` (C_in, C_out) has the weights of all layers that read it."""
        self.factors = factors
        self.mean = seen.mean
        self.rounded_mean = _rounded(np.concatenate(seen.ordinary) / factors, scale).mean(axis=0)
        tokens = _rounded(seen.tokens / factors, scale)
        signal = np.square(tokens) @ np.square(matrix * factors[:, None]).sum(axis=1)  # (n,)
        self.moments = Moments.of(tokens / np.sqrt(signal + signal.mean() * 1e-3)[:, None])


def _layer(weight: Float32, bias: Float32 | None, read: _Input) -> QuantizedLayer:
    """The int8 form of a layer; its bias takes what rounding changes in the mean."""
    moved = weight * read.factors[:, None]
    scales = _scales(moved)
    whole = round_to_int8(moved, scales, read.moments)
    if bias is None:
        return QuantizedLayer(whole, scales, None)
    change = read.mean @ weight - read.rounded_mean @ (whole * scales)
    return QuantizedLayer(whole, scales, np.asarray(bias.reshape(-1) + change, np.float32))


def _scales(weight: Float32) -> Float32:
    """(C_out,): of int8 values of a matrix (C_in, C_out)."""
    return np.asarray(np.maximum(np.abs(weight).max(axis=0), SMALLEST) / LEVELS, np.float32)


def _rounded(values: Float32, scale: float) -> Float32:
    return np.asarray(np.clip(np.rint(values / scale), -LEVELS - 1, LEVELS) * scale, np.float32)


def needed(group: Group) -> list[str]:
    """The names of the values that `choose` wants."""
    layers = itertools.chain.from_iterable(group.layers.values())
    names = [name for layer in layers for name in (layer.weight, layer.bias)]
    return [name for name in (*names, group.gain, group.shift) if name is not None]
