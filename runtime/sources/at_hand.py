"""Images by their keys, many of them: those in packed tars and parquet are read in one pass beforehand."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from runtime.contract.atomic import cannot_write
from runtime.contract.errors import InputError
from runtime.contract.keys import Key
from runtime.images.decode import MAX_PIXELS, ReadImage, decode_image, max_bytes
from runtime.sources.item import Item, Source
from runtime.sources.parquet import open_parquet
from runtime.sources.reading import container, read_image
from runtime.sources.tars import Tar


@contextlib.contextmanager
def at_hand(keys: Iterable[Key], read: ReadImage = read_image) -> Iterator[ReadImage]:
    """Give what `read` is, faster for `keys`.

    To read a member of a packed tar or a row of parquet, all before it is read, each time. Here that happens once for
    each such file; the images wait, as they are, in a temporary file, so that memory doesn't grow with them.

    Args:
        keys: root and path of the images to come; others are left to `read`.
        read: decodes an image by its key.

    Raises:
        OutputFileError: the temporary file can't be written.
    """
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for root, path in keys:
        wanted[root].add(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="itae-images-"))
            place = _copy(wanted, file)
            file.flush()
        except OSError as error:
            raise cannot_write(Path(tempfile.gettempdir(), "itae-images"), error) from error

        def read_one(root: str, path: str) -> Image.Image:
            where = place.get((root, path))
            if where is None:
                return read(root, path)
            if isinstance(where, str):
                raise InputError(where)
            offset, size = where
            return decode_image(os.pread(file.fileno(), size, offset))  # threads share no position

        yield read_one


def _copy(wanted: Mapping[str, set[str]], file: BinaryIO) -> dict[Key, tuple[int, int] | str]:
    """Write the images that are slow to reach; gives where each begins and how long it is, or why it can't be read."""
    place: dict[Key, tuple[int, int] | str] = {}
    for root, paths in wanted.items():
        if (source := _slow(root)) is not None:
            for path, data in _found(source, paths):
                if isinstance(data, str):
                    place[root, path] = data
                else:
                    place[root, path] = file.tell(), file.write(data)
    return place


def _slow(root: str) -> Source | None:
    """The source that a root is, if one image of it costs a pass; none for files, and tars in which one can seek."""
    kind, limit = container(root), max_bytes(MAX_PIXELS)
    if kind == "tar" and not root.lower().endswith(".tar"):
        return Tar(root, limit)
    if kind == "parquet":
        with contextlib.suppress(InputError):  # no images in it: told where they are read
            return open_parquet(root, "", limit)
    return None


def _found(source: Source, paths: set[str]) -> Iterator[tuple[str, bytes | str]]:
    """The bytes of images, or why they can't be read; what is not there doesn't come."""
    left = set(paths)
    for one in source.items(lambda _, path: path in left):
        if one.path in left:
            if not isinstance(one, Item):
                yield one.path, one.error
            elif one.data is not None:
                yield one.path, one.data
            left.remove(one.path)
        if not left:
            return
