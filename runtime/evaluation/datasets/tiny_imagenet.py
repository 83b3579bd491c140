"""Tiny-ImageNet's validation split, whose test split has no labels: its `val` folder, or parquet.

Source: the data set of Stanford's CS231n. `val/val_annotations.txt` has a line for each image, tabs between: file in
`val/images`, WordNet ID, four numbers of a box. `words.txt`, beside `val`, has words for each WordNet ID.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from runtime.contract.errors import InputError
from runtime.evaluation.datasets.archives import lines, read_bounded
from runtime.evaluation.datasets.dataset import Dataset, identity_of_files
from runtime.evaluation.datasets.labelled_parquet import Expected, is_parquet, load_parquet
from runtime.sources.files import entry
from runtime.sources.item import Entry, IsWanted
from runtime.sources.names import printable

IMAGES, CLASSES = 10_000, 200
ANNOTATIONS, WORDS = "val_annotations.txt", "words.txt"
_LINE = re.compile(r"(val_\d{1,5}\.JPEG)\t(n\d{8})(?:\t\d{1,3}){4}", re.ASCII)
_MAX_ANNOTATIONS, _MAX_WORDS = 1 << 21, 1 << 23
"""Bytes; the official files have 0.4 and 2.7 MB."""


def load(path: Path) -> Dataset:
    """Load the validation split from `tiny-imagenet-200`, from its `val` folder, or from parquet.

    Raises:
        InputError: it is not that data set, whole.
    """
    if is_parquet(path):
        return load_parquet(path, Expected("tiny-imagenet", "label", CLASSES, IMAGES, "valid"))
    if not path.is_dir():
        raise InputError(f"{printable(str(path))}: not Tiny-ImageNet: unpack it and give the folder tiny-imagenet-200")
    folder = path / "val" if (path / "val").is_dir() else path
    found = _annotations(folder / ANNOTATIONS)
    if not (folder / "images").is_dir():
        raise InputError(f"{printable(str(folder))}: has no folder images, which Tiny-ImageNet's val has")
    ids = sorted({wordnet_id for _, wordnet_id in found})
    number = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    labels = np.array([number[wordnet_id] for _, wordnet_id in found], np.int32)
    root, names = str(folder / "images"), [name for name, _ in found]
    return Dataset(
        kind="tiny-imagenet",
        name="tiny-imagenet",
        path=path,
        classes=tuple(_words(folder.parent / WORDS, ids)),
        labels=labels,
        keys=tuple((root, name) for name in names),
        images=_Files(root, names),
        identity=identity_of_files(root, names),
    )


class _Files:
    """The images in the order of the annotations."""

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self._root, self._names = root, names

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images, whether they exist or not; the decoder reports those that don't."""
        for name in self._names:
            if one := entry(self._root, name, is_wanted):
                yield one


def _annotations(path: Path) -> list[tuple[str, str]]:
    """File and WordNet ID of each image."""
    where = printable(str(path))
    rows = lines(read_bounded(path, _MAX_ANNOTATIONS), where)
    found: dict[str, str] = {}
    for row, line in enumerate(rows, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            shown = printable(line)[:80]
            raise InputError(
                f"{where}: line {row} is {shown!r}, expected val_0.JPEG, WordNet ID and 4 numbers, tabs between"
            )
        if match[1] in found:
            raise InputError(f"{where}: line {row}: {match[1]} comes a second time")
        found[match[1]] = match[2]
    classes = len(set(found.values()))
    if (len(found), classes) != (IMAGES, CLASSES):
        raise InputError(
            f"{where}: has {len(found):,} images of {classes} classes, expected {IMAGES:,} of {CLASSES}: "
            "give a part of the data set as folder:PATH"
        )
    return list(found.items())


def _words(path: Path, ids: Sequence[str]) -> list[str]:
    """A name for each WordNet ID: the ID and the first of its words, where the file is there."""
    if not path.exists():
        return list(ids)
    pairs = (line.partition("\t") for line in lines(read_bounded(path, _MAX_WORDS), printable(str(path))))
    words = {wordnet_id: text.partition(",")[0].strip()[:80] for wordnet_id, _, text in pairs}
    return [f"{wordnet_id} {words[wordnet_id]}" if words.get(wordnet_id) else wordnet_id for wordnet_id in ids]
