"""Lists of paths: a text file, standard input, a column of a parquet file."""

from __future__ import annotations

import codecs
import os
import posixpath
import re
from collections.abc import Callable, Iterator

from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key
from runtime.sources.files import NOT_UTF8, resolved
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted, Item, Unreadable
from runtime.sources.names import check_inside, is_remote, is_utf8, printable
from runtime.sources.picture_text import is_data_uri
from runtime.sources.remote import split

_MAX_LENGTH = 16_384
"""Largest number of characters of a URL with a signature: longer lines are not of a list."""
_MAX_PATH = 4096
"""Largest number of characters of a path; the system opens none of more bytes."""
_SHOWN = 200


class PathList:
    """Paths and URLs, one after the other.

    A relative path is below `base`: the current folder, as for `tar -T` and xargs, or the folder of a remote list. Its
    key is `base` and the path, or its own folder and name if it leads out of `base`. The key of any other path is its
    folder and name.
    """

    may_repeat = True
    roots: tuple[str, ...] = ()
    skipped = NONE_SKIPPED

    def __init__(self, entries: Callable[[], Iterator[str | Unreadable]], count: int | None, base: str) -> None:
        self._entries = entries
        self._count = count
        self._base = base

    def count(self) -> int | None:
        """Number of paths, also of those that come twice; None if everything must be read to know it."""
        return self._count

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, in the list's order."""
        for text in self._entries():
            if isinstance(text, Unreadable):
                yield text
                continue
            try:
                root, path = key_of(text, self._base)
            except (InputError, OSError, RuntimeError, ValueError) as error:
                shown = text if len(text) <= _MAX_PATH and not is_data_uri(text) else f"{text[:_SHOWN]}…"
                yield Unreadable(printable(self._base), printable(shown), printable(one_line(error)))
            else:
                if is_wanted(root, path):
                    yield Item(root, path)


def key_of(text: str, base: str) -> Key:
    """Return root and path of an entry of a list whose relative paths are below `base`.

    Raises:
        InputError: it can't be the path of an image.
        OSError, RuntimeError, ValueError: its folder can't be resolved.
    """
    if is_data_uri(text):
        raise InputError(
            "is a picture written as a data URI, not a path: such pictures are read from columns of parquet"
        )
    if len(text) > (_MAX_LENGTH if is_remote(text) else _MAX_PATH):
        raise InputError(f"has {len(text):,} characters, too many for a path")
    if not is_utf8(text):
        raise InputError(NOT_UTF8)
    if text.startswith("file:/") and not is_remote(text):  # as Spark writes the path of a local file
        text = text.removeprefix("file:")
    if is_remote(text):
        root, path = split(text)
    elif is_remote(base):
        root, path = base, posixpath.normpath(text)
        check_inside(path)
    elif text.startswith("/") or ".." in text.split("/"):
        folder, path = os.path.split(text)
        root = resolved(os.path.join(base, folder))  # noqa: PTH118  # a Path drops what it takes for needless
        if not text.startswith("/") and f"{root}/".startswith(f"{base.rstrip('/')}/"):
            root, path = base, posixpath.join(os.path.relpath(root, base), path)
            path = posixpath.normpath(path) if path[-1:] != "/" else ""
    else:
        root, path = base, posixpath.normpath(text)
    if posixpath.basename(path) in ("", ".", ".."):
        raise InputError("names a folder, not an image")
    if not is_utf8(root):
        raise InputError(NOT_UTF8)
    return root, path


def text_list(data: bytes, name: str, base: str) -> PathList:
    """Read a list: UTF-8, a path in each line, also with CRLF, or a NUL after each path as from `find -print0`.

    Raises:
        InputError: it is UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{printable(name)}: is UTF-16; save the list as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    pattern = re.compile(rb"[^\0]+" if b"\0" in data else rb"[^\r\n]*[^\r\n\t ][^\n]*")

    def entries() -> Iterator[str | Unreadable]:
        for match in pattern.finditer(data):
            yield match[0].removesuffix(b"\r").decode("utf-8", "surrogateescape")

    return PathList(entries, sum(1 for _ in pattern.finditer(data)), base)
