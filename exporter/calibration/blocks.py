"""The eager model block by block: norms and attention of every block, and the last blocks again for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from transformers import AttentionInterface

from exporter.methods.itae.options import Choice
from exporter.methods.itae.reference import attenuate, patch_norm

ATTENTION = "itae_calibration"


@dataclass(frozen=True, eq=False)
class Seen:
    """Norms and attention of a batch of B images: L layers, S sources, P patches."""

    norms: torch.Tensor
    """(B, L, S, P) float32, the sources in the order of `SOURCES`."""
    attention: torch.Tensor
    """(B, L, P): of the CLS token to each patch, mean over heads."""
    inputs: Mapping[int, Any]
    """(B, N, C), the tokens that go into some of the blocks, as the model that was run has them."""
    embedding: torch.Tensor
    """(B, C), plain."""


class Stack(Protocol):
    """A model that is run block by block; `Blocks` says what its methods do."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    def look(self, pixels: torch.Tensor, keep: Sequence[int] = ()) -> Seen:
        """Run the plain model once."""

    def again(
        self,
        tokens: Any,  # noqa: ANN401
        layers: Sequence[int],
        artifact: torch.Tensor,
        how: Choice,
    ) -> tuple[Any, list[torch.Tensor]]:
        """Run the blocks up to the last but one, with attenuation."""

    def last(
        self,
        tokens: Any,  # noqa: ANN401
        settings: Sequence[tuple[torch.Tensor, Choice]],
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run the last block, with each of several settings."""


@dataclass(eq=False)
class _Notes:
    """Passed down to the attention function: what to attenuate, and what it saw."""

    artifact: torch.Tensor | None = None
    """(B, P) bool."""
    how: Choice | None = None
    prefix: int = 1
    norms: list[torch.Tensor] = field(default_factory=list)
    attention: torch.Tensor | None = None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    calibration: _Notes | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: q, k, v (B, H, N, d) in, (B, N, H, d) out."""
    assert attention_mask is None
    assert calibration is not None
    logits = query @ key.transpose(2, 3) * scaling
    if calibration.artifact is not None and calibration.how is not None:
        logits = attenuate(logits, calibration.artifact, calibration.prefix, calibration.how)
    else:
        calibration.norms = [patch_norm(one, calibration.prefix) for one in (query, key, value)]
    weights = logits.softmax(dim=-1)
    calibration.attention = weights[:, :, 0, calibration.prefix :].mean(dim=1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)


class Blocks:
    """A DINOv2 of transformers, its position embedding baked, run block by block."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = cast("Any", model)
        self._model.set_attn_implementation(ATTENTION)
        self._layers: list[Any] = list(self._model.encoder.layer)
        self.prefix = 1 + getattr(self._model.config, "num_register_tokens", 0)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._layers)

    @torch.inference_mode()
    def look(self, pixels: torch.Tensor, keep: Sequence[int] = ()) -> Seen:
        """Run the plain model once.

        Args:
            pixels: (B, 3, H, W), normalised.
            keep: blocks whose inputs are kept.
        """
        tokens = self._model.embeddings(pixels)
        norms, attention, inputs = [], [], {}
        for number, layer in enumerate(self._layers):
            if number in keep:
                inputs[number] = tokens
            notes = _Notes(prefix=self.prefix)
            residual = patch_norm(tokens[:, None], self.prefix)
            tokens = layer(tokens, None, calibration=notes)
            norms.append(torch.stack([*notes.norms, residual], dim=1))
            assert notes.attention is not None
            attention.append(notes.attention)
        embedding = self._model.layernorm(tokens[:, 0])
        return Seen(torch.stack(norms, dim=1), torch.stack(attention, dim=1), inputs, embedding)

    @torch.inference_mode()
    def again(
        self, tokens: torch.Tensor, layers: Sequence[int], artifact: torch.Tensor, how: Choice
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the blocks from the first of `layers` to the last but one; those of `layers` with attenuation.

        Args:
            tokens: (B, N, C), what goes into the first of `layers`.
            layers: numbers of blocks, ascending; the last block may be among them.
            artifact: (B, P) bool.
            how: the attenuation.

        Returns:
            (B, N, C), what goes into the last block; and the CLS token's attention in each of `layers` before the last
            block, (B, P), mean over heads.
        """
        seen = []
        for number in range(layers[0], self.depth - 1):
            notes = _Notes(artifact if number in layers else None, how, self.prefix)
            tokens = self._layers[number](tokens, None, calibration=notes)
            if number in layers:
                assert notes.attention is not None
                seen.append(notes.attention)
        return tokens, seen

    @torch.inference_mode()
    def last(
        self, tokens: torch.Tensor, settings: Sequence[tuple[torch.Tensor, Choice]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run the last block for the CLS token alone, with each of several settings; keys and values are shared.

        Args:
            tokens: (B, N, C), what goes into the last block.
            settings: artifacts (B, P) bool, and their attenuation.

        Returns:
            for each setting the embedding (B, C), and the CLS token's attention (B, P), mean over heads.
        """
        layer = self._layers[-1]
        attention = layer.attention
        hidden = layer.norm1(tokens)
        query, key, value = (
            one.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for one in (attention.q_proj(hidden[:, :1]), attention.k_proj(hidden), attention.v_proj(hidden))
        )
        plain = query @ key.transpose(2, 3) * attention.scaling  # (B, H, 1, N)
        found = []
        for artifact, how in settings:
            weights = attenuate(plain, artifact, self.prefix, how).softmax(dim=-1)
            mixed = (weights @ value).transpose(1, 2).flatten(2)
            cls = tokens[:, :1] + layer.layer_scale1(attention.o_proj(mixed))
            cls = cls + layer.layer_scale2(layer.mlp(layer.norm2(cls)))
            found.append((self._model.layernorm(cls[:, 0]), weights[:, :, 0, self.prefix :].mean(dim=1)))
        return found
