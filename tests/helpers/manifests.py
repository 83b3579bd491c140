"""Manifests altered and sealed again, as a forger would; the rule is that of runtime/contract/README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.contract.manifest import manifest_path

ZEROS = "0" * 64


def reseal(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Alter the fields of a model's manifest, and make its own hash fit again."""
    path = manifest_path(model)
    fields = json.loads(path.read_bytes())
    edit(fields)
    path.write_bytes(sealed(fields))


def sealed(fields: dict[str, Any]) -> bytes:
    """The bytes of a manifest with these fields."""
    text = json.dumps({**fields, "manifest_sha256": "here"}).encode()
    digest = hashlib.sha256(text.replace(b'"here"', f'"{ZEROS}"'.encode())).hexdigest()
    return text.replace(b'"here"', f'"{digest}"'.encode())
