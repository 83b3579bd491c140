"""Arguments of public functions: a value of the wrong type ends in one of our errors, which names the argument."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import SupportsIndex, cast

from runtime.contract.errors import UsageError


def as_path(value: object, name: str) -> Path:
    """Return a path.

    Raises:
        UsageError: it is neither text nor a path, or no path can be it.
    """
    try:
        text = os.fspath(cast("str", value))
        is_name = isinstance(text, str) and b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeEncodeError):  # half of a surrogate pair has no bytes
        is_name = False
    if not is_name:
        raise UsageError(f"{name} {shown(value)}: must be a path, as text or pathlib.Path")
    return Path(text)


def as_text(value: object, name: str) -> str:
    """Return a text; raises UsageError if it is none."""
    if not isinstance(value, str):
        raise UsageError(f"{name} {shown(value)}: must be text")
    return value


def as_names(value: object, name: str) -> tuple[str, ...]:
    """Return names, of which there may be none; raises UsageError if it is no list or tuple of texts."""
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} {shown(value)}: must be a list of names")
    return tuple(as_text(one, f"{name}: a name") for one in value)


def as_whole_number(value: object, name: str) -> int:
    """Return a whole number, numpy's too; raises UsageError if it is none, or True or False."""
    try:
        if not isinstance(value, bool):
            return operator.index(cast("SupportsIndex", value))
    except TypeError:
        pass
    raise UsageError(f"{name} {shown(value)}: must be a whole number")


def as_flag(value: object, name: str) -> bool:
    """Return True or False; raises UsageError if it is neither."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} {shown(value)}: must be True or False")
    return value


def shown(value: object) -> str:
    """Return a value on one line, in few words; of most types the type alone, since an array may be large."""
    if isinstance(value, str | bytes | int | float | tuple | list | None):
        return " ".join(repr(value).split())[:80]
    return f"of type {type(value).__name__}"
