"""The images of a calibration: drawn from the sources, divided into two halves, decoded by threads, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import InputError, one_line
from runtime.contract.keys import Key, location
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Preprocessing
from runtime.images.preprocess import preprocess
from runtime.sources import Item, Sources, load_item
from runtime.sources.item import Unreadable

LEAST = 4
"""Images that a calibration needs, at least."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of one half."""

    numbers: list[int]
    """Their places among those of the half that could be read."""
    keys: list[Key]
    pixels: npt.NDArray[np.float32]
    """(B, 3, H, W), normalised."""


@dataclass(eq=False)
class Intake:
    """At most `limit` images, drawn at random where their number is known beforehand, half of them for each purpose."""

    sources: Sources
    how: Preprocessing
    limit: int | None
    seed: int
    batch: int
    failed: dict[Key, str] = field(default_factory=dict)
    """Images that could not be read, and why."""
    _halves: tuple[frozenset[int], frozenset[int]] | None = None
    _count: int = 0

    def total(self) -> int | None:
        """Number of images that will be looked at, if it is known."""
        total = self.sources.total
        return total if total is None or self.limit is None else min(total, self.limit)

    def batches(self, half: int) -> Iterator[Batch]:
        """The images of one half (0 or 1), the same and in the same order each time."""
        keys: list[Key] = []
        pixels: list[npt.NDArray[np.float32]] = []
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
            if total is None:  # of packed tars: the first ones
                drawn = rng.permutation(self.limit) if self.limit is not None else None
            else:
                drawn = rng.permutation(total)[: self.limit]
            if drawn is None:
                return number % 2 == half
            middle = (len(drawn) + 1) // 2
            self._halves = frozenset(drawn[:middle].tolist()), frozenset(drawn[middle:].tolist())
        return number in self._halves[half]

    def _decoded(self, half: int) -> Iterator[tuple[Key, npt.NDArray[np.float32]]]:
        number = -1

        def is_wanted(root: str, path: str) -> bool:
            nonlocal number
            number += 1
            return self._wanted(half, number)

        workers = usable_cores()
        waiting: deque[Future[tuple[Key, npt.NDArray[np.float32] | str]]] = deque()
        with ThreadPoolExecutor(workers, "decode") as pool:
            for entry in self.sources.items(is_wanted):
                if isinstance(entry, Unreadable):
                    self.failed[entry.root, entry.path] = entry.error
                    continue
                waiting.append(pool.submit(self._decode, entry))
                if len(waiting) > self.batch + workers:
                    yield from self._readable(waiting.popleft())
                if self.limit is not None and self.sources.total is None and number >= self.limit:
                    break
            while waiting:
                yield from self._readable(waiting.popleft())

    def _readable(
        self, future: Future[tuple[Key, npt.NDArray[np.float32] | str]]
    ) -> Iterator[tuple[Key, npt.NDArray[np.float32]]]:
        key, image = future.result()
        if isinstance(image, str):
            self.failed[key] = image
        else:
            yield key, image

    def _decode(self, item: Item) -> tuple[Key, npt.NDArray[np.float32] | str]:
        key = item.root, item.path
        try:
            image = preprocess(load_item(item), self.how)
        except InputError as error:
            return key, one_line(error)
        except MemoryError:
            return key, "there is not enough memory to decode it"
        assert image.dtype == np.float32
        return key, np.asarray(image, np.float32)

    def first_failure(self) -> str | None:
        """The first image that could not be read, and why; None if there is none."""
        for key, why in self.failed.items():
            return f"{location(*key)}: {why}"
        return None
