"""What an export gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.contract.manifest import Manifest


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    """By step."""
    backend_reason: str | None = None
    """Why `--backend auto` chose the library that built the engine; None where it did not choose."""
