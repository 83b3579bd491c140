"""Images from sources into a store: what is there already is skipped, what fails is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from runtime.contract.errors import CheckError
from runtime.contract.keys import location
from runtime.contract.progress import Progress
from runtime.embedding.stream import Embedded
from runtime.sources import Sources
from runtime.sources.item import Entry, Unreadable
from runtime.store.moved import Moved
from runtime.store.writer import StoreWriter

_ENOUGH = 1000
"""Images after which a share of failures means something, where their number is not known."""
_NAMED = 3
_TOLD_EVERY = 1000
"""Images that are skipped between two times that progress is told of them."""


class Embedder(Protocol):
    """`pipeline.embed_stream` with its model, or the workers of several devices."""

    def __call__(self, entries: Iterator[Entry], on_unreadable: Callable[[Unreadable], None]) -> Iterator[Embedded]:
        """Embed images; see `pipeline.embed_stream`."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    embedded: int
    present: int
    """Of the images found, how many lay in the store already."""
    failed: int
    """Lines of `errors.jsonl`."""
    first_failure: Unreadable | None
    missing: int
    """Images of the store that were not found this time; their rows stay."""
    first_missing: tuple[str, ...]
    """Where the first of them were."""


def embed_sources(
    embed: Embedder,
    sources: Sources,
    writer: StoreWriter,
    progress: Progress,
    *,
    max_failures: float | None = None,
    moved: Moved | None = None,
) -> Outcome:
    """Embed what `sources` give and the store of `writer` hasn't.

    Args:
        embed: runs the model.
        sources: from `open_sources`.
        writer: from `open_writer`.
        progress: told of each batch.
        max_failures: the share of images that may fail; above it the run ends.
        moved: how folders of images are called in the store.

    Raises:
        CheckError: more than `max_failures` failed.
        ItaeError: the model, a source or the store failed; what was embedded before is in the store.
    """
    run = _Run(sources, writer, progress, max_failures, moved or Moved(()))
    for batch in embed(run.entries(), run.fail):
        writer.add([run.moved.recorded(root) for root in batch.roots], batch.paths, batch.vectors)
        run.embedded += len(batch.paths)
        progress.show(run.embedded, run.present, run.failed)
    if max_failures is not None and run.failed > max_failures * run.found:
        raise run.too_many()
    return run.outcome()


class _Run:
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
        self.embedded = self.present = self.failed = 0
        self._images = 0  # keys that the sources had, whatever became of them
        self._sources, self._writer, self._progress = sources, writer, progress
        self._max_failures = max_failures
        self._missing = writer.stored.copy()
        self._first_failure: Unreadable | None = None

    @property
    def found(self) -> int:
        """How many images were come past so far, those that can't be read included."""
        return max(self._images, self.embedded + self.present + self.failed)

    def entries(self) -> Iterator[Entry]:
        """What the sources give, less what lies in the store."""
        return self._sources.items(self._is_wanted)

    def fail(self, problem: Unreadable) -> None:
        """Record a failure; raises CheckError where it is one too many."""
        self._writer.add_error(self.moved.recorded(problem.root), problem.path, problem.error)
        self._first_failure = self._first_failure or problem
        self.failed += 1
        self._progress.show(self.embedded, self.present, self.failed)
        total = self._sources.total or max(self.found, _ENOUGH)
        if self._max_failures is not None and self.failed > self._max_failures * total:
            raise self.too_many()

    def too_many(self) -> CheckError:
        """The error of a run with more failures than allowed."""
        first = self._first_failure
        assert first is not None
        return CheckError(
            f"{self.failed} of {self.found} images failed, more than --max-failures {self._max_failures:g} allows; "
            f"the first: {location(first.root, first.path)}: {first.error}"
        )

    def outcome(self) -> Outcome:
        """The counts, and which images of the store were not found."""
        first: list[str] = []
        if len(self._missing):
            for root, path in self._writer.stored_images():
                if (root, path) in self._missing:
                    first.append(location(root, path))
                    if len(first) == _NAMED:
                        break
        return Outcome(self.embedded, self.present, self.failed, self._first_failure, len(self._missing), tuple(first))

    def _is_wanted(self, root: str, path: str) -> bool:
        key = self.moved.recorded(root), path
        self._images += 1
        if key not in self._writer.stored:
            return True
        self._missing.discard(*key)
        self.present += 1
        if self.present % _TOLD_EVERY == 0:
            self._progress.show(self.embedded, self.present, self.failed)
        return False
