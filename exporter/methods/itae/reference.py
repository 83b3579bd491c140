"""The eager PyTorch model with ITAE as an attention function: what the graph is held to.

It shares no code with `exporter.surgery`: exporter/ITAE.md is implemented twice, in PyTorch and in ONNX nodes, and the
agreement of the two is the proof. Works in the model's own dtype, float64 included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AttentionInterface

from exporter.methods.itae.options import Choice, ItaeConfig, Source

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
    """(B, K, P); zeros with `positions`."""
    distance: torch.Tensor
    """(B, K, P): how far each norm is from the threshold, as a share of itself; `FAR` with `positions`."""

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


@dataclass(eq=False)
class Kept:
    """The input of a block for one image, kept between calls of `embed`, so that earlier blocks are computed once."""

    layer: int
    """The block. None before it may be attenuated, or be one in which artifacts are detected."""
    tokens: torch.Tensor | None = None
    """(1, N, C); None before the first call."""


class _Plain:
    """Runs a model block by block; passed down to its attention."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401  # transformers' class has no useful type
        self._model = model
        self._layers = {block.attention: layer for layer, block in enumerate(model.encoder.layer)}
        self.prefix = 1 + getattr(model.config, "num_register_tokens", 0)

    def run(self, image: torch.Tensor, kept: Kept | None = None) -> torch.Tensor:
        """All tokens after the final norm, (1, N, C), of an image (1, 3, H, W)."""
        model = self._model
        model.set_attn_implementation(ATTENTION)
        start = 0
        if kept is not None and kept.tokens is not None:
            start, tokens = kept.layer, kept.tokens
        else:
            tokens = model.embeddings(image.to(model.dtype))
        for layer in range(start, len(self._layers)):
            if kept is not None and layer == kept.layer:
                kept.tokens = tokens
            self._see(layer, "residual", tokens[:, None])
            tokens = model.encoder.layer[layer](tokens, None, itae_recorder=self)
        after: torch.Tensor = model.layernorm(tokens)
        return after

    def enter(
        self, attention: torch.nn.Module, logits: torch.Tensor, sources: Mapping[Source, torch.Tensor]
    ) -> torch.Tensor:
        """Called in each attention; returns the logits (B, H, N, N) that it goes on with."""
        layer = self._layers[attention]
        for source, vectors in sources.items():
            self._see(layer, source, vectors)
        return self._attenuated(layer, logits)

    def _see(self, layer: int, source: Source, vectors: torch.Tensor) -> None:
        """Called with the vectors (B, H, N, d) of every source in every block that is run."""

    def _attenuated(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        return logits


class _Itae(_Plain):
    """ITAE in the chosen layers of a model."""

    def __init__(self, model: Any, itae: ItaeConfig) -> None:  # noqa: ANN401
        super().__init__(model)
        self._itae = itae
        chosen = itae.layer_indices(len(model.encoder.layer))
        self._detects_in = {layer: itae.detects_in(layer) for layer in chosen}
        self._norms: dict[int, torch.Tensor] = {}
        self.found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """For each chosen layer: which patches are artifacts, their norms, their distances, (B, P) each."""

    def _see(self, layer: int, source: Source, vectors: torch.Tensor) -> None:
        if source == self._itae.source and layer in self._detects_in.values():
            self._norms[layer] = patch_norm(vectors, self.prefix)

    def _attenuated(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        if layer not in self._detects_in:
            return logits
        if self._itae.limit.kind == "positions":
            # Half precision does not hold the distance `FAR`.
            at_least = torch.promote_types(logits.dtype, torch.float32)
            norm = logits.new_zeros(len(logits), logits.shape[3] - self.prefix, dtype=at_least)
        else:
            norm = self._norms[self._detects_in[layer]]
        artifact, distance = detect(norm, self._itae)
        self.found.append((artifact, norm, distance))
        return attenuate(logits, artifact, self.prefix, self._itae.attenuation)


@torch.inference_mode()
def embed(
    model: torch.nn.Module,
    images: torch.Tensor,
    itae: ItaeConfig | None,
    pooling: Literal["cls", "cls+mean"] = "cls",
    *,
    normalize: bool = False,
    kept: Kept | None = None,
) -> Eager:
    """Run a DINOv2 of transformers (position embedding baked) with ITAE, one image at a time.

    Args:
        model: in eval mode; its dtype is the computation's.
        images: (B, 3, H, W), normalised.
        itae: None for plain DINOv2.
        pooling: what the embedding is made of.
        normalize: whether it is divided by its L2 norm.
        kept: for one image alone: what an earlier call for it left, or nothing yet.
    """
    assert kept is None or len(images) == 1
    eager = concatenate([_embed_one(model, image[None], itae, kept) for image in images])
    embedding = eager.embedding
    if pooling == "cls+mean":
        embedding = torch.cat([embedding, eager.patch_tokens.mean(dim=1)], dim=1)
    if normalize:
        embedding = torch.nn.functional.normalize(embedding, dim=1)
    return dataclasses.replace(eager, embedding=embedding)


def _embed_one(model: torch.nn.Module, image: torch.Tensor, itae: ItaeConfig | None, kept: Kept | None) -> Eager:
    if itae is None:
        plain = _Plain(model)
        tokens = plain.run(image, kept)
        none = tokens.new_zeros((1, 0, tokens.shape[1] - plain.prefix))
        return Eager(tokens[:, 0], tokens[:, plain.prefix :], none.bool(), none, none)
    method = _Itae(model, itae)
    tokens = method.run(image, kept)
    artifact, norm, distance = (torch.stack(one, 1) for one in zip(*method.found, strict=True))
    return Eager(tokens[:, 0], tokens[:, method.prefix :], artifact, norm, distance)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    itae_recorder: _Plain | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: q, k, v (B, H, N, d) in, (B, N, H, d) out; ITAE where a layer is chosen."""
    assert attention_mask is None
    logits = query @ key.transpose(2, 3) * scaling  # (B, H, N, N)
    if itae_recorder is not None:
        logits = itae_recorder.enter(module, logits, {"query": query, "key": key, "value": value})
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def patch_norm(vectors: torch.Tensor, prefix: int) -> torch.Tensor:
    """The L2 norm of each patch over all heads and channels: (B, H, N, d) to (B, P). Source: exporter/ITAE.md 1.

    In float32 at least, since a squared norm overflows half precision.
    """
    patches = vectors[:, :, prefix:]
    return patches.to(torch.promote_types(patches.dtype, torch.float32)).square().sum(dim=(1, 3)).sqrt()


def detect(norm: torch.Tensor, itae: ItaeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Which patches are artifacts. Source: exporter/ITAE.md 1.

    Args:
        norm: (..., P), the L2 norm of each patch; with `positions` only its shape counts.
        itae: threshold and side.

    Returns:
        artifact (..., P) bool, and distance (..., P): how far each norm is from the threshold, as a share of itself;
        `FAR` with `positions`.
    """
    number = itae.limit.number
    above: torch.Tensor
    below: torch.Tensor
    if itae.limit.kind == "positions":
        artifact = torch.zeros_like(norm, dtype=torch.bool)
        artifact[..., list(itae.limit.indices)] = True
        return artifact, torch.full_like(norm, FAR)
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
    used = [sides[side] for side in sides if itae.side in (side, "both")]
    artifact = torch.stack([flags for flags, _ in used]).any(dim=0)
    distance = torch.stack([(norm - limit).abs() / norm.clamp_min(1e-30) for _, limit in used])
    return artifact, distance.amin(dim=0).clamp_max(FAR)


def score(norm: torch.Tensor, itae: ItaeConfig) -> torch.Tensor:
    """The score that is compared with the threshold's number, (..., P): a norm is flagged if its score is larger.

    There is none with `positions`. Only for `absolute` on the low side it is flagged if its score is not larger.
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
    return {"high": high, "low": low}.get(str(itae.side), torch.maximum(high, low))


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
        "none": lambda: logits,
    }
    return rules[how.kind]()


def _mean_of_normal(patches: torch.Tensor, artifact: torch.Tensor) -> torch.Tensor:
    """Mean over the patches (B, H, N, P) of each row that are not artifacts (B, P): (B, H, N, 1)."""
    normal = (~artifact)[:, None, None, :].to(patches.dtype)
    return (patches * normal).sum(dim=-1, keepdim=True) / normal.sum(dim=-1, keepdim=True)
