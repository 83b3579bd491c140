"""Names of files: image, tar, parquet file or list by their ending; patterns; which paths a key may hold."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from runtime.contract.errors import InputError, UsageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".avif", ".heic", ".heif", ".hif"}
)
"""Endings of images in folders and tars, in any case; a file that is an argument itself needs none of them."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
PARQUET_SUFFIX = ".parquet"
LIST_SUFFIXES = (".txt", ".lst")
_NO_SOURCE = (".csv", ".tsv", ".json", ".jsonl", ".zip", ".arrow")
"""Files that were named by mistake: they are refused at once, not recorded as images that can't be decoded."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MAX_EXPANDED = 100_000


def is_image(name: str) -> bool:
    """Whether a file of this name in a folder or a tar is an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122  # a Path takes ten times as long


def kind_of(name: str) -> Literal["tar", "parquet", "list", "image"]:
    """The kind of source that an argument of this name is.

    Raises:
        InputError: no source of images has this ending.
    """
    lower = name.lower()
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    if lower.endswith(PARQUET_SUFFIX):
        return "parquet"
    if lower.endswith(LIST_SUFFIXES):
        return "list"
    if lower.endswith(_NO_SOURCE):
        raise InputError(
            f"{printable(name)}: not a source of images; give images, folders, a list of paths (.txt, .parquet), "
            "tars, or parquet with an image column"
        )
    return "image"


def is_remote(argument: str) -> bool:
    """Whether fsspec reads it."""
    return "://" in argument


def check_inside(path: str) -> None:
    """Check that a path stays below the root that it is joined to; raises InputError."""
    if not path or "\0" in path or path.startswith("/") or ".." in path.split("/"):
        raise InputError("leads out of its root, or to no file: a path is relative to it, without `..`")


def printable(text: str) -> str:
    """Return the text with escapes in the place of bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_utf8(text: str) -> bool:
    """Whether the text can be stored as UTF-8."""
    return text.isascii() or printable(text) == text


def expand_braces(argument: str) -> Iterator[str]:
    """Expand `shard-{000..012}.tar` and `{a,b}.tar` as shells and WebDataset do; any other argument stays as it is.

    Raises:
        UsageError: the argument stands for more than 100,000 names.
    """
    pieces: list[Sequence[str]] = []
    end, count = 0, 1
    for match in _BRACES.finditer(argument):
        if alternatives := _alternatives(match[1]):
            pieces += [[argument[end : match.start()]], alternatives]
            end, count = match.end(), count * len(alternatives)
    if count > _MAX_EXPANDED:
        raise UsageError(f"{printable(argument)}: stands for {count:,} names, more than {_MAX_EXPANDED:,}")
    pieces.append([argument[end:]])
    return map("".join, itertools.product(*pieces))


def _alternatives(text: str) -> Sequence[str]:
    """The alternatives between two braces; empty if they are no pattern."""
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return text.split(",") if "," in text else []
    first, last = int(bounds[1]), int(bounds[2])
    if abs(last - first) >= _MAX_EXPANDED:
        raise UsageError(f"{{{text}}} stands for more than {_MAX_EXPANDED:,} names")
    width = max((len(bound) for bound in bounds.groups() if bound.startswith("0")), default=0)
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
