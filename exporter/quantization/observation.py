"""The numbers that linear layers read, of pictures in the float32 model: ranges of all tokens, and some tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
ORDINARY, LARGEST = 8, 2
"""Tokens of each picture that are kept: at random, and those with the largest numbers; the first token beside them."""


@dataclass
class Seen:
    """The numbers of one tensor over all pictures."""

    largest: Float32
    """(C,): the largest absolute value of each channel."""
    ordinary: list[Float32] = field(default_factory=list)
    """Tokens at random, (n, C) each."""
    special: list[Float32] = field(default_factory=list)
    """The first token of each picture, and those with the largest numbers."""

    @property
    def tokens(self) -> Float32:
        """All that were kept, (n, C)."""
        return np.concatenate([*self.ordinary, *self.special])

    @property
    def mean(self) -> Float32:
        """(C,): the mean of the tokens at random."""
        return np.asarray(np.concatenate(self.ordinary).mean(axis=0), np.float32)


def observe(
    session: Any,  # noqa: ANN401  # onnxruntime ships no types
    names: Sequence[str],
    batches: Iterable[npt.NDArray[Any]],
) -> dict[str, Seen]:
    """Run pictures and look at some tensors.

    Args:
        session: ONNX Runtime's, of a model that has these tensors (B, N, C) among its outputs.
        names: of the tensors.
        batches: the model's input.
    """
    rng = np.random.default_rng(0)
    (given,) = (one.name for one in session.get_inputs())
    found: dict[str, Seen] = {}
    for batch in batches:
        for name, value in zip(names, session.run(list(names), {given: batch}), strict=True):
            tokens = value.reshape(len(value), -1, value.shape[-1])  # (B, N, C)
            size = np.abs(tokens)
            largest = size.max(axis=(0, 1))
            seen = found.setdefault(name, Seen(largest))
            seen.largest = np.maximum(seen.largest, largest)
            N = tokens.shape[1]
            for picture, its_size in zip(tokens, size.max(axis=2), strict=True):
                seen.ordinary.append(picture[rng.choice(N, min(ORDINARY, N), replace=False)])
                rows = np.unique([0, *np.argsort(its_size)[-LARGEST:]])
                seen.special.append(picture[rows])
    return found
