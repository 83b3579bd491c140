"""The facts in the manifest beside an ONNX file that this program published itself, such as a plain file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from exporter.foreign.request import ForeignSpec
from exporter.steps import Progress
from runtime.contract.errors import ManifestError
from runtime.contract.manifest import Manifest, manifest_path, verified_manifest


def with_own_manifest(spec: ForeignSpec, progress: Progress) -> ForeignSpec:
    """The request with what the manifest beside the file says of pictures and tokens, where the user does not.

    A file without a manifest, or with one that does not match it, is like any other. One with ITAE in it is refused
    later.
    """
    path = Path(spec.onnx)
    if not manifest_path(path).is_file():
        return spec
    try:
        manifest = verified_manifest(path)
    except ManifestError:
        return spec
    if manifest.options.method.name != "none":
        return spec
    told = _pictures(spec, manifest)
    if spec.prefix_tokens is None and manifest.foreign is not None:
        told = dataclasses.replace(told, prefix_tokens=manifest.foreign.prefix)
    if told != spec:
        progress.note(f"pictures and the tokens before the patches are as {manifest_path(path).name} says")
    return told


def _pictures(spec: ForeignSpec, manifest: Manifest) -> ForeignSpec:
    found = manifest.preprocessing
    if spec.preprocessor is not None or found.dtype != "float32":
        return spec
    told = dataclasses.replace(
        spec,
        mean=spec.mean or ",".join(map(repr, found.mean)),
        std=spec.std or ",".join(map(repr, found.std)),
        interpolation=spec.interpolation or found.resize_filter,
    )
    is_same_size = spec.height_and_width in (None, found.crop)
    if spec.fit != "crop" or spec.resize_to is not None:
        return told
    return dataclasses.replace(told, fit=found.fit, resize_to=found.resize_cover if is_same_size else None)
