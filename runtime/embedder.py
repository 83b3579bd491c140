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
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.preprocess import preprocess
from runtime.sources import Item, Sources, Unreadable, load_item, location
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
    sources: Sources,
    folder: Path,
    batch: int | None = None,
    advance: Callable[[int, int], None] = lambda embedded, unreadable: None,
) -> Embedded:
    """Embed the pictures of `sources` into `folder`, in order; what can't be read is recorded and left out.

    Args:
        model: a model with an `embedding` output.
        sources: from `open_sources`.
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
    unreadable: list[Unreadable] = []
    images = 0
    with new_store(folder, _origin(model.manifest)) as writer:
        for files, inputs, problems in _batches(model.manifest, sources, size):
            for problem in problems:
                writer.add_error(problem.root, problem.path, problem.error)
            unreadable += problems
            if files:
                _embed_batch(model, files, inputs, writer)
                images += len(files)
            advance(images, len(unreadable))
    return Embedded(images, tuple(unreadable))


def _embed_batch(model: Model, files: Sequence[Item], inputs: npt.NDArray[Any], writer: StoreWriter) -> None:
    try:
        vectors = model.embed(inputs, len(files))
    except CheckError as error:
        first, last = (location(file.root, file.path) for file in (files[0], files[-1]))
        raise CheckError(f"{error} (from {first} to {last})") from error
    writer.add([file.root for file in files], [file.path for file in files], vectors)


def _batches(
    manifest: Manifest, sources: Sources, size: int
) -> Iterator[tuple[list[Item], npt.NDArray[Any], list[Unreadable]]]:
    """Read pictures into batches of `size`; the last one holds what is left, which may be none."""
    good: list[Item] = []
    inputs: list[npt.NDArray[Any]] = []
    bad: list[Unreadable] = []
    for item in sources.items():
        if isinstance(item, Unreadable):
            bad.append(item)
        else:
            try:
                inputs.append(preprocess(load_item(item), manifest.preprocessing))
                good.append(item)
            except InputError as error:
                bad.append(Unreadable(item.root, item.path, str(error)))
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
