"""What a source gives: an image to be decoded, or what can't be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from runtime.contract.errors import InputError, one_line
from runtime.sources.names import printable


@dataclass(frozen=True, slots=True)
class Item:
    """An image under its key in the store, not yet decoded."""

    root: str
    """Of a file: its folder, absolute, links resolved, or a URL. Of what lies inside a tar or parquet: that file."""
    path: str
    """Relative to `root`, with slashes; unique below it."""
    data: bytes | None = None
    """The file's content, where the source came past it; none: whoever decodes it reads it."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What can't be used, and why: a line of `errors.jsonl`."""

    root: str
    path: str
    error: str


def reason(error: Exception) -> str:
    """Why a source or an image in it can't be read, as in `errors.jsonl`: without its name."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"can't be read ({type(error).__name__}: {printable(one_line(error))})"


Entry = Item | Unreadable
IsWanted = Callable[[str, str], bool]
"""Asked with root and path of each image, before its bytes are read."""


class Source(Protocol):
    """What one argument leads to."""

    @property
    def roots(self) -> tuple[str, ...]:
        """Roots of its keys, as far as they are known without reading all."""

    may_repeat: bool
    """Whether it may give a key twice, or one of another source though their `roots` differ."""

    def count(self) -> int | None:
        """How many entries come, where that is known without reading all."""

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """What comes, in order, without the images that are not wanted."""
