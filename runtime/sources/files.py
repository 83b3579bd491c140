"""Local files and folders."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.sources.item import Entry, IsWanted, Item, Unreadable
from runtime.sources.names import is_image, is_utf8, printable

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
    """A folder, searched through by `SUFFIXES`, sorted by path; folders that are links are not entered."""

    may_repeat = False

    def __init__(self, path: str) -> None:
        self.roots = (resolved(path),)
        self._paths: list[str] = []
        self._unlistable: dict[str, str] = {}
        self._search()
        self._paths.sort()

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
        folders = [""]  # relative to the root, each but the root with a slash at its end
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(os.path.join(self.roots[0], folder)) as entries:  # noqa: PTH118  # a Path is slow
                    for one in entries:
                        if one.is_dir(follow_symlinks=False):
                            folders.append(f"{folder}{one.name}/")
                        elif is_image(one.name) and not (one.is_symlink() and _leads_to_a_folder(one)):
                            self._paths.append(folder + one.name)
            except OSError as error:
                self._unlistable[folder[:-1]] = f"folder can't be listed: {error.strerror}"
                self._paths.append(folder[:-1])


class Unusable:
    """A file that can't be read at all. It becomes one line of errors: one bad shard of many stops nothing."""

    may_repeat = False

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
