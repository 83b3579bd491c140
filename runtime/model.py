"""A loaded model in a program: pictures to embeddings in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.backends.gpu import DlpackTensor
from runtime.backends.session import Session, chosen_batch, run_in_batches
from runtime.backends.tensors import embed_tensor, is_tensor
from runtime.errors import InputError
from runtime.images import load_image
from runtime.manifest import Manifest
from runtime.preprocess import preprocess

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

    @overload
    def embed(self, images: Picture | Sequence[Picture] | npt.NDArray[Any], batch: int | None = None) -> Float32: ...

    @overload
    def embed(self, images: DlpackTensor, batch: int | None = None) -> DlpackTensor: ...

    def embed(self, images: Any, batch: int | None = None) -> Any:  # as the overloads say
        """Embed n pictures as (n, C) float32.

        Args:
            images: paths or Pillow images of any size, or an array as the model takes it, batch dimension
                included: (n, 3, H, W) float32, normalised, or (n, H, W, 3) uint8. Or such a tensor of another library
                (DLPack: PyTorch, CuPy, JAX) on the model's device: the embedding stays there, nothing is copied, see
                `runtime.backends.tensors.embed_tensor`.
            batch: how many to run at a time; the model's preferred number where None.

        Raises:
            InputError: a picture can't be read, or the array is not as the model takes it.
            UsageError: the model has no `embedding` output, or takes no such batch.
            CheckError: the model gave NaN or infinity.
            BackendError: the backend failed: out of memory, for one.
        """
        if is_tensor(images):
            return embed_tensor(self.session, images, batch)
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
