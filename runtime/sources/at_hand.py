"""Many images by their keys: those in packed tars and parquet files are read in one pass beforehand."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from runtime.contract.atomic import cannot_write
from runtime.contract.errors import InputError
from runtime.contract.keys import Key
from runtime.images.decode import MAX_PIXELS, ReadImage, decode_image, max_bytes
from runtime.sources.item import Entry, Item
from runtime.sources.parquet_images import read_rows
from runtime.sources.reading import container, read_image
from runtime.sources.tars import Tar


class ReadAs(Protocol):
    """A function that decodes the image of a root and a path; it raises InputError."""

    def __call__(self, root: str, path: str, /, *, sixteen_bit: str) -> Image.Image:
        """Decode it, images of 16 bits as one of `runtime.images.formats.SIXTEEN_BIT` says."""


@contextlib.contextmanager
def at_hand(keys: Iterable[Key], read: ReadAs = read_image, *, sixteen_bit: str = "full") -> Iterator[ReadImage]:
    """Yield a function like `read` that is faster for `keys`.

    To read one member of a packed tar or one row of a parquet file, everything before it must be read as well. Here
    that happens once for each such file, and the undecoded images wait in a temporary file, so that memory does not
    grow.

    Args:
        keys: root and path of the images that will be read; `read` serves all others.
        read: decodes an image by its key.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`.

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
                return read(root, path, sixteen_bit=sixteen_bit)
            if isinstance(where, str):
                raise InputError(where)
            offset, size = where
            content = os.pread(file.fileno(), size, offset)  # threads share no position
            return decode_image(content, sixteen_bit=sixteen_bit)

        yield read_one


def _copy(wanted: Mapping[str, set[str]], file: BinaryIO) -> dict[Key, tuple[int, int] | str]:
    """Write the images that are slow to read into `file`; returns offset and size of each, or why it can't be read."""
    place: dict[Key, tuple[int, int] | str] = {}
    for root, paths in wanted.items():
        with contextlib.suppress(InputError):  # the file can't be read: `read` says so
            for path, data in _found(root, paths):
                if isinstance(data, str):
                    place[root, path] = data
                else:
                    place[root, path] = file.tell(), file.write(data)
    return place


def _found(root: str, paths: set[str]) -> Iterator[tuple[str, bytes | str]]:
    """The bytes of the images at `paths`, or why they can't be read, if reading one image costs a pass.

    Images that do not exist are left out. There are none of a root where it costs less: files, and tars that allow
    seeking.

    Raises:
        InputError: the file can't be read.
    """
    kind, limit, left = container(root), max_bytes(MAX_PIXELS), set(paths)
    entries: Iterator[Entry] = iter(())
    if kind == "tar" and not root.lower().endswith(".tar"):
        entries = Tar(root, limit).items(lambda _, path: path in left)
    elif kind == "parquet":
        entries = read_rows(root, paths, limit)
    for one in entries:
        if one.path in left:
            left.remove(one.path)
            if not isinstance(one, Item):
                yield one.path, one.error
            elif one.data is not None:
                yield one.path, one.data
        if not left:
            return
