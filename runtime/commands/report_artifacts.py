"""The flags of a model on a sample of images, by its outputs `artifact_mask` and `artifact_norm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError, UsageError
from runtime.contract.further_outputs import how_to_add
from runtime.contract.keys import Key
from runtime.contract.manifest import Manifest
from runtime.embedding.model import Model
from runtime.images.decode import ReadImage
from runtime.report.content import Artifacts, FlaggedImage, Norms
from runtime.report.layout import sample_rows
from runtime.sources import read_image
from runtime.sources.at_hand import ReadAs, at_hand

MOST_IMAGES = 24
"""Images that the model is run on."""
MASK, NORM = "artifact_mask", "artifact_norm"
_BINS = 40
_AT_ONCE = 8
"""Decoded images in memory."""


def check_outputs(manifest: Manifest, path: str) -> None:
    """Check, before anything long is begun, that the model outputs its artifacts; raises UsageError."""
    wanted = _outputs(manifest)
    if missing := [name for name in wanted if name not in manifest.output_names()]:
        raise UsageError(f"--model {path} has no output {missing[0]}: {how_to_add(manifest, wanted)}")


def _outputs(manifest: Manifest) -> tuple[str, ...]:
    """The outputs that show artifacts: flags alone where these are places that no norm decides about."""
    method = manifest.options.method
    return (MASK,) if method.name == "itae" and method.source is None else (MASK, NORM)


def sample_artifacts(
    model: Model,
    n: int,
    key_of: Callable[[int], Key],
    *,
    seed: int = 0,
    note: str = "",
    read: ReadAs = read_image,
    sixteen_bit: str = "full",
) -> Artifacts | None:
    """Run the model on a random sample of n images; returns None if none of them can be read.

    Args:
        model: a model with the outputs `artifact_mask` and, unless its artifacts are positions, `artifact_norm`.
        n: number of images.
        key_of: returns the key of an image by its row, with its present root.
        seed: seed of the sample.
        note: a remark for the reader.
        read: decodes the image of a key.
        sixteen_bit: how images of 16 bits are read, one of `runtime.images.formats.SIXTEEN_BIT`.
    """
    check_outputs(model.manifest, model.name)
    keys = [key_of(row) for row in sample_rows(n, MOST_IMAGES, seed).tolist()]
    with at_hand(keys, read, sixteen_bit=sixteen_bit) as read_one:
        found, outputs = _run(model, keys, read_one)
    if not found:
        return None
    mask = np.concatenate([one[MASK] for one in outputs])  # (m, K, P)
    norms = np.concatenate([one[NORM] for one in outputs]) if NORM in outputs[0] else None
    manifest = model.manifest
    height, width = manifest.options.image_size
    method = manifest.options.method
    assert method.name == "itae"  # or the exporter had refused these outputs
    patch = manifest.model.patch
    return Artifacts(
        model=model.name,
        detection=method.detection,
        grid=(height // patch, width // patch),
        preprocessing=manifest.preprocessing,
        images=[FlaggedImage(key, share.tolist()) for key, share in zip(found, mask.mean(axis=1), strict=True)],
        norms=[]
        if norms is None
        else [_norms(layer, norms[:, place], mask[:, place]) for place, layer in enumerate(method.layers)],
        seed=seed,
        note=note,
    )


def _run(model: Model, keys: Sequence[Key], read: ReadImage) -> tuple[list[Key], list[Mapping[str, npt.NDArray[Any]]]]:
    """Run the model on some images; gives the keys of those that can be read, and their outputs in batches."""
    found: list[Key] = []
    outputs: list[Mapping[str, npt.NDArray[Any]]] = []
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        images = {key: image for key in some if (image := _read(key, read)) is not None}
        if images:
            found += images
            outputs.append(model.run(list(images.values()), _outputs(model.manifest)))
    return found, outputs


def _read(key: Key, read: ReadImage) -> Image.Image | None:
    try:
        return read(*key)
    except InputError:
        return None


def _norms(layer: int, norm: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> Norms:
    """The histogram of a layer: (m, P) norms and flags."""
    edges = np.histogram_bin_edges(norm.astype(np.float64), _BINS)  # float32 has no 40 steps where norms hardly differ
    normal, flagged = (np.histogram(norm[flag], edges)[0].tolist() for flag in (~mask, mask))
    return Norms(layer, edges.tolist(), normal, flagged)
