"""JSON files that hold their own SHA-256, and the strict reading of JSON that somebody else may have written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.contract.errors import ItaeError, one_line

NO_HASH = "0" * 64
"""The digits that replace a file's hash while it is hashed."""


@dataclass(frozen=True)
class HashedJson:
    """A kind of file: how it is written, what every reader checks, and how it is refused."""

    name: str
    """The kind in words, as in `not a manifest of this project`."""
    error: type[ItaeError]
    """The error that a reader raises."""
    version: int
    """The version that is written, and the latest that is read."""
    version_field: str = "version"
    hash_field: str = "sha256"
    format: str | None = None
    """The value of the field `format`; None if files of this kind have no such field."""
    max_bytes: int = 4 << 20
    """A larger file is refused before it is parsed."""
    older_hash: Mapping[int, Callable[[dict[str, Any]], str | None]] = field(default_factory=dict)
    """By older version: how its hash follows from the fields, where it does not follow from the file's bytes."""

    def to_bytes(self, fields: Mapping[str, Any], indent: int) -> bytes:
        """The bytes of a file with these fields behind its format and version, and before its own hash.

        Raises:
            ValueError: a number is not finite.
        """
        first = {} if self.format is None else {"format": self.format}
        whole = {**first, self.version_field: self.version, **fields, self.hash_field: NO_HASH}
        text = (json.dumps(whole, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
        before, _, after = text.rpartition(NO_HASH.encode())
        return before + hashlib.sha256(text).hexdigest().encode() + after

    def read(self, path: Path, again: str, option: str = "") -> dict[str, Any]:
        """Read a file, after a check of its size, its JSON, its format, its version and its own hash.

        Args:
            path: where it lies.
            again: how the user gets a good one, for the messages.
            option: the option that names it, for the messages.

        Raises:
            FileNotFoundError: there is no such file.
            ItaeError: of the type `error`: it can't be read, or is refused.
        """
        called = f"{option} {path}".lstrip()
        try:
            text = read_at_most(path, self.max_bytes)
            fields = parse_strictly(text)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.error(f"can't read {called}: {error.strerror or one_line(error)}") from error
        except TooLarge as error:
            raise self.error(f"{called} is larger than {self.max_bytes} bytes: not a {self.name}; {again}") from error
        except (ValueError, RecursionError) as error:
            raise self.error(
                f"{called} is not JSON ({one_line(error)}): it was truncated or altered; {again}"
            ) from error
        if not isinstance(fields, dict) or type(fields.get(self.version_field)) is not int:  # true is an int in Python
            raise self.error(f"{called} has no {self.version_field}: not a {self.name} of this project; {again}")
        if self.format is not None and fields.get("format") != self.format:
            raise self.error(f"{called} has not the format {self.format}: not a {self.name} of this project; {again}")
        if (version := fields[self.version_field]) > self.version:
            raise self.error(
                f"{called} has {self.name} format {version}, this version reads up to {self.version}: upgrade itae"
            )
        if not self._matches_own_hash(text, fields):
            raise self.error(f"{called} does not match its own hash: it was altered or only partly written; {again}")
        return fields

    def _matches_own_hash(self, text: bytes, fields: dict[str, Any]) -> bool:
        """Whether a file has the hash of its bytes, with the hash's digits, which must stand there once, as zeros."""
        written = fields.get(self.hash_field)
        if not isinstance(written, str) or not re.fullmatch("[0-9a-f]{64}", written):
            return False
        if older := self.older_hash.get(fields[self.version_field]):
            return older(fields) == written
        digits = written.encode()
        zeroed = text.replace(digits, NO_HASH.encode())
        return text.count(digits) == 1 and hashlib.sha256(zeroed).hexdigest() == written


class TooLarge(ValueError):  # noqa: N818  # its caller makes an ItaeError of it
    """A file has more bytes than its kind may have."""


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it can't be read.
        TooLarge: there are more than `max_bytes`.
    """
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise TooLarge(f"it is larger than {max_bytes} bytes")
    return text


def parse_strictly(text: bytes) -> Any:  # noqa: ANN401
    """Parse JSON in UTF-8 without NaN, infinite numbers, or two members of one name in an object.

    Raises:
        ValueError: it is not such JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        text.decode("utf-8-sig"),
        parse_constant=_refuse_constant,
        parse_float=_finite,
        object_pairs_hook=_without_duplicates,
    )


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
