"""The choices of a planted model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporter.models.architecture import Architecture
from runtime.contract.errors import UsageError

Kind = Literal["place", "content"]
Values = Literal["payload", "negligible"]
MAX_IMAGE_SIZE = 1036
"""Pixels."""


@dataclass(frozen=True)
class Plan:
    """A model of a seed, and the kind of its artifacts.

    Raises:
        UsageError: a number is out of its range.
    """

    arch: Architecture
    seed: int = 0
    kind: Kind = "place"
    strength: float = 1.0
    """The norm of artifacts relative to `plant.NORM`, from 0 to 1; 0 is the unplanted model."""
    values: Values = "payload"
    fade: bool = False
    image_size: int = 224
    """S; the attention that artifacts draw is fitted at S x S pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength {self.strength:g}: must be from 0 to 1")
        if not 4 * self.arch.patch <= self.image_size <= MAX_IMAGE_SIZE or self.image_size % self.arch.patch:
            raise UsageError(
                f"image size {self.image_size}: must be a multiple of {self.arch.patch}, from {4 * self.arch.patch} to "
                f"{MAX_IMAGE_SIZE}"
            )

    @property
    def birth(self) -> int:
        """The block whose MLP makes the artifacts."""
        return self.arch.depth // 2

    @property
    def name(self) -> str:
        """The kind of artifacts in words."""
        more = [f"{self.values} values"] if self.values != "payload" else []
        return ", ".join([self.kind, *more, *(["fallen norms"] if self.fade else [])])
