"""DINOv2's sizes as data.

Source: facebookresearch/dinov2, `dinov2/hub/backbones.py` and `dinov2/models/vision_transformer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from exporter.graph_facts import GraphFacts
from runtime.contract.errors import UsageError

REGISTERS = 4
"""Register tokens of the `_reg` models."""

PosEmbed = Literal["meta", "hf"]
"""Whose way to resize the position embedding: Meta's code or the Hugging Face port."""
Channels = tuple[float, float, float]
"""A number for each of red, green and blue."""


@dataclass(frozen=True)
class Architecture:
    """One DINOv2 backbone: `depth` blocks of `heads` heads of `head_dim` channels, C = width = H · d."""

    name: str
    width: int
    heads: int
    depth: int
    registers: int = 0
    swiglu: bool = False
    hub: str | None = None
    """Repository of the official weights on the Hugging Face hub."""
    patch: int = 14
    """Side of a patch in pixels."""
    trained_grid: int = 37
    """Side, in patches, of the grid that the position embedding was trained on (518 px)."""
    position: Literal["offset", "antialiased"] | None = None
    """How Meta's code resizes the position embedding: by a scale that is off by a tenth of a patch, or to the size of
    the grid with antialiasing. None: antialiased if there are registers, else offset, as in Meta's models."""
    mean: Channels = (0.485, 0.456, 0.406)
    """Subtracted from each channel of a picture, whose values are from 0 to 1. `exporter.proof` states it again."""
    std: Channels = (0.229, 0.224, 0.225)
    """The divisor of each channel after that."""

    @property
    def head_dim(self) -> int:
        """Channels of one head (d)."""
        return self.width // self.heads

    @property
    def resizes_position(self) -> Literal["offset", "antialiased"]:
        """How the position embedding is resized, the default filled in."""
        return self.position or ("antialiased" if self.registers else "offset")

    @property
    def prefix(self) -> int:
        """Tokens before the patches: CLS and registers (1 + R)."""
        return 1 + self.registers

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the MLP; SwiGLU keeps two thirds, rounded up to a multiple of 8."""
        return (self.width * 4 * 2 // 3 + 7) // 8 * 8 if self.swiglu else self.width * 4

    def facts(self, image_size: tuple[int, int]) -> GraphFacts:
        """The measures of this backbone for images of (H, W) pixels, multiples of a patch."""
        height, width = image_size
        return GraphFacts(
            depth=self.depth,
            heads=self.heads,
            width=self.width,
            prefix=self.prefix,
            grid=(height // self.patch, width // self.patch),
            image_size=image_size,
        )

    def with_registers(self) -> Architecture:
        """The `_reg` model of this size."""
        hub = self.hub and self.hub.replace("dinov2-", "dinov2-with-registers-")
        return replace(self, name=f"{self.name}_reg", registers=REGISTERS, hub=hub)


_PLAIN = (
    Architecture("vits14", width=384, heads=6, depth=12, hub="facebook/dinov2-small"),
    Architecture("vitb14", width=768, heads=12, depth=12, hub="facebook/dinov2-base"),
    Architecture("vitl14", width=1024, heads=16, depth=24, hub="facebook/dinov2-large"),
    Architecture("vitg14", width=1536, heads=24, depth=40, swiglu=True, hub="facebook/dinov2-giant"),
)

ARCHITECTURES = {a.name: a for plain in _PLAIN for a in (plain, plain.with_registers())}


def architecture(size: str) -> Architecture:
    """The backbone called `size`.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return ARCHITECTURES[size]
    except KeyError:
        raise UsageError(f"unknown size {size!r}: choose one of {', '.join(ARCHITECTURES)}") from None
