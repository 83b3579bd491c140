"""Local files and folders."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from runtime.images.decode import open_without_waiting
from runtime.images.formats import HEAD
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted, Item, Unreadable
from runtime.sources.names import is_utf8, printable
from runtime.sources.selection import (
    LINK,
    PARQUET_KIND,
    SEARCHED,
    Selection,
    is_part,
    kind_by_content,
    kind_by_suffix,
    needs_a_look,
    take_back,
)

NOT_UTF8 = "its name is not UTF-8: rename it"


def resolved(folder: str) -> str:
    """Return a folder as a root: absolute, links resolved; raises OSError, RuntimeError, ValueError."""
    return _resolved(os.path.join(Path.cwd(), folder))  # noqa: PTH118  # a Path drops what it takes for needless


@functools.lru_cache(maxsize=1024)
def _resolved(folder: str) -> str:
    return str(Path(folder).resolve())


def entry(root: str, path: str, is_wanted: IsWanted) -> Entry | None:
    """The image of a key, `Unreadable` if the store can't hold its name; None if it is not wanted."""
    if not (is_utf8(root) and is_utf8(path)):
        return Unreadable(printable(root), printable(path), NOT_UTF8)
    return Item(root, path) if is_wanted(root, path) else None


class NamedFile:
    """A file that is an argument itself, local or remote, whatever its name; its folder is its root."""

    may_repeat = False
    skipped = NONE_SKIPPED

    def __init__(self, root: str, name: str) -> None:
        self.roots = (root,)
        self._name = name

    def count(self) -> int:
        """One."""
        return 1

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The file."""
        if one := entry(self.roots[0], self._name, is_wanted):
            yield one


class Folder:
    """A folder, searched through and sorted by path: files that the selection takes and that are pictures.

    A file is a picture by its name (`SUFFIXES`), or, if its name says nothing, by its first bytes.
    """

    may_repeat = False

    def __init__(self, path: str, selection: Selection) -> None:
        self.roots = (resolved(path),)
        self._paths: list[str] = []
        self._unlistable: dict[str, str] = {}
        self._selection = selection
        self.skipped: Counter[str] = Counter()
        self._parquet: list[str] = []
        self._search()
        self._paths.sort()

    def take_parquet(self) -> list[str]:
        """Return the parquet files of a folder without pictures, as Spark and others write data sets, by path.

        They no longer count as passed over. Names that begin with an underscore are no part of a data set.
        """
        if self._paths:
            return []
        take_back(self.skipped, PARQUET_KIND, len(self._parquet))
        return [os.path.join(self.roots[0], path) for path in sorted(self._parquet)]  # noqa: PTH118

    def count(self) -> int:
        """Number of images and of folders that can't be listed."""
        return len(self._paths)

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, and the folders that can't be listed."""
        root = self.roots[0]
        for path in self._paths:
            if reason := self._unlistable.get(path):
                yield Unreadable(printable(root), printable(path), reason)
            elif one := entry(root, path, is_wanted):
                yield one

    def _search(self) -> None:
        """List the folders, then those that links lead to, each once and under its own name if it lies below."""
        folders: list[tuple[str, str | None]] = [("", None)]
        links: list[str] = []
        entered: set[tuple[int, int]] = set()
        while folders or links:
            if not folders:
                links.sort(reverse=True)
                folders.append((links.pop(), None))
            folder, passed_over = folders.pop()
            try:
                if self._selection.follow_links and passed_over is None:
                    status = os.stat(os.path.join(self.roots[0], folder))  # noqa: PTH116, PTH118  # a Path is slow
                    if (identity := (status.st_dev, status.st_ino)) in entered:
                        self.skipped[SEARCHED] += 1
                        continue
                    entered.add(identity)
                self._list(folder, passed_over, folders, links)
            except OSError as error:
                if passed_over is not None:
                    self.skipped[passed_over] += 1
                    continue
                self._unlistable[folder[:-1]] = f"folder can't be listed: {error.strerror}"
                self._paths.append(folder[:-1])

    def _list(
        self, folder: str, passed_over: str | None, folders: list[tuple[str, str | None]], links: list[str]
    ) -> None:
        """Take the pictures of a folder.

        Args:
            folder: relative to the root, with a slash at its end; empty for the root.
            passed_over: why the folder is passed over, so that its files are only counted; None if it is not.
            folders: the folders in it are added, each with the reason why it is passed over.
            links: the links to folders in it that are to be followed are added.
        """
        with os.scandir(os.path.join(self.roots[0], folder)) as entries:  # noqa: PTH118  # a Path is slow
            for one in entries:
                path = folder + one.name
                is_folder = one.is_dir(follow_symlinks=False)
                is_link_to_folder = not is_folder and one.is_symlink() and _leads_to_a_folder(one)
                why = passed_over or self._selection.passed_over(path, is_folder=is_folder or is_link_to_folder)
                if is_folder:
                    folders.append((f"{path}/", why))
                elif why is None and is_link_to_folder and self._selection.follow_links:
                    links.append(f"{path}/")
                else:
                    if why is None:
                        why = LINK if is_link_to_folder else _why_not(one)
                    if why is None:
                        self._paths.append(path)
                    else:
                        self.skipped[why] += 1
                        if why == PARQUET_KIND and is_part(path):
                            self._parquet.append(path)


class Unusable:
    """A file that can't be read at all. It becomes one line of errors: one bad shard of many stops nothing."""

    may_repeat = False
    skipped = NONE_SKIPPED

    def __init__(self, root: str, error: str) -> None:
        self.roots = (printable(root),)
        self._error = error

    def count(self) -> int:
        """One."""
        return 1

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The reason."""
        yield Unreadable(self.roots[0], "", self._error)


def _leads_to_a_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a link to itself
        return False


def _why_not(file: os.DirEntry[str]) -> str | None:
    """Why a file is no picture, by its name, or by its beginning if the name says nothing; None if it is one."""
    if not needs_a_look(file.name):
        return kind_by_suffix(file.name)
    try:
        if file.is_symlink() and not os.path.exists(file.path):  # noqa: PTH110  # also for a link to itself
            return "broken link"
        if not file.is_file():
            return "no regular file"
        with open(file.path, "rb", opener=open_without_waiting) as opened:  # Path.open takes no opener
            return kind_by_content(opened.read(HEAD))
    except OSError:
        return "can't be opened"
