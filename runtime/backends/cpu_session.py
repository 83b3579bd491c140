"""Sessions that compute one batch after another on a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from runtime.backends.session import (
    Array,
    Arrays,
    check_batch,
    check_names,
    check_outputs,
    failed,
    names_in_file,
    translated,
)
from runtime.contract.manifest import Manifest


class CpuSession(ABC):
    """A `Session`; a class for each library says how that computes a batch."""

    def __init__(self, manifest: Manifest, library: str, details: str, compute: str) -> None:
        """Keep what `Session` says of each; `details` stand behind the library in its name."""
        self.manifest = manifest
        self.compute = compute
        self.name = f"{library} {details}"
        self._library = library

    @abstractmethod
    def _computed(self, batch: Array, names: list[str]) -> list[Array]:
        """The outputs of a checked batch, by their names in the model's file; raises UsageError if it is closed."""

    def run(self, batch: Array, outputs: Sequence[str] | None = None) -> Arrays:
        """Run a batch; see `Session.run`."""
        return self._run(batch, outputs, finite=True)

    def stream(self, batches: Iterable[Array], outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Run batches one by one; see `Session.stream`."""
        for batch in batches:
            yield self._run(batch, outputs, finite=False)

    def _run(self, batch: Array, outputs: Sequence[str] | None, *, finite: bool) -> Arrays:
        names = check_names(self.manifest, outputs)
        check_batch(self.manifest, batch)
        with translated(failed(self._library, len(batch))):
            arrays = self._computed(batch, names_in_file(self.manifest, names))
        results = dict(zip(names, arrays, strict=True))
        check_outputs(self.manifest, len(batch), results, finite=finite)
        return results
