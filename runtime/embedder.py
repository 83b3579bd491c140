"""Pictures from files into a store of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.session import check_names, chosen_batch
from runtime.errors import CheckError, InputError
from runtime.images import Found, ImageFile, Unreadable, load_image
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.preprocess import preprocess
from runtime.store_writer import StoreWriter, new_store

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """What `embed_files` did."""

    images: int
    """How many embeddings were written."""
    unreadable: tuple[Unreadable, ...]
    """What could not be read, each also a line of `errors.jsonl`."""


def embed_files(
    model: Model,
    found: Found,
    folder: Path,
    batch: int | None = None,
    advance: Callable[[int, int], None] = lambda embedded, unreadable: None,
) -> Embedded:
    """Embed the pictures of `found` into `folder`, in order; what can't be read is recorded and left out.

    Args:
        model: a model with an `embedding` output.
        found: from `find_images`.
        folder: where the store goes; embeddings there are replaced at the end, if any picture was read.
        batch: how many to run at a time; the model's preferred number where None.
        advance: told after each batch how many are embedded and unreadable so far.

    Raises:
        UsageError: the model has no `embedding` output, or takes no such batch.
        OutputFileError: the folder can't be made or written, or holds other `.parquet` files.
        CheckError: the model gave NaN or infinity.
        BackendError: the backend failed.
    """
    check_names(model.manifest, ["embedding"])
    size = chosen_batch(model.manifest, batch)
    unreadable = list(found.unreadable)
    images = 0
    with new_store(folder, _origin(model.manifest)) as writer:
        for problem in found.unreadable:
            writer.add_error(problem.root, problem.path, problem.error)
        for files, inputs, problems in _batches(model.manifest, found.files, size):
            for problem in problems:
                writer.add_error(problem.root, problem.path, problem.error)
            unreadable += problems
            if files:
                _embed_batch(model, files, inputs, writer)
                images += len(files)
            advance(images, len(unreadable))
    return Embedded(images, tuple(unreadable))


def _embed_batch(model: Model, files: Sequence[ImageFile], inputs: npt.NDArray[Any], writer: StoreWriter) -> None:
    try:
        vectors = model.run_inputs(inputs, ["embedding"], len(files))["embedding"]
    except CheckError as error:
        raise CheckError(f"{error} (from {files[0].location} to {files[-1].location})") from error
    writer.add([file.root for file in files], [file.path for file in files], vectors)


def _batches(
    manifest: Manifest, files: Sequence[ImageFile], size: int
) -> Iterator[tuple[list[ImageFile], npt.NDArray[Any], list[Unreadable]]]:
    """Read pictures into batches of `size`; the last one holds what is left, which may be none."""
    good: list[ImageFile] = []
    inputs: list[npt.NDArray[Any]] = []
    bad: list[Unreadable] = []
    for file in files:
        try:
            inputs.append(preprocess(load_image(file.location), manifest.preprocessing))
            good.append(file)
        except InputError as error:
            bad.append(Unreadable(file.root, file.path, str(error).removeprefix(f"{file.location}: ")))
        if len(good) == size or len(bad) == size:
            yield good, _stack(inputs), bad
            good, inputs, bad = [], [], []
    if good or bad:
        yield good, _stack(inputs), bad


def _stack(inputs: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.stack(inputs) if inputs else np.empty(0)


def _origin(manifest: Manifest) -> dict[str, Any]:
    """What made the embeddings, for the metadata of each part."""
    return {
        "model": manifest.files.model.name,
        "model_sha256": manifest.files.model.sha256,
        "options": manifest.options.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
    }
