"""Manifests made to fit files that a test has altered."""

from __future__ import annotations

from pathlib import Path

from runtime.contract.manifest import FileRecord, manifest_path, parity_path, read_manifest, record_file


def rehash(path: Path, **changes: FileRecord) -> None:
    """Make the manifest of the model `path` fit its files again; `changes` are of its `files`."""
    manifest = read_manifest(path)
    changes |= {"model": record_file(path), "parity": record_file(parity_path(path))}
    files = manifest.files.model_copy(update=changes)
    manifest_path(path).write_bytes(manifest.model_copy(update={"files": files}).to_json())
