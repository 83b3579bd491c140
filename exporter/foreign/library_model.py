"""The facts about a graph that was traced from a library's model, where nobody has to guess them."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

from exporter.foreign.survey import Survey
from runtime.contract.errors import SurgeryError
from runtime.contract.manifest import Manifest, Weights


@dataclass(frozen=True)
class LibraryModel:
    """A model that a library loaded, by its name."""

    name: str
    """As `--model` names it."""
    library: str
    """Its name and version."""
    prefix: int | None
    """Number of tokens before the patches; None if the library does not say."""
    pooling: Literal["cls", "mean", "cls+mean"]
    weights: Weights
    packages: tuple[str, ...]
    """Packages whose versions the manifest records too."""

    def check(self, found: Survey) -> None:
        """Compare the library's number of tokens before the patches with the graph's.

        Raises:
            SurgeryError: they differ.
        """
        if None not in (self.prefix, found.prefix) and found.prefix != self.prefix:
            raise SurgeryError(
                f"{self.name}: {self.library} has {self.prefix} tokens before the patches, the graph shows "
                f"{found.prefix}"
            )

    def named(self, manifest: Manifest) -> Manifest:
        """The manifest of the trace with the model's name, its weights and its library in it."""
        assert manifest.foreign is not None
        width = next((int(one.shape[-1]) for one in manifest.outputs if one.name == "embedding"), None)
        if width is None:
            width = manifest.model.width
        elif self.pooling == "cls+mean":
            width //= 2
        options = {"size": self.name, "weights": self.weights.source, "pooling": self.pooling}
        backbone = {"size": self.name, "weights": self.weights, "width": width}
        foreign = {"file": self.name, "producer": self.library, "given": ()}
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        return manifest.model_copy(
            update={
                "options": manifest.options.model_copy(update=options),
                "model": manifest.model.model_copy(update=backbone),
                "foreign": manifest.foreign.model_copy(update=foreign),
                "versions": manifest.versions | versions,
            }
        )
