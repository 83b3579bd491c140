"""A data set's embeddings by a model, made once: ordinary stores in one folder, a run that was cut short goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import CheckError, InputError, OutputFileError, UsageError
from runtime.contract.keys import Key, location
from runtime.contract.manifest import Manifest
from runtime.contract.progress import Progress
from runtime.embedding.embedder import Embedder, embed_sources
from runtime.evaluation.datasets.dataset import Dataset
from runtime.images.decode import Note
from runtime.sources import Sources
from runtime.sources.item import NONE_SKIPPED, Entry, IsWanted
from runtime.store import Store
from runtime.store.moved import Moved
from runtime.store.origin import fingerprint, identity, origin_of
from runtime.store.records import Float32
from runtime.store.writer import StoreWriter, open_writer


@dataclass(frozen=True, eq=False)
class EmbeddedDataset:
    """m images of a data set, embedded by one model."""

    name: str
    """The model, for people."""
    manifest: Manifest
    dataset: Dataset
    rows: npt.NDArray[np.intp]
    """(m,): their rows in the data set, rising."""
    vectors: Float32
    """(m, C) float32, every number finite."""
    left_out: tuple[Key, ...]
    """Images that were to be embedded and could not be, in the data set's order."""
    first_error: str | None
    """The error of the first image left out, if this run tried to embed it."""
    computed: int
    """Number of images that this run embedded; the others were in the cache."""
    seconds: float
    """That took."""
    notes: Mapping[Note, int] = field(default_factory=dict)
    """Number of images that this run decoded and that have a remark, by remark."""

    @property
    def keys(self) -> list[Key]:
        """Root and path of each of the m images."""
        return [self.dataset.keys[row] for row in self.rows]

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """(m,): their classes."""
        return self.dataset.labels[self.rows]


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/itae/evaluate`, or `~/.cache/itae/evaluate`; raises UsageError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(base if base.startswith("/") else Path.home() / ".cache", "itae", "evaluate")
    except RuntimeError as error:
        raise UsageError(
            "this user has no home folder to keep embeddings in: give --cache DIR or --no-cache"
        ) from error


def make_cache(cache: Path) -> None:
    """Make the folder if it is missing, and check that it can be written.

    Raises:
        OutputFileError: it can't be made or written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise OutputFileError(f"can't write the cache {cache}: {error.strerror or error}") from error


def cache_folder(cache: Path, made_by: dict[str, Any]) -> Path:
    """Where the embeddings of some pictures lie: one folder for each identity of the rows."""
    return cache / fingerprint(identity(made_by))[:24]


def embed_dataset(
    name: str,
    manifest: Manifest,
    provider: str,
    dataset: Dataset,
    rows: npt.NDArray[np.intp],
    cache: Path,
    embedder: Callable[[], Embedder],
    progress: Progress,
    sixteen_bit: str = "full",
    compute: str | None = None,
) -> EmbeddedDataset:
    """Embed the images that the cache lacks, and read all embeddings.

    Args:
        name: the model's name, for people.
        manifest: the model's manifest.
        provider: the provider that runs the model, by its name in a store.
        dataset: the data set.
        rows: (m,) rows of its images, rising.
        cache: the folder of all such stores; made if it is missing.
        embedder: loads the model; called only if there is something to embed.
        progress: shows each batch.
        sixteen_bit: one of `runtime.images.formats.SIXTEEN_BIT`, as `embedder` takes images.
        compute: what the model computes in; None for the precision of its file.

    Raises:
        InputError: the content of the cache can't be used.
        OutputFileError: the cache can't be written.
        CheckError: not one image could be embedded.
        ItaeError: the model failed; what was embedded before is in the cache.
    """
    made_by = {
        **origin_of(manifest, provider, sixteen_bit, compute),
        "data": {"sha256": dataset.identity},
    }  # whatever their labels
    folder = cache_folder(cache, made_by)
    make_cache(cache)
    # The cache knows roots by their number: a data set that was moved is still the same.
    moved = Moved([(f"data:{number}", root) for number, root in enumerate(dataset.roots)])
    wanted = [dataset.keys[row] for row in rows]
    start, computed = time.monotonic(), 0
    first_error: str | None = None
    notes: Mapping[Note, int] = {}
    with contextlib.ExitStack() as stack:
        with _usable(folder):
            writer = stack.enter_context(open_writer(folder, made_by))
        if missing := {key for key in wanted if not _is_stored(writer, moved, key)}:
            outcome = embed_sources(embedder(), Sources([_Chosen(dataset, missing)]), writer, progress, moved=moved)
            computed, notes = outcome.embedded, outcome.notes
            if (first := outcome.first_failure) is not None:
                first_error = f"{location(first.root, first.path)}: {first.error}"
    if computed == 0 and len(missing) == len(wanted):
        why = f"; the first: {first_error}" if first_error else ""
        raise CheckError(f"none of {len(wanted)} images of {dataset.name} could be embedded{why}")
    with _usable(folder):
        vectors, is_found = _read(folder, moved, wanted)
    left_out = tuple(key for key, good in zip(wanted, is_found.tolist(), strict=True) if not good)
    seconds = time.monotonic() - start
    return EmbeddedDataset(
        name, manifest, dataset, rows[is_found], vectors, left_out, first_error, computed, seconds, notes
    )


def of_common_images(models: Sequence[EmbeddedDataset]) -> list[EmbeddedDataset]:
    """The same data set by several models, each with the images alone that all could embed."""
    common = functools.reduce(np.intersect1d, (one.rows for one in models))
    return [
        one
        if len(common) == len(one.rows)
        else dataclasses.replace(one, rows=common, vectors=one.vectors[np.searchsorted(one.rows, common)])
        for one in models
    ]


class _Chosen:
    """Some images of a data set as a `sources.item.Source`."""

    skipped = NONE_SKIPPED
    may_repeat = False

    def __init__(self, dataset: Dataset, keys: set[Key]) -> None:
        self._dataset, self._keys = dataset, keys
        self.roots = dataset.roots

    def count(self) -> int:
        """How many."""
        return len(self._keys)

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images."""
        return self._dataset.images.items(lambda root, path: (root, path) in self._keys and is_wanted(root, path))


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Say of an error in reading or writing that it is the cache's."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the cache {folder} can't be used ({error}): remove it, or give --no-cache") from error
    except OutputFileError as error:
        raise OutputFileError(f"{error}: give another --cache DIR, or --no-cache") from error


def _is_stored(writer: StoreWriter, moved: Moved, key: Key) -> bool:
    return (moved.recorded(key[0]), key[1]) in writer.stored


def _read(folder: Path, moved: Moved, wanted: list[Key]) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """The vectors of those of the keys that are there, in their order, and which are: (wanted,) bool."""
    place = {(moved.recorded(root), path): number for number, (root, path) in enumerate(wanted)}
    store = Store(folder)
    vectors = np.empty((len(wanted), store.width), np.float32)
    found = np.zeros(len(wanted), np.bool_)
    for part in store.parts():
        for key, vector in zip(zip(part.roots, part.paths, strict=True), part.vectors, strict=True):
            if (number := place.get(key)) is not None:
                vectors[number], found[number] = vector, True
    return vectors[found], found
