"""The position embedding for one image size, computed once and baked into the graph as a constant."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate

from exporter.models.architecture import Architecture, PosEmbed

META_OFFSET = 0.1
"""Meta's models without registers were trained to be resized by a scale that is off by this many patches."""


def position_embedding(
    trained: torch.Tensor, grid: tuple[int, int], arch: Architecture, variant: PosEmbed
) -> torch.Tensor:
    """Resize the trained position embedding to another grid of patches.

    Source: `interpolate_pos_encoding` of facebookresearch/dinov2 (`meta`) and of transformers' port (`hf`). The two
    differ only without registers, where Meta scales by `(rows + 0.1) / side` and the port resizes to the size.

    Args:
        trained: (1, 1 + side · side, C) float32, CLS first; the side is 37 in Meta's models, 16 if trained at 224 px.
        grid: rows and columns of patches of the new image.
        arch: how it is resized.
        variant: `meta` or `hf`.

    Returns:
        (1, 1 + P, C) float32.
    """
    rows, columns = grid
    side = math.isqrt(trained.shape[1] - 1)
    if (rows, columns) == (side, side):
        return trained
    C = trained.shape[-1]
    patches = trained[:, 1:].reshape(1, side, side, C).permute(0, 3, 1, 2)
    if arch.resizes_position == "antialiased":
        resized = interpolate(patches, size=grid, mode="bicubic", antialias=True)
    elif variant == "hf":
        resized = interpolate(patches, size=grid, mode="bicubic")
    else:
        scale = ((rows + META_OFFSET) / side, (columns + META_OFFSET) / side)
        resized = interpolate(patches, scale_factor=scale, mode="bicubic")
    assert resized.shape[-2:] == (rows, columns)
    return torch.cat([trained[:, :1], resized.permute(0, 2, 3, 1).reshape(1, rows * columns, C)], dim=1)


def bake_position_embedding(
    model: torch.nn.Module, grid: tuple[int, int], arch: Architecture, variant: PosEmbed
) -> None:
    """Make a transformers DINOv2 use the position embedding of `grid`, whatever it is fed; in place.

    Raises:
        ValueError: the model is then fed an image of another size.
    """
    embeddings = model.embeddings
    assert isinstance(embeddings, torch.nn.Module)
    trained = embeddings.position_embeddings
    assert isinstance(trained, torch.Tensor)
    table = position_embedding(trained.detach(), grid, arch, variant)
    image_size = (grid[0] * arch.patch, grid[1] * arch.patch)

    def baked(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if (height // arch.patch, width // arch.patch) != grid:
            raise ValueError(f"this model takes {image_size[0]}x{image_size[1]} pixels, not {height}x{width}")
        return table.to(tokens.dtype)

    embeddings.interpolate_pos_encoding = baked  # type: ignore[assignment]  # a method, replaced on this instance
