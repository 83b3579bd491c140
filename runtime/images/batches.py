"""Pictures as a program has them, made into a model's input: paths, files' content, Pillow images, arrays."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError, one_line
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest
from runtime.images.decode import (
    MAX_PIXELS,
    Note,
    OnNote,
    decode_image,
    keep_freed_memory,
    load_image,
    max_bytes,
    to_rgb,
)
from runtime.images.preprocess import preprocess

Array = npt.NDArray[Any]
Bytes = bytes | bytearray | memoryview
T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class OpenFile(Protocol):
    """A binary file that is open for reading, or what reads like one: `io.BytesIO`, an upload of a web framework."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, none at the end."""


Picture = str | os.PathLike[str] | Bytes | OpenFile | Image.Image | npt.NDArray[Any]
"""A path; a file's content; an open file; a Pillow image; a decoded picture, (H, W, 3) uint8; a model's input,
(3, H, W) float32."""
Pictures = Picture | Iterable[Picture]
"""One picture or any number: a sequence, a generator, an array of paths, (n, H, W, 3) uint8, (n, 3, H, W) float32."""
OnError = Callable[[int, str], None]
"""Takes the number of a picture, from 0, and why it can't be used."""
OnNumberedNote = Callable[[int, Note], None]
"""Takes the number of a picture, from 0, and a remark on it; called by several threads."""

_ARRAYS = "a decoded picture as uint8 (H, W, 3), RGB, or the input of a float32 model as it takes it"
_KINDS = f"a path, a file's content, an open binary file, a Pillow image, {_ARRAYS}"
_CHUNK = 1 << 20
_pillow = threading.Lock()
"""For Pillow images that a caller gave: they decode themselves when first used, which two threads can't do at once."""


class ImageError(InputError):
    """A picture that can't be used, with its number, from 0."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"image {number}: {reason}")
        self.number, self.reason = number, reason


@dataclass(frozen=True)
class _Decoder:
    """Makes pictures into inputs of a model."""

    manifest: Manifest
    sixteen_bit: str
    on_note: OnNumberedNote

    def take(self, number: int, picture: Picture) -> tuple[int, Path | bytes | Image.Image | Array | ImageError]:
        """A picture that no longer depends on the caller, who may go on and close its file or overwrite its buffer."""
        try:
            return number, self._own(number, picture)
        except InputError as error:
            return number, ImageError(number, str(error))

    def _own(self, number: int, picture: Picture) -> Path | bytes | Image.Image | Array:
        if isinstance(picture, str | os.PathLike):
            return Path(picture)
        if isinstance(picture, Bytes):
            return bytes(picture)
        if isinstance(picture, Image.Image):
            with _pillow:
                return _rgb(picture, self.sixteen_bit, functools.partial(self.on_note, number))
        if isinstance(picture, np.ndarray):
            return _from_array(picture, self.manifest)
        if isinstance(picture, OpenFile):
            return _content(picture)
        raise InputError(f"a picture is {_KINDS}; not {type(picture).__name__}")

    def prepare(self, number: int, picture: Path | bytes | Image.Image | Array | ImageError) -> Array | ImageError:
        """The model's input of a picture that was taken."""
        if isinstance(picture, np.ndarray | ImageError):
            return picture
        on_note = functools.partial(self.on_note, number)
        try:
            if isinstance(picture, Path):
                picture = load_image(picture, MAX_PIXELS, self.sixteen_bit, on_note)
            elif isinstance(picture, bytes):
                picture = decode_image(picture, MAX_PIXELS, self.sixteen_bit, on_note)
            return preprocess(picture, self.manifest.preprocessing)
        except InputError as error:
            return ImageError(number, str(error))


def batches(
    images: Pictures,
    manifest: Manifest,
    size: int,
    on_error: OnError | None = None,
    *,
    sixteen_bit: str = "full",
    on_note: OnNumberedNote = lambda number, note: None,
) -> Generator[Array, None, None]:
    """Make pictures into the model's input, `size` at a time, the last batch with what is left.

    They are decoded by a few threads, at most two batches ahead of what was taken. What an iterable gives is asked
    for in the caller's thread.

    Args:
        images: one picture or any number; of none there is no batch.
        manifest: the model's.
        size: number of pictures in a batch.
        on_error: called with pictures that can't be used, in their order; they are left out.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.
        on_note: called with remarks on pictures that are decoded, in any order.

    Raises:
        InputError: an image can't be used, and there is no `on_error`; it is named by its number, from 0.
    """
    if on_error is None and isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype != np.uint8:
        for start in range(0, len(images), size):  # a model's input already; the session checks dtype and shape
            yield images[start : start + size]
        return
    keep_freed_memory()
    decoder = _Decoder(manifest, sixteen_bit, on_note)
    with contextlib.closing(_prepared(_each(images), decoder, 2 * size, on_error)) as prepared:
        while batch := list(itertools.islice(prepared, size)):
            yield np.stack(batch)


def _each(images: Pictures) -> Iterable[Picture]:
    """The single pictures; raises InputError where that is neither one nor several."""
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "UTO" and images.ndim <= 1:  # paths, or any objects
            several: list[Picture] = images.reshape(-1).tolist()
            return several
        return images if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Bytes | Image.Image | OpenFile):
        return [images]
    if isinstance(images, Iterable):
        return images
    raise InputError(f"expected {_KINDS}, or several of them; not {type(images).__name__}")


def _prepared(
    pictures: Iterable[Picture], decoder: _Decoder, ahead: int, on_error: OnError | None
) -> Generator[Array, None, None]:
    """Each picture as the model takes it, without the batch, in order."""
    taken = (decoder.take(number, picture) for number, picture in enumerate(pictures))
    with contextlib.closing(in_order(lambda one: decoder.prepare(*one), taken, ahead)) as prepared:
        yield from _usable(prepared, on_error)


def in_order(work: Callable[[T], R], things: Iterable[T], ahead: int) -> Generator[R, None, None]:
    """Do some work on each thing by a few threads, and give the results in order.

    Args:
        work: called by several threads; what it raises is raised here.
        things: asked for in the caller's thread.
        ahead: number of things that are worked on before their results are asked for, at most.
    """
    rest = iter(things)
    start = list(itertools.islice(rest, 2))
    if len(start) < 2:  # no thread is worth its start
        yield from map(work, start)
        return
    waiting: collections.deque[Future[R]] = collections.deque()
    pool = ThreadPoolExecutor(usable_cores(), "itae-decode")
    try:
        for one in itertools.chain(start, rest):
            waiting.append(pool.submit(work, one))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _usable(prepared: Iterable[Array | ImageError], on_error: OnError | None) -> Iterator[Array]:
    """The pictures that can be used; of the others `on_error` learns, or the first is raised."""
    for one in prepared:
        if not isinstance(one, ImageError):
            yield one
        elif on_error is None:
            raise one
        else:
            on_error(one.number, one.reason)


def _content(file: OpenFile) -> bytes:
    """All of an open file, from its beginning where it can seek, wherever it stands.

    Raises:
        InputError: it can't be read, is opened as text, reads asynchronously, or is too large.
    """
    limit = max_bytes(MAX_PIXELS)
    content = bytearray()
    try:
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            file.seek(0)  # type: ignore[attr-defined]  # a stream of the network can't
        while chunk := _bytes(file.read(_CHUNK)):
            content += chunk
            if len(content) > limit:
                break
    except InputError:
        raise
    except Exception as error:  # of any library's file
        raise InputError(f"is a file that can't be read ({type(error).__name__}: {one_line(error)})") from error
    if len(content) > limit:
        raise InputError(f"is a file of more than {limit:,} bytes")
    return bytes(content)


def _bytes(chunk: object) -> Bytes:
    """Return what the `read` of a file returned; raises InputError if that is not bytes."""
    if isinstance(chunk, Bytes):
        return chunk
    if isinstance(chunk, Coroutine):
        chunk.close()
        raise InputError("is a file whose read() must be awaited: give its `file`, or its content")
    if isinstance(chunk, str):
        raise InputError("is a file that was opened as text: open it with mode 'rb'")
    raise InputError(f"is a file whose read() returned {type(chunk).__name__}, not bytes")


def _rgb(image: Image.Image, sixteen_bit: str, on_note: OnNote) -> Image.Image:
    """A copy of a Pillow image, which may be decoded here, lazily opened as it was."""
    try:
        return to_rgb(image, sixteen_bit, on_note)
    except InputError:
        raise
    except Exception as error:  # a decoder fed a hostile file raises anything
        raise InputError(f"can't be decoded ({type(error).__name__}: {one_line(error)})") from error


def _from_array(array: Array, manifest: Manifest) -> Image.Image | Array:
    """A copy of a decoded picture (H, W, 3) uint8 as an image, or of a model's input (3, H, W) float32 as it is."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return Image.fromarray(array)  # which copies: Pillow holds 4 bytes of a pixel
    if array.dtype == manifest.input.dtype == "float32" and array.shape == manifest.input.shape[1:]:
        if not np.isfinite(array).all():
            raise InputError("is an array that holds NaN or infinity")
        return array.copy()
    raise InputError(f"is an array of {array.dtype} {array.shape}: expected {_ARRAYS}")
