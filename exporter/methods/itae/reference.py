"""The eager PyTorch model with ITAE as an attention function: what the graph is held to.

It shares no code with `exporter.surgery`: exporter/ITAE.md is implemented twice, in PyTorch and in ONNX nodes, and the
agreement of the two is the proof. Works in the model's own dtype, float64 included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AttentionInterface

from exporter.methods.itae.options import Choice, ItaeConfig

ATTENTION = "itae_reference"
FAR = 1e30
"""Stands for any larger distance, infinity too, which JSON can't hold."""


@dataclass(frozen=True)
class Eager:
    """The results of the model for B images; K chosen layers, 0 of them without ITAE."""

    embedding: torch.Tensor
    """(B, C): the CLS token after the final norm; (B, 2 C) with the mean patch token behind it."""
    patch_tokens: torch.Tensor
    """(B, P, C), after the final norm."""
    artifact: torch.Tensor
    """(B, K, P) bool."""
    norm: torch.Tensor
    """(B, K, P)."""
    distance: torch.Tensor
    """(B, K, P): how far each norm is from the threshold, as a share of itself."""

    @property
    def margin(self) -> torch.Tensor:
        """(B,): the smallest distance of an image; infinity without ITAE."""
        far = self.distance.new_full((len(self.distance), 1), math.inf)
        return torch.cat([self.distance.flatten(1), far], dim=1).amin(dim=1)

    @property
    def is_mixed(self) -> torch.Tensor:
        """(B,): whether a chosen layer has some but not all of its patches flagged."""
        return (self.artifact.any(dim=2) & ~self.artifact.all(dim=2)).any(dim=1)

    def take(self, index: Sequence[int]) -> Eager:
        """The results of some of the images."""
        chosen = torch.tensor(list(index), dtype=torch.long)
        return Eager(*(value[chosen] for value in _values(self)))


def concatenate(results: Sequence[Eager]) -> Eager:
    """The results of several calls as one."""
    return Eager(*(torch.cat(values) for values in zip(*map(_values, results), strict=True)))


def _values(eager: Eager) -> list[torch.Tensor]:
    return [getattr(eager, field.name) for field in dataclasses.fields(eager)]


@dataclass
class _Recorder:
    """Passed down to the attention function; collects what each chosen layer saw."""

    itae: ItaeConfig
    layers: dict[torch.nn.Module, int]
    prefix: int
    artifact: list[torch.Tensor] = field(default_factory=list)
    norm: list[torch.Tensor] = field(default_factory=list)
    distance: list[torch.Tensor] = field(default_factory=list)


@torch.inference_mode()
def embed(
    model: torch.nn.Module,
    images: torch.Tensor,
    itae: ItaeConfig | None,
    pooling: Literal["cls", "cls+mean"] = "cls",
    *,
    normalize: bool = False,
) -> Eager:
    """Run a DINOv2 of transformers (position embedding baked) with ITAE, one image at a time.

    Args:
        model: in eval mode; its dtype is the computation's.
        images: (B, 3, H, W), normalised.
        itae: None for plain DINOv2.
        pooling: what the embedding is made of.
        normalize: whether it is divided by its L2 norm.
    """
    eager = concatenate([_embed_one(model, image[None], itae) for image in images])
    embedding = eager.embedding
    if pooling == "cls+mean":
        embedding = torch.cat([embedding, eager.patch_tokens.mean(dim=1)], dim=1)
    if normalize:
        embedding = torch.nn.functional.normalize(embedding, dim=1)
    return dataclasses.replace(eager, embedding=embedding)


def _embed_one(model: Any, image: torch.Tensor, itae: ItaeConfig | None) -> Eager:  # noqa: ANN401
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    attentions = [layer.attention for layer in model.encoder.layer]
    recorder = None
    if itae is not None:
        chosen = itae.layer_indices(len(attentions))
        recorder = _Recorder(itae, {attentions[layer]: layer for layer in chosen}, prefix)
    model.set_attn_implementation(ATTENTION)
    tokens = model(image.to(model.dtype), itae_recorder=recorder).last_hidden_state
    P = tokens.shape[1] - prefix
    if recorder is None:
        none = tokens.new_zeros((1, 0, P))
        return Eager(tokens[:, 0], tokens[:, prefix:], none.bool(), none, none)
    return Eager(
        tokens[:, 0],
        tokens[:, prefix:],
        torch.stack(recorder.artifact, 1),
        torch.stack(recorder.norm, 1),
        torch.stack(recorder.distance, 1),
    )


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    itae_recorder: _Recorder | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: q, k, v (B, H, N, d) in, (B, N, H, d) out; ITAE where a layer is chosen."""
    assert attention_mask is None
    logits = query @ key.transpose(2, 3) * scaling  # (B, H, N, N)
    if itae_recorder is not None and module in itae_recorder.layers:
        source = {"query": query, "key": key, "value": value}[itae_recorder.itae.source]
        patches = source[:, :, itae_recorder.prefix :]
        norm = patches.square().sum(dim=(1, 3)).sqrt()  # (B, P), over all heads and channels
        artifact, distance = detect(norm, itae_recorder.itae)
        itae_recorder.norm.append(norm)
        itae_recorder.artifact.append(artifact)
        itae_recorder.distance.append(distance)
        logits = attenuate(logits, artifact, itae_recorder.prefix, itae_recorder.itae.attenuation)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def detect(norm: torch.Tensor, itae: ItaeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Which patches are artifacts. Source: exporter/ITAE.md 1.

    Args:
        norm: (..., P), the L2 norm of each patch.
        itae: threshold and side.

    Returns:
        artifact (..., P) bool, and distance (..., P): how far each norm is from the threshold, as a share of itself.
    """
    number = itae.limit.number
    above: torch.Tensor
    below: torch.Tensor
    if itae.limit.kind == "absolute":
        above, below = norm > number, norm <= number
        high = low = torch.full_like(norm[..., :1], number)
    elif itae.limit.kind == "ratio":
        middle = _median(norm)
        high, low = number * middle, middle / number
        above, below = norm > high, norm < low
    else:
        centre, spread = _centre_and_spread(norm, itae.limit.kind)
        z = (norm - centre) / spread
        above, below = z > number, z < -number
        high, low = centre + number * spread, centre - number * spread
    sides = {"high": (above, high), "low": (below, low)}
    used = list(sides.values()) if itae.side == "both" else [sides[itae.side]]
    artifact = torch.stack([flags for flags, _ in used]).any(dim=0)
    distance = torch.stack([(norm - limit).abs() / norm.clamp_min(1e-30) for _, limit in used])
    return artifact, distance.amin(dim=0).clamp_max(FAR)


def score(norm: torch.Tensor, itae: ItaeConfig) -> torch.Tensor:
    """The score that is compared with the threshold's number, (..., P): a norm is flagged if its score is larger.

    Only for `absolute` on the low side it is flagged if its score is not larger.
    """
    if itae.limit.kind == "absolute":
        return norm
    if itae.limit.kind == "ratio":
        high = norm / _median(norm)
        low = 1 / high
    else:
        centre, spread = _centre_and_spread(norm, itae.limit.kind)
        high = (norm - centre) / spread
        low = -high
    return {"high": high, "low": low, "both": torch.maximum(high, low)}[itae.side]


def _centre_and_spread(norm: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and scaled MAD, or mean and population standard deviation, each (..., 1); spreads never 0."""
    if kind == "mad":
        centre = _median(norm)
        return centre, 1.4826 * _median((norm - centre).abs()) + 1e-6
    centre = norm.mean(dim=-1, keepdim=True)
    return centre, norm.std(dim=-1, correction=0, keepdim=True) + 1e-6


def _median(values: torch.Tensor) -> torch.Tensor:
    """(..., P) -> (..., 1); of an even count the mean of the two middle ones, as numpy has it (torch: the lower)."""
    ordered = values.sort(dim=-1).values
    P = values.shape[-1]
    return (ordered[..., (P - 1) // 2] + ordered[..., P // 2])[..., None] / 2


def attenuate(logits: torch.Tensor, artifact: torch.Tensor, prefix: int, how: Choice) -> torch.Tensor:
    """Logits (B, H, N, N), the columns of the artifacts (B, P) attenuated in every row. Source: exporter/ITAE.md 2."""
    somewhere = artifact & ~artifact.all(dim=1, keepdim=True)  # an image without a normal patch stays as it is
    tokens = torch.nn.functional.pad(somewhere, (prefix, 0))[:, None, None, :]  # (B, 1, 1, N)
    patches = logits[..., prefix:]
    rules: dict[str, Callable[[], torch.Tensor]] = {
        "min": lambda: torch.where(tokens, patches.amin(dim=-1, keepdim=True), logits),
        "mask": lambda: logits.masked_fill(tokens, -math.inf),
        "scale": lambda: torch.where(tokens, logits + math.log(how.number), logits),
        "mean": lambda: torch.where(tokens, _mean_of_normal(patches, somewhere), logits),
    }
    return rules[how.kind]()


def _mean_of_normal(patches: torch.Tensor, artifact: torch.Tensor) -> torch.Tensor:
    """Mean over the patches (B, H, N, P) of each row that are not artifacts (B, P): (B, H, N, 1)."""
    normal = (~artifact)[:, None, None, :].to(patches.dtype)
    return (patches * normal).sum(dim=-1, keepdim=True) / normal.sum(dim=-1, keepdim=True)
