"""Pictures written as text: data URIs, and base64 alone."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from runtime.contract.errors import InputError
from runtime.images.formats import HEAD, format_of

_LONGEST_HEAD = 256
"""Characters of a data URI before its comma; more is no data URI."""
_SHORTEST = 64
"""Characters of base64 that may be a picture: a shorter text is a name."""
_BLANKS = re.compile(rb"\s+")


def is_data_uri(text: str) -> bool:
    """Whether a text is a data URI, whatever it holds."""
    return text[:5].lower() == "data:" and "," in text[:_LONGEST_HEAD]


def looks_like_picture(text: str) -> bool:
    """Whether a text is a data URI of a picture, or base64 of something that begins as a picture does."""
    if is_data_uri(text):
        return text[5:11].lower() == "image/"
    if len(text) < _SHORTEST:
        return False
    start = _BLANKS.sub(b"", text[: 2 * HEAD].encode())
    try:
        return format_of(_from_base64(start[: len(start) // 4 * 4])) is not None
    except InputError:
        return False


def picture_of(text: bytes, max_bytes: int) -> bytes:
    """Return the content of a picture's file that is written as a data URI or as base64.

    Raises:
        InputError: it is neither, or larger than `max_bytes`.
    """
    if len(text) > 2 * max_bytes:
        raise InputError(f"has {len(text):,} characters, more than {2 * max_bytes:,}")
    body, is_base64 = text, True
    if text[:5].lower() == b"data:":
        head, comma, body = text.partition(b",")
        if not comma or len(head) > _LONGEST_HEAD:
            raise InputError("is a data URI without data")
        is_base64 = head.lower().replace(b" ", b"").endswith(b";base64")
        body = unquote_to_bytes(body) if b"%" in body else body
    content = _from_base64(body) if is_base64 else body
    if len(content) > max_bytes:
        raise InputError(f"has {len(content):,} bytes, more than {max_bytes:,}")
    return content


def _from_base64(text: bytes) -> bytes:
    """Decode base64, also of the alphabet for URLs, also without the padding at its end."""
    text = _BLANKS.sub(b"", text).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise InputError("is text, and neither a path nor a picture in base64") from error
