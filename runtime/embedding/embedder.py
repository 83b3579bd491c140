"""Images from sources into a store: images that it holds are skipped, failures are recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from runtime.contract.errors import CheckError
from runtime.contract.keys import Keys, location
from runtime.contract.progress import Progress
from runtime.embedding.stream import Embedded
from runtime.images.decode import Note
from runtime.sources import Sources
from runtime.sources.item import Entry, Unreadable
from runtime.store.moved import Moved
from runtime.store.writer import StoreWriter

_ENOUGH = 1000
"""Images after which a share of failures means something, where their number is not known."""
_NAMED = 3
_SHOWN_EVERY = 1000
"""Number of skipped images after which progress is shown again."""


class Embedder(Protocol):
    """`stream.embed_stream` with its model, or the workers of several devices."""

    def __call__(self, entries: Iterator[Entry], on_unreadable: Callable[[Unreadable], None]) -> Iterator[Embedded]:
        """Embed images; see `stream.embed_stream`."""


@dataclass(frozen=True)
class Outcome:
    """The counts of a run."""

    embedded: int
    present: int
    """Number of images found that were in the store already."""
    failed: int
    """Number of lines of `_errors.jsonl`."""
    first_failure: Unreadable | None
    missing: int
    """Number of images of the store that were not found this time; their rows stay."""
    first_missing: tuple[str, ...]
    """Locations of the first of them."""
    skipped: Mapping[str, int]
    """Number of files of folders and tars that were passed over, by reason; no images, or not to be read."""
    notes: Mapping[Note, int]
    """Number of images that were decoded and have a remark, by remark."""


def embed_sources(
    embed: Embedder,
    sources: Sources,
    writer: StoreWriter,
    progress: Progress,
    *,
    max_failures: float | None = None,
    moved: Moved | None = None,
) -> Outcome:
    """Embed the images of `sources` that the store of `writer` does not hold.

    Args:
        embed: runs the model.
        sources: from `open_sources`.
        writer: from `open_writer`.
        progress: shows the counts after each batch.
        max_failures: largest share of images that may fail; above it the run ends.
        moved: the names in the store of folders that were moved.

    Raises:
        CheckError: more than `max_failures` failed.
        ItaeError: the model, a source or the store failed; rows that were embedded before are in the store.
    """
    run = Run(sources, writer, progress, max_failures, moved or Moved(()))
    for batch in embed(sources.items(run.is_wanted), run.fail):
        writer.add([run.moved.recorded(root) for root in batch.roots], batch.paths, batch.vectors)
        run.embed(len(batch.paths), batch.notes)
    return run.outcome(sources.skipped)


class Run:
    """The counts of a run, kept by the thread that lists and the one that embeds."""

    def __init__(
        self,
        sources: Sources,
        writer: StoreWriter,
        progress: Progress,
        max_failures: float | None,
        moved: Moved,
    ) -> None:
        self.moved = moved
        self.notes: Counter[Note] = Counter()
        self.embedded = self.present = self.failed = 0
        self._images = 0  # keys that the sources had, whatever became of them
        self._sources, self._writer, self._progress = sources, writer, progress
        self._max_failures = max_failures
        self._missing = writer.stored.copy()
        self._first_failure: Unreadable | None = None

    @property
    def found(self) -> int:
        """Number of images found so far, with those that can't be read."""
        return max(self._images, self.embedded + self.present + self.failed)

    def is_wanted(self, root: str, path: str) -> bool:
        """Count an image that a source has; returns whether the store lacks it."""
        key = self.moved.recorded(root), path
        self._images += 1
        if key not in self._writer.stored:
            return True
        self._missing.discard(*key)
        self.present += 1
        if self.present % _SHOWN_EVERY == 0:
            self._progress.show(self.embedded, self.present, self.failed)
        return False

    def listed_elsewhere(self, images: int, present: Keys) -> None:
        """Count images that another process found, and those of them that are in the store, by their keys there."""
        self._images += images
        self._missing.discard_all(present)
        self.present += len(present)

    def embed(self, images: int, notes: Mapping[Note, int]) -> None:
        """Count images whose rows were given to the store, and remarks on them."""
        self.embedded += images
        self.notes.update(notes)
        self._progress.show(self.embedded, self.present, self.failed)

    def fail(self, problem: Unreadable) -> None:
        """Record a failure; raises CheckError if there are too many."""
        self._writer.add_error(self.moved.recorded(problem.root), problem.path, problem.error)
        self._first_failure = self._first_failure or problem
        self.failed += 1
        self._progress.show(self.embedded, self.present, self.failed)
        total = self._sources.total or max(self.found, _ENOUGH)
        if self._max_failures is not None and self.failed > self._max_failures * total:
            raise self._too_many()

    def _too_many(self) -> CheckError:
        """Return the error of a run with more failures than allowed."""
        first = self._first_failure
        assert first is not None
        return CheckError(
            f"{self.failed} of {self.found} images failed, more than --max-failures {self._max_failures:g} allows; "
            f"the first: {location(first.root, first.path)}: {first.error}"
        )

    def outcome(self, skipped: Mapping[str, int]) -> Outcome:
        """Return the counts, and which images of the store were not found.

        Args:
            skipped: files that were passed over, by reason.

        Raises:
            CheckError: too many images failed.
        """
        if self._max_failures is not None and self.failed > self._max_failures * self.found:
            raise self._too_many()
        first: list[str] = []
        if len(self._missing):
            for root, path in self._writer.stored_images():
                if (root, path) in self._missing:
                    first.append(location(root, path))
                    if len(first) == _NAMED:
                        break
        return Outcome(
            self.embedded,
            self.present,
            self.failed,
            self._first_failure,
            len(self._missing),
            tuple(first),
            skipped,
            dict(sorted(self.notes.items())),
        )
