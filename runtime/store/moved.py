"""Folders of images that were moved: their names in the store, and where they are now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.contract.errors import UsageError


class Moved:
    """Pairs of roots: the name in the store, and where its images are now.

    As an option each is `OLD=NEW`, or `NEW` alone if the store has one root.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._now = dict(pairs)
        self._recorded = {new: old for old, new in pairs}

    @classmethod
    def parse(cls, texts: Sequence[str], roots: Sequence[str]) -> Moved:
        """Parse the option's values for a store of these `roots`.

        Raises:
            UsageError: a root is not in the store or named twice, or `OLD=` is left out and there are several.
        """
        pairs = [_pair(text, roots) for text in texts]
        for place in (0, 1):
            names = [pair[place] for pair in pairs]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UsageError(f"--images-root names {twice} twice")
        return cls(pairs)

    def now(self, root: str) -> str:
        """Return where the images of the store's `root` are now."""
        return self._now.get(root, root)

    def recorded(self, root: str) -> str:
        """Return the name in the store of what was found at `root`.

        Raises:
            UsageError: images come from a folder that was said to have moved: a key could come twice.
        """
        if root in self._now and root not in self._recorded:
            raise UsageError(
                f"--images-root says that the images of {root} are at {self._now[root]} now, and yet some are taken "
                f"from {root}: leave out one of both"
            )
        return self._recorded.get(root, root)


def _pair(text: str, roots: Sequence[str]) -> tuple[str, str]:
    old, _, new = text.rpartition("=")
    if not old and len(roots) == 1:
        (old,) = roots
    elif not old:
        raise UsageError(
            f"--images-root {text}: the store has {len(roots)} roots; say which one has moved: OLD=NEW, OLD one of "
            f"{', '.join(roots[:3]) or 'none'}{' ...' if len(roots) > 3 else ''}"
        )
    if old not in roots:
        raise UsageError(
            f"--images-root {text}: {old} is no root of the store, which has {', '.join(roots[:3]) or 'none'}"
        )
    return old, new if "://" in new else str(Path(new).resolve())
