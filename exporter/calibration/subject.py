"""The model that a calibration looks at, as its file and its report name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """One model at one size of pictures."""

    name: str
    """Its `--size`, or the name of somebody else's file."""
    weights: str
    sha256: str
    image_size: tuple[int, int]
    """(H, W) in pixels."""
    fit: str
    pos_embed: str | None
    """None for somebody else's graph, whose position embeddings are as they were."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
