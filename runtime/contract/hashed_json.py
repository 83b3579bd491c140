"""JSON files that hold their own SHA-256, and the strict reading of JSON that somebody else may have written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

NO_HASH = "0" * 64
"""The digits that replace a file's hash while it is hashed."""


def to_hashed_json(fields: Mapping[str, Any], name: str, indent: int) -> bytes:
    """The bytes of a file with these fields and, behind them, its own hash under `name`.

    Raises:
        ValueError: a number is not finite.
    """
    text = (json.dumps({**fields, name: NO_HASH}, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
    before, _, after = text.rpartition(NO_HASH.encode())
    return before + hashlib.sha256(text).hexdigest().encode() + after


def matches_own_hash(text: bytes, written: object) -> bool:
    """Whether `written` is the SHA-256 of the file's bytes, with its digits, which must stand there once, as zeros."""
    digits = written.encode() if isinstance(written, str) and re.fullmatch("[0-9a-f]{64}", written) else None
    if digits is None or text.count(digits) != 1:
        return False
    return hashlib.sha256(text.replace(digits, NO_HASH.encode())).hexdigest() == written


def parse_strictly(text: bytes) -> Any:  # noqa: ANN401
    """Parse JSON without NaN, infinite numbers, or two members of one name in an object.

    Raises:
        ValueError: it is not such JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are unique: of two equal ones some readers would take the first, others the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has two members of one name")
    return fields
