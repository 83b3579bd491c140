"""Which keys came already."""

from __future__ import annotations

import hashlib


class Seen:
    """A set of keys, each held as a digest of 16 bytes: 100 MB for a million."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, root: str, path: str) -> bool:
        """Add a key, and say whether it is new."""
        key = f"{root}\0{path}".encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(key, digest_size=16).digest()
        size = len(self._digests)
        self._digests.add(digest)
        return len(self._digests) > size
