"""`images.json` in each version of an images model: the model that it calls, and how it prepares pictures for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pydantic

from runtime.contract.errors import ManifestError, first_fault
from runtime.contract.hashed_json import HashedJson
from runtime.contract.manifest import Preprocessing

FILE = "images.json"
RECORD_FILE = HashedJson(
    "record of an images model", ManifestError, 1, version_field="format_version", hash_field="record_sha256"
)


class ImagesRecord(pydantic.BaseModel):
    """The content of the file."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="ignore", protected_namespaces=())

    format_version: Literal[1] = 1
    model: str
    """The name of the model that takes what the model itself takes."""
    version: int
    """The only version of it that is called, so that an answer is never of two versions."""
    sha256: str
    """The hash of that model's file."""
    max_batch: int
    input: str
    """The name of its input."""
    output: str
    """The name of its embedding."""
    preprocessing: Preprocessing
    max_pixels: int
    sixteen_bit: Literal["full", "auto"]
    metric: Literal["cosine", "euclidean"] | None
    """The metric of the clusters in `centroids.npy`; None if there are none."""
    centroids_sha256: str | None
    """The hash of `centroids.npy`; None if there is none."""

    def to_json(self) -> bytes:
        """The file's bytes, its own hash last."""
        return RECORD_FILE.to_bytes(self.model_dump(mode="json"), indent=2)

    @staticmethod
    def read(folder: Path) -> ImagesRecord:
        """Read the file in a version's folder.

        Raises:
            ManifestError: it is missing, altered or too new.
        """
        path = folder / FILE
        again = "write the repository again"
        try:
            # Through JSON: strict mode takes JSON's arrays as tuples, but not Python's lists.
            return ImagesRecord.model_validate_json(json.dumps(RECORD_FILE.read(path, again)))
        except FileNotFoundError as error:
            raise ManifestError(f"there is no {path}: {again}") from error
        except pydantic.ValidationError as error:
            raise ManifestError(f"{path}: {first_fault(error)}; {again}") from error
