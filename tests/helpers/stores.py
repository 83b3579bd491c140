"""Stores of seeded rows."""

from pathlib import Path

import numpy as np

from runtime.store import Embeddings
from runtime.store.writer import open_writer


def rows(count: int, seed: int = 0, width: int = 3) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return Embeddings(["/root"] * count, [f"{seed}/{number}.png" for number in range(count)], vectors)


def write(folder: Path, embeddings: Embeddings, origin=None) -> None:
    """A run that adds a row at a time."""
    with open_writer(folder, origin or {}) as writer:
        for row, (root, path) in enumerate(zip(embeddings.roots, embeddings.paths, strict=True)):
            writer.add([root], [path], embeddings.vectors[row : row + 1])


def assert_same(got: Embeddings, expected: Embeddings) -> None:
    assert got.roots == expected.roots
    assert got.paths == expected.paths
    assert got.vectors.dtype == np.float32
    np.testing.assert_array_equal(got.vectors, expected.vectors)
