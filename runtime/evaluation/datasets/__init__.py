"""Labelled data sets, read where they lie: `open_dataset("cifar10:PATH")` gives a `Dataset`.

A loader checks names, sizes and labels before it allocates by them, extracts no archive and reads no pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.contract.argument_types import as_text, shown
from runtime.contract.errors import InputError, UsageError
from runtime.evaluation.datasets import cifar, folders, labelled_parquet, stl10, tiny_imagenet
from runtime.evaluation.datasets.dataset import Dataset
from runtime.sources import ALL, Selection
from runtime.sources.names import is_remote, printable

__all__ = ["KINDS", "Dataset", "open_dataset"]

FOLDER = "folder"
_LOADERS: Mapping[str, Callable[[Path], Dataset]] = {
    "cifar10": functools.partial(cifar.load, cifar.CIFAR10),
    "cifar100": functools.partial(cifar.load, cifar.CIFAR100),
    "cifar100-coarse": functools.partial(cifar.load, cifar.CIFAR100_COARSE),
    "stl10": stl10.load,
    "tiny-imagenet": tiny_imagenet.load,
    FOLDER: folders.load,
    "parquet": labelled_parquet.load,
}
KINDS = tuple(_LOADERS)
"""The names that may stand before the colon."""


def open_dataset(text: str, selection: Selection = ALL) -> Dataset:
    """Open the data set that `NAME:PATH` means; no image is decoded yet.

    Args:
        text: NAME one of `KINDS`.
        selection: which files of a `folder` are read.

    Raises:
        UsageError: there is no such NAME, or no PATH.
        InputError: what lies at PATH is not that data set, whole.
    """
    if not isinstance(selection, Selection):
        raise UsageError(f"selection {shown(selection)}: must be a Selection")
    kind, colon, place = as_text(text, "a data set").partition(":")
    if not (colon and place) or kind not in _LOADERS:
        raise UsageError(f"--data {printable(text)}: give NAME:PATH, NAME one of {', '.join(KINDS)}")
    if is_remote(place):
        raise UsageError(f"--data {printable(text)}: a data set is read from this machine; download it first")
    path = Path(place)
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{printable(place)}: {reason}; give what --data {kind}: names") from error
    return folders.load(path, selection) if kind == FOLDER else _LOADERS[kind](path)
