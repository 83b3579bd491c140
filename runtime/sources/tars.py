"""Images inside a tar: WebDataset's shards, and any other."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import BinaryIO

from runtime.contract.errors import InputError
from runtime.contract.keys import Keys
from runtime.images.formats import HEAD
from runtime.sources.files import NOT_UTF8
from runtime.sources.item import Entry, IsWanted, Item, Unreadable, reason
from runtime.sources.names import is_image, is_remote, is_utf8, printable
from runtime.sources.remote import open_binary
from runtime.sources.selection import ALL, SAME_NAME, UNKNOWN, Selection, as_line, kind_by_content, kind_by_suffix
from runtime.sources.tar_members import Member, members, read_data, read_start, unpacked

_INDEXES = 4
"""Number of tars whose members' places are kept, at about 200 bytes for each member."""


class Tar:
    """A tar, read in one pass. Root: the tar; path: the member's name. Of two members of a name the first counts."""

    may_repeat = False

    def __init__(self, root: str, max_bytes: int, selection: Selection = ALL) -> None:
        self.roots = (root,)
        self.skipped: Counter[str] = Counter()
        self._max_bytes = max_bytes
        self._selection = selection

    def bytes_to_count(self) -> int | None:
        """Size of the file whose headers `count` reads; None if it can't count."""
        if is_remote(self.roots[0]):
            return None
        try:
            with _opened(self.roots[0]) as (file, tar):
                return os.stat(self.roots[0]).st_size if file is tar else None  # noqa: PTH116
        except Exception:  # `items` reports it
            return None

    def count(self) -> int | None:
        """Number of entries by the headers; None if the tar is packed or remote."""
        return None if self.bytes_to_count() is None else sum(1 for _ in self._entries(lambda *_: True, read=False))

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images; damage comes last, under the empty path."""
        return self._entries(is_wanted, read=True)

    def _entries(self, is_wanted: IsWanted, *, read: bool) -> Iterator[Entry]:
        root = self.roots[0]
        seen, found = Keys(), False
        skipped: Counter[str] = Counter()
        if read:
            self.skipped = skipped
        with contextlib.ExitStack() as stack:
            try:
                _, tar = stack.enter_context(_opened(root))
            except Exception as error:
                yield Unreadable(root, "", reason(error))
                return
            for member in _until_damage(tar):
                if isinstance(member, str):
                    yield Unreadable(root, "", member)
                    return
                if (why := self._passed_over(tar, member)) is not None:
                    skipped[why] += 1
                elif not seen.add("", member.name):
                    skipped[SAME_NAME] += 1
                else:
                    found = True
                    if one := self._entry(tar, member, is_wanted, read=read):
                        yield one
        if not found:
            what = as_line(skipped) if skipped else "no file at all"
            yield Unreadable(root, "", f"holds no member that is an image: {what}")

    def _passed_over(self, tar: BinaryIO, member: Member) -> str | None:
        return self._selection.passed_over(member.name) or _other_kind(tar, member)

    def _entry(self, tar: BinaryIO, member: Member, is_wanted: IsWanted, *, read: bool) -> Entry | None:
        root = self.roots[0]
        problem = member.problem if is_utf8(member.name) else NOT_UTF8
        if problem is None and member.size > self._max_bytes:
            problem = f"has {member.size:,} bytes, more than {self._max_bytes:,}"
        if problem is not None:
            return Unreadable(root, printable(member.name), printable(problem))
        if not is_wanted(root, member.name):
            return None
        if not read:
            return Item(root, member.name)
        try:
            return Item(root, member.name, read_data(tar, member))
        except Exception as error:
            return Unreadable(root, member.name, reason(error))


def _other_kind(tar: BinaryIO, member: Member) -> str | None:
    """The kind of a member that is no image by its name, or by its content where the name doesn't say; or None."""
    if is_image(member.name):
        return None
    if (kind := kind_by_suffix(member.name)) is not None or member.problem:
        return kind or UNKNOWN
    try:
        return kind_by_content(read_start(tar, member, HEAD))
    except Exception:  # the walk reports the damage where it comes to it
        return UNKNOWN


def _until_damage(tar: BinaryIO) -> Iterator[Member | str]:
    """The members; if the tar is damaged, the reason comes last."""
    try:
        yield from members(tar)
    except Exception as error:  # an unpacker fed a hostile file raises anything
        yield reason(error)


def read_member(root: str, path: str, max_bytes: int) -> bytes:
    """Return the data of a member of a tar.

    Raises:
        InputError: there is no member of this name, or it can't be read.
    """
    try:
        with _opened(root) as (_, tar):
            return read_data(tar, _find(root, tar, path, max_bytes))
    except Exception as error:
        raise InputError(reason(error)) from error


def _find(root: str, tar: BinaryIO, path: str, max_bytes: int) -> Member:
    member = _index(root, tar).get(path)
    if member is None:
        raise InputError("is not in the tar, or lies after the place where the tar is damaged")
    if member.problem or member.size > max_bytes:
        raise InputError(printable(member.problem or f"has {member.size:,} bytes, more than {max_bytes:,}"))
    return member


@contextlib.contextmanager
def _opened(root: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the tar's file, and the unpacked tar, which is the same object if it isn't packed."""
    with open_binary(root) as file:
        yield file, unpacked(file)


_indexes: OrderedDict[tuple[object, ...], dict[str, Member]] = OrderedDict()
_lock = Lock()


def _index(root: str, tar: BinaryIO) -> dict[str, Member]:
    """The images in a tar by name, up to where it is damaged; kept for the tars that were read last."""
    key: tuple[object, ...] = (root,)
    if not is_remote(root):
        status = os.stat(root)  # noqa: PTH116
        key = (root, status.st_size, status.st_mtime_ns)
    with _lock:  # one thread walks, the others wait for what it finds
        if key not in _indexes:
            made: dict[str, Member] = {}
            with contextlib.suppress(Exception):  # `items` has reported the damage
                for member in members(tar):
                    if _other_kind(tar, member) is None:
                        made.setdefault(member.name, member)
            _indexes[key] = made
            while len(_indexes) > _INDEXES:
                _indexes.popitem(last=False)
        _indexes.move_to_end(key)
        return _indexes[key]
