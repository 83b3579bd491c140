"""A labelled data set, and how some of its images are chosen."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.contract.errors import InputError, UsageError
from runtime.contract.keys import Key
from runtime.evaluation.datasets.pixels import PixelImages
from runtime.sources import read_image
from runtime.sources.item import Entry, IsWanted, Unreadable

Int32 = npt.NDArray[np.int32]


class Images(Protocol):
    """Where the images of a data set come from, in order."""

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images that are wanted, and what can't be read; see `sources.item.Source`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """n images with a class each; their pixels are read when `images.items` comes to them."""

    kind: str
    """Which loader read it: `cifar10`, `folder` ..."""
    name: str
    """For people: the kind, or the folder's or file's own name."""
    path: Path
    """Where it lies, absolute."""
    classes: tuple[str, ...]
    """Names of the classes, each once."""
    labels: Int32
    """(n,): the class of each image, 0 to `len(classes) - 1`."""
    keys: tuple[Key, ...]
    """n keys, each once."""
    images: Images
    identity: str
    """SHA-256 that says which images these are: other pictures, another identity. Labels don't count."""
    problems: tuple[Unreadable, ...] = ()
    """Entries that can't be listed or can't be images, such as a link in a tar."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of files that were passed over, by reason; no images, or not to be read."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def roots(self) -> tuple[str, ...]:
        """Roots of the keys, each once, in order."""
        return tuple(dict.fromkeys(root for root, _ in self.keys))

    def entries(self, keys: Iterable[Key]) -> Iterator[Entry]:
        """The images of some keys, undecoded, in the data set's order: `load_item` decodes one."""
        wanted = set(keys)
        return self.images.items(lambda root, path: (root, path) in wanted)

    def read_image(self, root: str, path: str, *, sixteen_bit: str = "full") -> Image.Image:
        """The image of one key, as `sources.read_image`, which knows of no pixels in an array; raises InputError."""
        if isinstance(self.images, PixelImages):
            return self.images.read(root, path)
        return read_image(root, path, sixteen_bit=sixteen_bit)


def stratified(labels: Int32, limit: int, seed: int) -> npt.NDArray[np.intp]:
    """Choose `limit` of n points so that each class keeps its share; gives their rows in rising order.

    The rows of a class are shuffled by `seed` and its first taken, so that a smaller choice is mostly part of a larger.
    Shares are rounded by the largest remainder; each class gets one at least.

    Raises:
        UsageError: fewer than one for each class.
    """
    present, counts = np.unique(labels, return_counts=True)
    if limit >= len(labels):
        return np.arange(len(labels))
    if limit < len(present):
        raise UsageError(f"--limit {limit}: there are {len(present)} classes, each needs an image at least")
    exact = counts * (limit / len(labels))
    take = np.maximum(np.floor(exact).astype(int), 1)
    order = np.argsort(take - exact, kind="stable")  # the largest remainder first
    while (left := limit - int(take.sum())) != 0:
        step = 1 if left > 0 else -1
        able = [one for one in order[::step] if (take[one] < counts[one] if step > 0 else take[one] > 1)]
        take[able[: abs(left)]] += step
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in zip(present, take, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def check_names(names: Sequence[str], count: int, file: str) -> tuple[str, ...]:
    """The class names of a file, after they were counted.

    Raises:
        InputError: there are not `count`, or two are alike.
    """
    if len(names) != count or len(set(names)) != count:
        twice = "" if len(set(names)) == len(names) else ", some of them twice"
        raise InputError(f"{file}: expected {count} names of classes, a line each, found {len(names)}{twice}")
    return tuple(names)


def check_labels(labels: npt.NDArray[Any], count: int, file: str, first: int = 0) -> Int32:
    """Labels (n,) from `first` on as (n,) from 0 on.

    Raises:
        InputError: one is out of range.
    """
    outside = np.flatnonzero((labels < first) | (labels >= first + count))
    if outside.size:
        row, last = int(outside[0]), first + count - 1
        raise InputError(f"{file}: image {row} has the label {labels[row]}, expected {first} to {last}")
    return (labels.astype(np.int64) - first).astype(np.int32)


def identity_of_content(*contents: bytes | memoryview) -> str:
    """The identity of images that lie in these bytes."""
    total = hashlib.sha256()
    for content in contents:
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def identity_of_files(root: str, paths: Iterable[str]) -> str:
    """The identity of files by name, size and time of change: reading a large folder would cost too much."""
    total = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118  # a Path takes ten times as long
            what = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # told when it is to be decoded
            what = "missing"
        total.update(f"{path}\0{what}\n".encode(errors="surrogatepass"))
    return total.hexdigest()


def identity_of_file(path: Path) -> str:
    """The identity of what lies in one file: its content's SHA-256.

    Raises:
        InputError: it can't be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path}: is a folder or a device, not a file")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
