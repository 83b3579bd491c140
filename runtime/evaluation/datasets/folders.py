"""Any images with one folder for each class: a folder, or a tar of one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from runtime.contract.errors import InputError
from runtime.contract.keys import location
from runtime.evaluation.datasets.dataset import Dataset, identity_of_file, identity_of_files
from runtime.sources import ALL, Selection, open_sources
from runtime.sources.item import Unreadable
from runtime.sources.names import PARQUET_SUFFIX, TAR_SUFFIXES, printable
from runtime.sources.selection import as_line


def load(path: Path, selection: Selection = ALL) -> Dataset:
    """Load a folder or tar; the class of an image is the name of the folder that it lies in.

    Raises:
        InputError: there are no images, not two classes, an image lies in no class's folder, or a tar is damaged.
    """
    where = printable(str(path))
    is_tar = path.name.lower().endswith(TAR_SUFFIXES) and path.is_file()
    if not (is_tar or path.is_dir()):
        raise InputError(f"{where}: expected a folder with one folder for each class, or a tar of one")
    sources = open_sources([str(path)], selection=selection)
    if any(root.lower().endswith(PARQUET_SUFFIX) for root in sources.roots):
        raise InputError(f"{where}: holds parquet files and no image: give them by --data parquet:FILE")
    keys: list[tuple[str, str]] = []

    def take_name(root: str, name: str) -> bool:
        keys.append((root, name))
        return False

    problems = tuple(one for one in sources.items(take_name) if isinstance(one, Unreadable))
    if (damage := next((one for one in problems if not one.path), None)) is not None:
        raise InputError(f"{where}: {damage.error}")  # whole classes may be behind it
    if not keys:
        raise InputError(f"{where}: holds no image; {problems[0].path}: {problems[0].error}")
    parents = [PurePosixPath(name).parent for _, name in keys]
    if (loose := next((key for key, parent in zip(keys, parents, strict=True) if not parent.name), None)) is not None:
        raise InputError(
            f"{printable(location(*loose))} lies in no class's folder: expected {where}/CLASS/IMAGE; "
            "--exclude leaves it out"
        )
    classes = sorted({parent.name for parent in parents})
    if len(classes) < 2:
        raise InputError(f"{where}: all images lie in folders named {classes[0]!r}, expected one for each class")
    number = {name: label for label, name in enumerate(classes)}
    return Dataset(
        kind="folder",
        name=printable(path.name.partition(".tar")[0] if is_tar else path.name),
        path=path,
        classes=tuple(classes),
        labels=np.array([number[parent.name] for parent in parents], np.int32),
        keys=tuple(keys),
        images=sources,
        identity=identity_of_file(path) if is_tar else identity_of_files(str(path), [name for _, name in keys]),
        problems=problems,
        remarks=(*_shared(parents), *((as_line(sources.skipped),) if sources.skipped else ())),
        skipped=sources.skipped,
    )


def _shared(parents: list[PurePosixPath]) -> tuple[str, ...]:
    """Remarks on folders of one name in several places, as in a training and a test split."""
    places: defaultdict[str, set[PurePosixPath]] = defaultdict(set)
    for parent in parents:
        places[parent.name].add(parent.parent)
    shared = [name for name, found in places.items() if len(found) > 1]
    if not shared:
        return ()
    first = sorted(map(str, places[shared[0]]))
    return (f"{len(shared)} classes, {shared[0]!r} the first, have folders in several places ({', '.join(first[:3])})",)
