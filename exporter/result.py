"""The result of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.contract.manifest import Manifest


@dataclass(frozen=True)
class ExportResult:
    """A published model."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    """By step."""
    backend_reason: str | None = None
    """The reason why `--backend auto` chose the library that built the engine; None if it did not choose."""
