"""A folder that a command leaves its result in: some files, and `summary.json`, with the SHA-256 of the others.

All files are finished in a hidden folder in OUT, then they take the places of an older result together. A second run
into OUT is refused. So an OUT with a summary is whole, and files of two runs never pass as one: where a run is killed
meanwhile there is none, until the next run puts the older result back and then its own in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract.atomic import alone_in, cannot_write, work_folder
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.file_set import FileSet, publish_sets, recover
from runtime.store.records import FILE_NAMES, FORMER_FILE_NAMES

SUMMARY = "summary.json"
EMBEDDINGS = ("part-*.parquet", FILE_NAMES.record, FORMER_FILE_NAMES.record)
"""Files that show that a folder holds embeddings."""


@dataclass(frozen=True)
class Kind:
    """The files of a command's result."""

    command: str
    always: tuple[str, ...]
    """Files of every result, besides `SUMMARY`; the first one shows which command a summary belongs to."""
    sometimes: tuple[str, ...] = ()
    """Files of some results; they are removed if the next result lacks them."""


@contextlib.contextmanager
def result_folder(out: Path, kind: Kind) -> Iterator[Path]:
    """A hidden work folder inside `out`, which is made where its parent exists, and unmade if nothing came.

    Raises:
        UsageError: `out` holds embeddings, whose readers take any `.parquet` for a part, or what is not of this kind.
        OutputFileError: `out` can't be made or written, or another run is writing there.
    """
    _check_loss(out, kind)
    made = False
    try:
        if not out.is_dir():
            out.mkdir()
            made = True
        in_the_way = [name for name in (*kind.always, *kind.sometimes, SUMMARY) if (out / name).is_dir()]
    except OSError as error:
        raise cannot_write(out, error) from error
    if in_the_way:
        raise OutputFileError(f"can't write {out / in_the_way[0]}: a folder is in its place; move it away")
    try:
        with alone_in(out, "run"):
            recover(out)
            with work_folder(beside=out / SUMMARY) as work:
                yield work
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                out.rmdir()


def _check_loss(out: Path, kind: Kind) -> None:
    """Replace neither embeddings nor what other programs call `summary.json`."""
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is no folder: give it another name")
        held = next((one for what in EMBEDDINGS for one in out.glob(what)), None)
        if held is not None:
            raise UsageError(f"--out {out} holds embeddings ({held.name}): give it a folder of its own")
        if not (out / SUMMARY).is_file():
            return
        is_ours = kind.always[0] in json.loads((out / SUMMARY).read_bytes())["files"]
    except OSError as error:
        raise cannot_write(out, error) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"--out {out} holds a {SUMMARY} that `{kind.command}` did not write: give it a folder of its own"
        )


def publish_result(
    out: Path, work: Path, kind: Kind, contents: Iterable[tuple[str, bytes]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files; returns the summary as written, with `files` added.

    Args:
        out: the folder of the result.
        work: the folder from `result_folder`.
        kind: the kind of the result.
        contents: name and content of each file except for the summary; one at a time is in memory.
        summary: the rest of the summary, as JSON.

    Raises:
        OutputFileError: a file can't be written or moved; the message says what is in `out` now.
    """
    files: dict[str, dict[str, int | str]] = {}
    full = {**summary, "files": files}

    def write(name: str, data: bytes) -> None:
        try:
            (work / name).write_bytes(data)
        except OSError as error:
            raise cannot_write(out / name, error) from error

    for name, data in contents:
        write(name, data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write(SUMMARY, _json(full))
    obsolete = sorted({*kind.sometimes, *_older_files(out)} - {*files, SUMMARY})
    publish_sets([FileSet(out / SUMMARY, {name: work / name for name in (*files, SUMMARY)}, obsolete)], work)
    return full


def _older_files(out: Path) -> list[str]:
    """Names of the files of the result that lies in `out`; none if there is none, or its summary is damaged."""
    try:
        names = [*json.loads((out / SUMMARY).read_bytes())["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _json(summary: Mapping[str, Any]) -> bytes:
    """Indented JSON; half of a surrogate pair, as in a folder's name that is not UTF-8, is escaped."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
