"""`images.json` in each version of an images model: the model that it calls, and how it prepares pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from runtime.contract.errors import ManifestError, one_line
from runtime.contract.hashed_json import matches_own_hash, parse_strictly, to_hashed_json
from runtime.contract.manifest import Preprocessing

FILE = "images.json"
_HASH = "record_sha256"
_MAX_BYTES = 1 << 20


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
        return to_hashed_json(self.model_dump(mode="json"), _HASH, indent=2)

    @staticmethod
    def read(folder: Path) -> ImagesRecord:
        """Read the file in a version's folder.

        Raises:
            ManifestError: it is missing, altered or too new.
        """
        path = folder / FILE
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES)
            record = ImagesRecord.model_validate_json(text)
            is_whole = matches_own_hash(text, parse_strictly(text)[_HASH])
        except OSError as error:
            raise ManifestError(f"can't read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(
                f"{path} is damaged or of another version of itae ({one_line(error)}): write the repository again"
            ) from error
        if not is_whole:
            raise ManifestError(f"{path} does not match its own hash, it was altered: write the repository again")
        return record
