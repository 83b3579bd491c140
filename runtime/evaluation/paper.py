"""The paper's results (arXiv 2410.04801): DINOv2 with official weights and ITAE, test split, k-means on embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.contract.schema import Manifest


@dataclass(frozen=True)
class Figures:
    """The paper's figures on one data set."""

    acc: float
    nmi: float
    ari: float
    backbone: str = "ViT-B/14"
    split: str = "the whole test split"


FIGURES: Mapping[str, Figures] = {
    "cifar10": Figures(acc=0.8449, nmi=0.8682, ari=0.7946),
    "cifar100": Figures(acc=0.6502, nmi=0.7710, ari=0.5053),
    "stl10": Figures(acc=0.8276, nmi=0.8818, ari=0.7594),
    "tiny-imagenet": Figures(
        acc=0.6823,
        nmi=0.8178,
        ari=0.5227,
        backbone="backbone not stated",
        split='of the "test split", whose labels were never published: here it is the validation split',
    ),
}
"""By kind of data set. Whether embeddings were normalised, θ and the preprocessing aren't known."""


def figures_for(kind: str, models: list[Manifest]) -> Figures | None:
    """The figures to show beside some models: of this data set, where one of them is a ViT-B."""
    return FIGURES.get(kind) if any(model.options.size.startswith("vitb14") for model in models) else None
