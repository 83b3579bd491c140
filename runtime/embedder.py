"""Pictures to embeddings: in memory (`Model.embed`) and from files into a store (`embed_files`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.backends.session import Session, check_names, chosen_batch, run_in_batches
from runtime.errors import CheckError, InputError
from runtime.images import Found, ImageFile, Unreadable, load_image
from runtime.manifest import Manifest
from runtime.preprocess import preprocess
from runtime.store_writer import StoreWriter, new_store

Float32 = npt.NDArray[np.float32]
Picture = str | os.PathLike[str] | Image.Image


class Model:
    """A loaded model that embeds pictures; `runtime.load` makes one."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def manifest(self) -> Manifest:
        """Everything about the model that its file doesn't say."""
        return self.session.manifest

    def embed(self, images: Picture | Sequence[Picture] | npt.NDArray[Any], batch: int | None = None) -> Float32:
        """Embed n pictures as (n, C) float32.

        Args:
            images: paths or Pillow images of any size, or an array as the model takes it, batch dimension
                included: (n, 3, H, W) float32, normalised, or (n, H, W, 3) uint8.
            batch: how many to run at a time; the model's preferred number where None.

        Raises:
            InputError: a picture can't be read, or the array is not as the model takes it.
            UsageError: the model has no `embedding` output, or takes no such batch.
            CheckError: the model gave NaN or infinity.
            BackendError: the backend failed: out of memory, for one.
        """
        if isinstance(images, np.ndarray):
            return self._run(images, batch)
        pictures = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
        if not pictures:
            raise InputError("no image to embed")
        size = chosen_batch(self.manifest, batch)
        return np.concatenate(
            [
                self._run(np.stack([self._input(picture) for picture in pictures[start : start + size]]), size)
                for start in range(0, len(pictures), size)
            ]
        )

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _input(self, picture: Picture) -> npt.NDArray[Any]:
        image = picture if isinstance(picture, Image.Image) else load_image(Path(picture))
        return preprocess(image, self.manifest.preprocessing)

    def _run(self, inputs: npt.NDArray[Any], batch: int | None) -> Float32:
        return run_in_batches(self.session, inputs, batch, ["embedding"])["embedding"]


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
        vectors = model.embed(inputs, len(files))
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
