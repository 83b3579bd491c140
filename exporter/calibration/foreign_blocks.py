"""Somebody else's graph as a stack of blocks: what `Blocks` is for a DINOv2 of ours, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exporter.calibration.blocks import Seen
from exporter.foreign.stages import Stages
from exporter.methods.itae.options import Choice

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens that go into one block."""

    pixels: npt.NDArray[np.float32]
    value: npt.NDArray[Any] | None
    """None if the graph can't be run from them on; then it is run from the pictures on."""
    earlier: tuple[Sequence[int], Flags, Choice] | None = None
    """The blocks before that are attenuated, where `value` is None."""


class ForeignBlocks:
    """The layers of a prepared graph."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self._stages.depth

    def look(self, pixels: torch.Tensor, keep: Sequence[int] = ()) -> Seen:
        """Run the plain model once; see `Blocks.look`."""
        pictures = pixels.numpy()
        found = self._stages.look(pictures, keep)
        inputs = {layer: _Tokens(pictures, found.tokens.get(layer)) for layer in keep}
        norms, attention, embedding = map(torch.from_numpy, (found.norms, found.attention, found.embedding))
        return Seen(norms, attention, inputs, embedding)

    def again(
        self, tokens: _Tokens, layers: Sequence[int], artifact: torch.Tensor, how: Choice
    ) -> tuple[_Tokens, list[torch.Tensor]]:
        """Run the blocks up to the last but one, with attenuation; see `Blocks.again`."""
        before = [layer for layer in layers if layer < self.depth - 1]
        flags = artifact.numpy()
        if tokens.value is not None:
            value, rows = self._stages.again(tokens.pixels, tokens.value, before, flags, how, self.depth - 1)
            return _Tokens(tokens.pixels, value), [*map(torch.from_numpy, rows)]
        _, rows = self._stages.again(tokens.pixels, None, before, flags, how)
        return _Tokens(tokens.pixels, None, (before, flags, how)), [*map(torch.from_numpy, rows)]

    def last(
        self, tokens: _Tokens, settings: Sequence[tuple[torch.Tensor, Choice]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run the last block with each of several settings; see `Blocks.last`."""
        found = []
        for artifact, how in settings:
            layers, flags = [self.depth - 1], artifact.numpy()
            if tokens.earlier is not None:  # a whole pass, whose flags are the same in all blocks or none in the last
                layers = [*tokens.earlier[0], *(layers if flags.any() else [])]
                flags = tokens.earlier[1]
            vectors, rows = self._stages.again(tokens.pixels, tokens.value, layers, flags, how)
            found.append((torch.from_numpy(vectors), torch.from_numpy(rows[-1])))
        return found
