"""Keys of images, which are a root and a path below it, and a set of keys that needs little memory."""

from __future__ import annotations

import hashlib

Key = tuple[str, str]
"""Root and path of an image: a folder, tar, parquet file or remote place, and the image's place in it."""


def location(root: str, path: str) -> str:
    """The place of an image as text: `/photos/cats/1.jpg`, `/x.tar/cats/1.jpg`, `s3://b/x.jpg`."""
    return f"{root}{path}" if root.endswith("/") or not path else f"{root}/{path}"


class Keys:
    """A set of keys that holds a million of any length in about 90 MB.

    It keeps 16 bytes of a hash of each key: among 10⁹ keys, the probability that two hashes are equal is 10⁻²¹.
    """

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, root: str, path: str) -> bool:
        """Add a key and return whether it is new."""
        before = len(self._digests)
        self._digests.add(_digest(root, path))
        return len(self._digests) > before

    def discard(self, root: str, path: str) -> None:
        """Remove a key if it is in the set."""
        self._digests.discard(_digest(root, path))

    def discard_all(self, others: Keys) -> None:
        """Remove the keys of another set."""
        self._digests -= others._digests

    def copy(self) -> Keys:
        """Another set with the same keys."""
        made = Keys()
        made._digests = self._digests.copy()
        return made

    def __contains__(self, key: Key) -> bool:
        return _digest(*key) in self._digests

    def __len__(self) -> int:
        return len(self._digests)


def _digest(root: str, path: str) -> bytes:
    # No name holds NUL; names that are not UTF-8 hold surrogates.
    return hashlib.blake2b(f"{root}\0{path}".encode(errors="surrogatepass"), digest_size=16).digest()
