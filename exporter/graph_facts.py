"""The facts about a model that surgery needs, whoever made its graph. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphFacts:
    """The measures of one vision transformer for one image size."""

    depth: int
    """Number of blocks, each with one self-attention."""
    heads: int
    """Number of heads (H) of each attention."""
    width: int
    """Channels of a token (C)."""
    prefix: int
    """Number of tokens before the patches: the CLS token and the registers (1 + R)."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    image_size: tuple[int, int]
    """Height and width in pixels (H, W)."""

    @property
    def patches(self) -> int:
        """Number of patches (P)."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of all tokens (N): the prefix and the patches."""
        return self.prefix + self.patches
