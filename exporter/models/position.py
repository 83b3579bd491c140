"""The position embedding for one image size, computed once and baked into the graph as a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from exporter.models.architecture import PATCH, TRAINED_GRID

if TYPE_CHECKING:
    from exporter.options import PosEmbed

META_OFFSET = 0.1
"""Meta's models without registers were trained to be resized by a scale that is off by this many patches."""


def position_embedding(
    trained: torch.Tensor, grid: tuple[int, int], *, registers: bool, variant: PosEmbed
) -> torch.Tensor:
    """Resize the trained position embedding to another grid of patches.

    Source: `interpolate_pos_encoding` of facebookresearch/dinov2 (`meta`) and of transformers' port (`hf`). The two
    differ only without registers, where Meta scales by `(side + 0.1) / 37` and the port resizes to the size.

    Args:
        trained: (1, 1 + 37 · 37, C) float32, CLS first.
        grid: rows and columns of patches of the new image.
        registers: whether the model has register tokens.
        variant: `meta` or `hf`.

    Returns:
        (1, 1 + P, C) float32.
    """
    rows, columns = grid
    if (rows, columns) == (TRAINED_GRID, TRAINED_GRID):
        return trained
    C = trained.shape[-1]
    patches = trained[:, 1:].reshape(1, TRAINED_GRID, TRAINED_GRID, C).permute(0, 3, 1, 2)
    if registers:
        resized = interpolate(patches, size=grid, mode="bicubic", antialias=True)
    elif variant == "hf":
        resized = interpolate(patches, size=grid, mode="bicubic")
    else:
        scale = ((rows + META_OFFSET) / TRAINED_GRID, (columns + META_OFFSET) / TRAINED_GRID)
        resized = interpolate(patches, scale_factor=scale, mode="bicubic")
    assert resized.shape[-2:] == (rows, columns)
    return torch.cat([trained[:, :1], resized.permute(0, 2, 3, 1).reshape(1, rows * columns, C)], dim=1)


def bake_position_embedding(model: torch.nn.Module, grid: tuple[int, int], variant: PosEmbed) -> None:
    """Make a transformers DINOv2 use the position embedding of `grid`, whatever it is fed; in place.

    Raises:
        ValueError: the model is then fed an image of another size.
    """
    embeddings = model.embeddings
    assert isinstance(embeddings, torch.nn.Module)
    trained = embeddings.position_embeddings
    assert isinstance(trained, torch.Tensor)
    has_registers = hasattr(embeddings, "register_tokens")
    table = position_embedding(trained.detach(), grid, registers=has_registers, variant=variant)

    def baked(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if (height // PATCH, width // PATCH) != grid:
            raise ValueError(f"this model takes {grid[0] * PATCH}x{grid[1] * PATCH} pixels, not {height}x{width}")
        return table.to(tokens.dtype)

    embeddings.interpolate_pos_encoding = baked  # type: ignore[assignment]  # a method, replaced on this instance
