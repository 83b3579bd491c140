"""The entries of a source: images to decode, and what can't be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key
from runtime.sources.names import printable


@dataclass(frozen=True, slots=True)
class Item:
    """An image under its key in the store, not yet decoded."""

    root: str
    """The folder of a file, absolute, links resolved, or its URL. For an image in a tar or parquet file: that file."""
    path: str
    """Relative to `root`, with slashes; unique below it."""
    data: bytes | None = None
    """The file's content, if the source has read it; None: it is read when it is decoded."""
    place: Key | None = None
    """The folder and the name of the file with the content if the key is not its place; None: it is."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image or a source that can't be read, and why: a line of `_errors.jsonl`."""

    root: str
    path: str
    error: str


def reason(error: Exception) -> str:
    """Why a source or an image in it can't be read, as in `_errors.jsonl`: without its name."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"can't be read ({type(error).__name__}: {printable(one_line(error))})"


Entry = Item | Unreadable
IsWanted = Callable[[str, str], bool]
"""Called with root and path of each image before its bytes are read; returns whether to read them."""


NONE_SKIPPED: Mapping[str, int] = MappingProxyType({})
"""The `skipped` of a source that passes nothing over."""


class Source(Protocol):
    """The images of one argument."""

    @property
    def roots(self) -> tuple[str, ...]:
        """Roots of the keys, as far as they are known without reading everything."""

    may_repeat: bool
    """Whether a key may come twice, or may also come from another source though their `roots` differ."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of files that were passed over, by reason; of a tar, after `items`."""

    def count(self) -> int | None:
        """Number of entries; None if everything must be read to know it."""

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The entries, in order, without the images that are not wanted."""
