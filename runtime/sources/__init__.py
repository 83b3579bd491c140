"""Where images come from: files, folders, lists, tars, parquet files, remote paths. Imports `contract` and `images`.

open_sources(arguments).items(is_wanted) -> Item | Unreadable ... -> load_item(item) -> an image
read_image(root, path)      the image of a key of the store, later
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from runtime.contract.errors import InputError, UsageError, one_line
from runtime.contract.keys import Keys
from runtime.images.decode import MAX_PIXELS, max_bytes
from runtime.sources.files import NOT_UTF8, Folder, NamedFile, Unusable, resolved
from runtime.sources.item import Entry, IsWanted, Item, Source, Unreadable
from runtime.sources.lists import text_list
from runtime.sources.names import SUFFIXES, expand_braces, is_remote, is_utf8, kind_of, printable
from runtime.sources.parquet import open_parquet
from runtime.sources.parquet_columns import NO_COLUMNS, Columns
from runtime.sources.parquet_images import ParquetImages
from runtime.sources.reading import load_item, read_image
from runtime.sources.remote import (
    RemoteFolder,
    cannot,
    canonical,
    is_folder,
    matches,
    open_binary,
    split,
)
from runtime.sources.selection import ALL, Selection, as_line
from runtime.sources.tars import Tar

__all__ = ["ALL", "Columns", "Item", "Selection", "Sources", "Unreadable", "load_item", "open_sources", "read_image"]

STDIN = "-"
_MAX_COUNTED = 8 << 30
"""Bytes of tars up to which their headers are read beforehand, to count the images."""


class Sources:
    """The images that the arguments stand for; `open_sources` makes it."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    @cached_property
    def total(self) -> int | None:
        """Number of entries, None if it is not known beforehand; a key that two arguments lead to counts twice.

        It reads the headers of local tars, up to 8 GiB of tars; packed and remote tars would have to be read whole.
        """
        sizes = [one.bytes_to_count() for one in self._sources if isinstance(one, Tar)]
        if None in sizes or sum(size or 0 for size in sizes) > _MAX_COUNTED:
            return None
        counts = [source.count() for source in self._sources]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def roots(self) -> tuple[str, ...]:
        """Roots of the keys, in order, each once, without those of lists, which are not known beforehand."""
        return tuple(dict.fromkeys(root for source in self._sources for root in source.roots))

    @property
    def skipped(self) -> dict[str, int]:
        """Number of files that were passed over, by reason; those of tars are known after `items`."""
        by_place = {source.roots: source.skipped for source in self._sources if source.skipped}  # named twice: once
        total: Counter[str] = Counter()
        for skipped in by_place.values():
            total.update(skipped)
        return dict(total.most_common())

    @property
    def _may_repeat(self) -> bool:
        """Whether a key may come twice."""
        several = sum(len(source.roots) for source in self._sources) > len(self.roots)
        return several or any(source.may_repeat for source in self._sources)

    def split(self) -> tuple[Sources, list[Sources]]:
        """Return what lists images, and separately what holds them: each tar or parquet file of images by itself.

        The latter may be read elsewhere: they can be pickled by cloudpickle. Where a key may come from two arguments,
        one of which holds images, all arguments are one of the latter.
        """
        holders = [source for source in self._sources if isinstance(source, Tar | ParquetImages)]
        if holders and self._may_repeat:
            return Sources([]), [self]
        listing = [source for source in self._sources if not isinstance(source, Tar | ParquetImages)]
        return Sources(listing), [Sources([source]) for source in holders]

    def items(self, is_wanted: IsWanted = lambda root, path: True) -> Iterator[Entry]:
        """The entries of all arguments, one after the other, each key once.

        Args:
            is_wanted: called once with root and path of each image, before its bytes are read; images for which it
                returns False are left out.
        """
        if not self._may_repeat:
            for source in self._sources:
                yield from source.items(is_wanted)
            return
        images, problems = Keys(), Keys()
        for source in self._sources:
            for one in source.items(lambda root, path: images.add(root, path) and is_wanted(root, path)):
                if isinstance(one, Item) or problems.add(one.root, one.path):
                    yield one


def open_sources(
    arguments: Sequence[str],
    *,
    selection: Selection = ALL,
    max_pixels: int = MAX_PIXELS,
    stdin: BinaryIO | None = None,
    columns: Columns = NO_COLUMNS,
) -> Sources:
    """Find out what each argument is, list folders and read lists, but no image yet.

    Args:
        arguments: image files, folders, lists of paths (`.txt`, `.parquet`, `-`), tars, parquet with images, folders
            that hold parquet files and no picture; local or `SCHEME://`. `{000..012}` and `{a,b}` are expanded where
            there is no such file, a remote `*` always.
        selection: which files of folders and tars are read; files that are named, also by lists, are always read.
        max_pixels: largest number of pixels of an image; it limits the bytes that are read into memory.
        stdin: read in place of standard input.
        columns: columns of parquet files that the user names.

    Raises:
        InputError: an argument does not exist, can't be listed, or there is no image at all.
        UsageError: standard input is a terminal; a scheme is unknown; columns are named, and there is no parquet file.
        BackendError: the package that reads a scheme is not installed.
    """
    limit = max_bytes(max_pixels)
    if columns != NO_COLUMNS and not any(
        ".parquet" in argument.lower() or is_remote(argument) or Path(argument).is_dir() for argument in arguments
    ):
        raise UsageError("--image-column and --key-column are for parquet files: none is named")
    sources: list[Source] = []
    for argument in arguments:
        if argument == STDIN:
            sources.append(text_list(_read_stdin(stdin), "standard input", resolved(".")))
        elif is_remote(argument):
            for url in (url for one in expand_braces(argument) for url in matches(one)):
                sources += _remote(url, limit, selection, columns)
        else:
            names = [argument] if os.path.lexists(argument) else expand_braces(argument)
            for name in names:
                sources += _local(name, limit, selection, columns)
    if all(not isinstance(source, Tar) and source.count() == 0 for source in sources):
        what = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        where = ", ".join(map(printable, arguments))
        skipped = Sources(sources).skipped
        raise InputError(
            f"no image in {where}: looked for files that end in {what}; tars, parquet and lists are read where named"
            f"{f'; {as_line(skipped)}' if skipped else ''}"
        )
    return Sources(sources)


def _local(argument: str, limit: int, selection: Selection, columns: Columns) -> list[Source]:
    """The source that a local argument stands for, or those of the parts of a data set in parquet."""
    try:
        path = Path(argument)
        path.stat()
        if path.is_dir():
            return _folder(Folder(argument, selection), resolved("."), limit, columns)
        folder = resolved(str(path.parent))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        hint = " (a pattern: leave out the quotes, so that the shell expands it)" if set(argument) & set("*?[") else ""
        raise InputError(f"{printable(argument)}: {reason}; give image files or folders{hint}") from error
    kind = kind_of(path.name)
    root = os.path.join(folder, path.name)  # noqa: PTH118
    if kind == "image":
        return [NamedFile(folder, path.name)]
    if kind == "list":
        return [text_list(_content(path), argument, resolved("."))]
    if not is_utf8(root):
        return [Unusable(root, NOT_UTF8)]
    return [Tar(root, limit, selection) if kind == "tar" else open_parquet(root, resolved("."), limit, columns)]


def _folder(folder: Folder | RemoteFolder, base: str, limit: int, columns: Columns) -> list[Source]:
    """A folder of pictures, or the parquet files of one that holds them alone."""
    return [
        folder,
        *(
            open_parquet(file, base, limit, columns) if is_utf8(file) else Unusable(file, NOT_UTF8)
            for file in folder.take_parquet()
        ),
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(str(path))}: {error.strerror}; give a list of paths") from error


def _remote(url: str, limit: int, selection: Selection, columns: Columns) -> list[Source]:
    if is_folder(url):
        return _folder(RemoteFolder(url, selection), url, limit, columns)
    root, (folder, name) = canonical(url), split(url)
    kind = kind_of(name)
    if kind == "tar":
        return [Tar(root, limit, selection)]
    if kind == "parquet":
        return [open_parquet(root, folder, limit, columns)]
    if kind == "image":
        return [NamedFile(*split(url))]
    try:
        with open_binary(root) as file:
            return [text_list(file.read(), url, folder)]
    except Exception as error:
        raise cannot(url, error) from error


def _read_stdin(stdin: BinaryIO | None) -> bytes:
    file = stdin if stdin is not None or sys.stdin is None else sys.stdin.buffer
    if file is None or file.isatty():
        raise UsageError("`-` takes a list of paths from standard input: pipe one in, as from find photos -print0")
    return file.read()
