"""The images of `calibrate` and of int8: drawn from the sources, in two halves, decoded by threads, in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key, location
from runtime.contract.manifest import Preprocessing
from runtime.images.batches import in_order
from runtime.images.preprocess import preprocess
from runtime.sources import Sources, Unreadable, load_item, open_sources
from runtime.sources.item import Entry

Pixels = npt.NDArray[Any]
"""float32 or uint8"""


BATCH = 8


class _EnoughError(Exception):
    """Ends a source that would be read to its end: the images to look at are behind it."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of one half."""

    numbers: list[int]
    """Their places among those of the half that could be read."""
    keys: list[Key]
    pixels: Pixels
    """As the preprocessing makes them: (B, 3, H, W) float32, normalised, or (B, H, W, 3) uint8."""


@dataclass(eq=False)
class Intake:
    """At most `limit` images, drawn at random where their number is known beforehand, half of them for each purpose."""

    sources: Sources
    how: Preprocessing
    limit: int
    seed: int
    batch: int
    sixteen_bit: str = "full"
    failed: dict[Key, str] = field(default_factory=dict)
    """Images that could not be read, and why."""
    _halves: tuple[frozenset[int], frozenset[int]] | None = None

    def total(self) -> int | None:
        """Number of images that will be looked at, if it is known."""
        total = self.sources.total
        return None if total is None else min(total, self.limit)

    def batches(self, half: int) -> Iterator[Batch]:
        """The images of one half (0 or 1), the same and in the same order each time."""
        keys: list[Key] = []
        pixels: list[Pixels] = []
        start = 0
        for key, image in self._decoded(half):
            keys.append(key)
            pixels.append(image)
            if len(keys) == self.batch:
                yield Batch(list(range(start, start + len(keys))), keys, np.stack(pixels))
                start += len(keys)
                keys, pixels = [], []
        if keys:
            yield Batch(list(range(start, start + len(keys))), keys, np.stack(pixels))

    def some(self, half: int, numbers: set[int]) -> Iterator[Batch]:
        """Those images of a half that have one of these places, decoded again."""
        for one in self.batches(half):
            rows = [row for row, number in enumerate(one.numbers) if number in numbers]
            if rows:
                yield Batch([one.numbers[row] for row in rows], [one.keys[row] for row in rows], one.pixels[rows])
            if not numbers or one.numbers[-1] >= max(numbers):
                return

    def _wanted(self, half: int, number: int) -> bool:
        """Whether the image that comes in this place belongs to the half."""
        if self._halves is None:
            rng = np.random.default_rng(self.seed)
            total = self.sources.total
            if total is None:  # of packed tars: the first ones, one of each two for either half
                drawn = rng.permuted(np.arange(self.limit + self.limit % 2).reshape(-1, 2), axis=1).T.ravel()
            else:
                drawn = rng.permutation(total)[: self.limit]
            middle = (len(drawn) + 1) // 2
            self._halves = frozenset(drawn[:middle].tolist()), frozenset(drawn[middle:].tolist())
        return number in self._halves[half]

    def _decoded(self, half: int) -> Iterator[tuple[Key, Pixels]]:
        with contextlib.closing(in_order(self._decode, self._entries(half), self.batch)) as decoded:
            for key, image in decoded:
                if isinstance(image, str):
                    self.failed[key] = image
                else:
                    yield key, image

    def _entries(self, half: int) -> Iterator[Entry]:
        number = -1

        def is_wanted(root: str, path: str) -> bool:
            nonlocal number
            number += 1
            if self.sources.total is None and number == self.limit:
                raise _EnoughError
            return self._wanted(half, number)

        with contextlib.suppress(_EnoughError):
            yield from self.sources.items(is_wanted)

    def _decode(self, entry: Entry) -> tuple[Key, Pixels | str]:
        key = entry.root, entry.path
        if isinstance(entry, Unreadable):
            return key, entry.error
        try:
            image = preprocess(load_item(entry, sixteen_bit=self.sixteen_bit), self.how)
        except InputError as error:
            return key, one_line(error)
        except MemoryError:
            return key, "there is not enough memory to decode it"
        return key, image

    def first_failure(self) -> str | None:
        """The first image that could not be read, and why; None if there is none."""
        for key, why in self.failed.items():
            return f"{location(*key)}: {why}"
        return None


def open_intake(source: str, how: Preprocessing, limit: int) -> Intake:
    """At most `limit` pictures of a source.

    Raises:
        InputError, UsageError: as `open_sources`.
    """
    return Intake(open_sources([source]), how, limit, seed=0, batch=BATCH)
