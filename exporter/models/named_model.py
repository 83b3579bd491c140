"""A model that transformers or timm made: how its tokens become the outputs, and how pictures become its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from exporter.image_processor import Pictures
from exporter.models import checkpoint
from runtime.contract.errors import UsageError
from runtime.contract.manifest import Weights

Pooling = Literal["library", "cls", "mean", "cls+mean"]
Result = tuple[torch.Tensor, torch.Tensor | None]
"""Tokens (B, N, C), and what the library pools of them, (B, C); None if it pools nothing."""


@dataclass(frozen=True)
class NamedModel:
    """A model that a library loaded."""

    name: str
    """As `--model` names it."""
    library: str
    """Its name and version."""
    module: Embedder
    """In eval mode, float32."""
    image_size: tuple[int, int]
    """H, W in pixels."""
    patch: int | None
    """Side of a patch in pixels; None if the library does not say."""
    pictures: Pictures | None
    """None if the library says nothing about pictures."""
    origin: Weights


def check_attention(model: torch.nn.Module, name: str, window: object = None) -> None:
    """Refuse, before any work is done, a model whose kinds of modules show that it has no row over all patches.

    Args:
        model: as the library made it; its weights may be on no device.
        name: the model's, for messages.
        window: what the library's configuration says of windows, if it says anything.

    Raises:
        UsageError: it has no attention, or attention in windows.
    """
    kinds = {type(one).__name__ for one in model.modules()}
    windowed = next((one for one in sorted(kinds) if "Window" in one), None)
    if windowed is not None or window:
        raise UsageError(
            f"{name}: windowed attention ({windowed or type(model).__name__}), in which a token sees its window alone, "
            "has no row over all patches"
        )
    own = [one for one in kinds if ("Attention" in one or "Attn" in one) and not one.startswith("AttentionPool")]
    if not own:
        raise UsageError(f"{name}: {type(model).__name__} has no attention: is it a convolutional network?")


def read_weights(weights: str) -> checkpoint.Entries:
    """The tensors in the file or folder that `--weights` names, by their names there.

    Raises:
        UsageError: it names a repository.
        WeightsError: it can't be read.
    """
    if weights.startswith(("hf:", "timm:")):
        raise UsageError(
            f"--weights {weights}: must be auto, a file, a folder or random[:SEED]; a repository with its own weights "
            f"is --model {weights}"
        )
    return checkpoint.read_checkpoint(Path(weights))


class Embedder(torch.nn.Module):
    """A model with the input `pixel_values` (B, 3, H, W), and the outputs `embedding` and `patch_tokens`."""

    def __init__(self, model: torch.nn.Module, run: Callable[[torch.Tensor], Result]) -> None:
        """Keep the model; `run` calls it."""
        super().__init__()
        self.model = model
        self.run = run
        self.prefix: int | None = None
        self.pooling: Pooling = "library"
        self.outputs: tuple[str, ...] = ("embedding",)

    def choose(
        self, pooling: Pooling, outputs: tuple[str, ...], image_size: tuple[int, int], patch: int | None, name: str
    ) -> None:
        """Choose the outputs, after a look at what the model makes of a picture.

        Args:
            pooling: what the embedding is; `library`: what the library pools, or else the CLS token, or without one the
                mean patch token.
            outputs: some of `embedding` and `patch_tokens`.
            image_size: H, W in pixels.
            patch: side of a patch in pixels, if it is known.
            name: the model's, for messages.

        Raises:
            UsageError: the model has not what that needs.
        """
        with torch.inference_mode():
            tokens, pooled = self.run(torch.zeros(1, 3, *image_size))
            again, _ = self.run(torch.zeros(1, 3, *image_size))
        if tokens.shape != again.shape or not torch.equal(tokens, again):
            raise UsageError(f"{name} gives another result each time: it draws random numbers, as in training")
        if tokens.ndim == 3 and patch is not None:
            before = tokens.shape[1] - (image_size[0] // patch) * (image_size[1] // patch)
            self.prefix = before if before >= 0 else None
        if pooling == "library" and (pooled is None or pooled.ndim != 2) and self.prefix is not None:
            pooling = "cls" if self.prefix else "mean"
        needs = f"--pooling {pooling}" if pooling != "library" else "--outputs patch_tokens"
        if self.prefix is None and (pooling != "library" or "patch_tokens" in outputs):
            raise UsageError(f"{needs}: {name} has no tokens of patches alone: leave it out")
        if self.prefix == 0 and pooling in ("cls", "cls+mean"):
            raise UsageError(f"--pooling {pooling}: {name} has no CLS token: say --pooling mean")
        self.pooling, self.outputs = pooling, outputs

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The chosen outputs: `embedding` (B, C) or (B, 2 C), `patch_tokens` (B, P, C)."""
        tokens, pooled = self.run(pixel_values)
        parts = []
        if self.pooling == "library":
            parts.append(tokens.flatten(1) if pooled is None else pooled.flatten(1))
        if self.pooling in ("cls", "cls+mean"):
            parts.append(tokens[:, 0])
        if self.pooling in ("mean", "cls+mean"):
            parts.append(tokens[:, self.prefix :].mean(dim=1))
        found = {"embedding": parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)}
        if "patch_tokens" in self.outputs:
            found["patch_tokens"] = tokens[:, self.prefix :]
        return tuple(found[name] for name in self.outputs)
