"""Pictures as a program has them, made into a model's input: paths, files' content, Pillow images, arrays."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError, one_line
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest
from runtime.images.decode import decode_image, load_image, to_rgb
from runtime.images.preprocess import preprocess

Array = npt.NDArray[Any]
Bytes = bytes | bytearray | memoryview
Picture = str | os.PathLike[str] | Bytes | Image.Image | npt.NDArray[Any]
"""A path; a file's content; a Pillow image; a decoded picture, (H, W, 3) uint8; a model's input, (3, H, W) float32."""
Pictures = Picture | Iterable[Picture]
"""One picture or any number: a sequence, a generator, (n, H, W, 3) uint8, (n, 3, H, W) float32."""

_ARRAYS = "a decoded picture as uint8 (H, W, 3), RGB, or the input of a float32 model as it takes it"
_KINDS = f"a path, a file's content, a Pillow image, {_ARRAYS}"
_pillow = threading.Lock()
"""For Pillow images that a caller gave: they decode themselves when first used, which two threads can't do at once."""


def batches(images: Pictures, manifest: Manifest, size: int) -> Generator[Array, None, None]:
    """Make pictures into the model's input, `size` at a time, the last batch with what is left.

    They are decoded by a few threads, at most two batches ahead of what was taken. What an iterable gives is asked
    for in the caller's thread.

    Raises:
        InputError: an image can't be used; it is named by its number, from 0.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype != np.uint8:
        for start in range(0, len(images), size):  # a model's input already; the session checks dtype and shape
            yield images[start : start + size]
        return
    with contextlib.closing(_prepared(_each(images), manifest, ahead=2 * size)) as prepared:
        while batch := list(itertools.islice(prepared, size)):
            yield np.stack(batch)


def _each(images: Pictures) -> Iterable[Picture]:
    """The single pictures; raises InputError where that is neither one nor several."""
    if isinstance(images, np.ndarray):
        return images if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Bytes | Image.Image):
        return [images]
    if isinstance(images, Iterable):
        return images
    raise InputError(f"expected {_KINDS}, or several of them; not {type(images).__name__}")


def _prepared(pictures: Iterable[Picture], manifest: Manifest, ahead: int) -> Generator[Array, None, None]:
    """Each picture as the model takes it, without the batch, in order."""
    taken = (_take(number, picture, manifest) for number, picture in enumerate(pictures))
    start = list(itertools.islice(taken, 2))
    if len(start) < 2:  # no thread is worth its start
        yield from (_prepare(*one, manifest) for one in start)
        return
    waiting: collections.deque[Future[Array]] = collections.deque()
    pool = ThreadPoolExecutor(usable_cores(), "itae-decode")
    try:
        for number, picture in itertools.chain(start, taken):
            waiting.append(pool.submit(_prepare, number, picture, manifest))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _take(number: int, picture: Picture, manifest: Manifest) -> tuple[int, Path | bytes | Image.Image | Array]:
    """A picture that no longer depends on the caller, who may go on and close its file or overwrite its buffer."""
    with _named(number):
        if isinstance(picture, str | os.PathLike):
            return number, Path(picture)
        if isinstance(picture, Bytes):
            return number, bytes(picture)
        if isinstance(picture, Image.Image):
            with _pillow:
                return number, _rgb(picture)
        if isinstance(picture, np.ndarray):
            return number, _from_array(picture, manifest)
        raise InputError(f"a picture is {_KINDS}; not {type(picture).__name__}")


def _prepare(number: int, picture: Path | bytes | Image.Image | Array, manifest: Manifest) -> Array:
    if isinstance(picture, np.ndarray):
        return picture
    with _named(number):
        if isinstance(picture, Path):
            picture = load_image(picture)
        elif isinstance(picture, bytes):
            picture = decode_image(picture)
        return preprocess(picture, manifest.preprocessing)


def _rgb(image: Image.Image) -> Image.Image:
    """A copy of a Pillow image, which may be decoded here, lazily opened as it was."""
    try:
        return to_rgb(image)
    except InputError:
        raise
    except Exception as error:  # a decoder fed a hostile file raises anything
        raise InputError(f"can't be decoded ({type(error).__name__}: {one_line(error)})") from error


def _from_array(array: Array, manifest: Manifest) -> Image.Image | Array:
    """A copy of a decoded picture (H, W, 3) uint8 as an image, or of a model's input (3, H, W) float32 as it is."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return Image.fromarray(array)  # which copies: Pillow holds 4 bytes of a pixel
    if array.dtype == manifest.input.dtype == "float32" and array.shape == manifest.input.shape[1:]:
        return array.copy()
    raise InputError(f"is an array of {array.dtype} {array.shape}: expected {_ARRAYS}")


@contextlib.contextmanager
def _named(number: int) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"image {number}: {error}") from error
