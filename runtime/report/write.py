"""Writing a report: thumbnails made, the page rendered, the file replaced at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.contract.atomic import cannot_write, write_atomically
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.keys import Key
from runtime.report.content import OpenImages, Report
from runtime.report.page import render
from runtime.report.thumbnails import Wanted, make_thumbnails

SUFFIXES = (".html", ".htm")
_SHEET_SIDE, _MAP_SIDE, _MODEL_SIDE = 96, 64, 224
"""Sides of thumbnails, pixels."""


@dataclass(frozen=True)
class Written:
    """Counts of a written report."""

    bytes: int
    images: int
    """Number of different images in it."""
    unreadable: tuple[Key, ...]
    """Images that can't be read any more, drawn as placeholders."""


def check_target(path: Path, to_be_made: Path | None = None) -> None:
    """Check, before anything long is begun, that a report can be written to `path`.

    Args:
        path: the report.
        to_be_made: a folder that the command makes before it writes the report; it need not exist yet.

    Raises:
        UsageError: it doesn't end in .html.
        OutputFileError: a folder is in its place, or its own folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--report {path}: must end in .html")
    try:
        if path.is_dir():
            raise OutputFileError(f"can't write {path}: a folder is in its place; name a file")
        if not path.parent.is_dir() and path.parent != to_be_made:
            raise OutputFileError(f"can't write {path}: the folder {path.parent} does not exist; make it first")
    except OSError as error:
        raise cannot_write(path, error) from error


def write_report(path: Path, report: Report, open_images: OpenImages) -> Written:
    """Write a report, whole or not at all; the same report of the same images gives the same bytes.

    Raises:
        UsageError, OutputFileError: as `check_target`, or the disk is full.
    """
    check_target(path)
    wanted = _wanted(report)
    with open_images([one.key for one in wanted]) as read:
        made = make_thumbnails(wanted, read)
    tiles = {one.key: webp for one, webp in zip(wanted, made, strict=True) if one.model_view is None}
    views = {one.key: webp for one, webp in zip(wanted, made, strict=True) if one.model_view is not None}
    page = render(report, tiles, views.__getitem__).encode()
    write_atomically(path, page)
    missing = {one.key: None for one, webp in zip(wanted, made, strict=True) if webp is None}
    return Written(len(page), len(tiles.keys() | views.keys()), tuple(missing))


def _wanted(report: Report) -> list[Wanted]:
    """Each image once: as on a contact sheet where it is on one, else as on the map; and as the model sees it."""
    sides: dict[Key, int] = {}
    for one in report.clusters:
        for image in (*one.central, *one.borderline, *one.outliers):
            sides[image.key] = _SHEET_SIDE
    for group in report.groups:
        sides.update((image.key, _SHEET_SIDE) for image in group.images)
    for key in report.map.keys if report.map is not None else ():
        sides.setdefault(key, _MAP_SIDE)
    wanted = [Wanted(key, side) for key, side in sides.items()]
    if (found := report.artifacts) is not None:
        wanted += [Wanted(one.key, _MODEL_SIDE, found.preprocessing) for one in found.images]
    return wanted
