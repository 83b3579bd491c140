"""What a source gives: an image to be decoded, or what can't be one."""

from __future__ import annotations

from dataclasses import dataclass


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
