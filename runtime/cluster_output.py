"""The files of one clustering: `labels.parquet`, `centroids.npy`, `clusters.png`, and `summary.json` last.

After `--k auto` there is a `silhouette.png` too. The summary holds SHA-256 of the others. An older result is replaced
so: all files are finished in a hidden folder in OUT; the old summary goes; the others are moved in; the new summary is
moved in. Signals wait for the end of that, and a second run into OUT is refused. So an OUT with a summary is whole, and
files of two runs never pass as one: where a run is killed meanwhile there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.atomic import cannot_write, locked, publish, sync_folder, uninterrupted, work_folder
from runtime.clustering import Clustering
from runtime.errors import OutputFileError, UsageError, one_line

LABELS = "labels.parquet"
CENTROIDS = "centroids.npy"
PICTURE = "clusters.png"
SILHOUETTE = "silhouette.png"
SUMMARY = "summary.json"


@contextlib.contextmanager
def output_folder(out: Path, source: Path, assigned: Path | None = None) -> Iterator[Path]:
    """A hidden work folder inside `out`, which is made where its parent exists, and unmade if nothing came.

    Args:
        out: where the results go.
        source: the folder of embeddings, which must not be `out`.
        assigned: an older run or its centroids, which must not be `out` either.

    Raises:
        UsageError: `out` holds embeddings, or would be taken for a part of them, or what it holds would be lost.
        OutputFileError: `out` can't be made or written, or another run is writing there.
    """
    _check_place(out, source)
    _check_loss(out, assigned)
    made = False
    try:
        if not out.is_dir():
            out.mkdir()
            made = True
        in_the_way = [name for name in (LABELS, CENTROIDS, PICTURE, SILHOUETTE, SUMMARY) if (out / name).is_dir()]
    except OSError as error:
        raise cannot_write(out, error) from error
    if in_the_way:
        raise OutputFileError(f"can't write {out / in_the_way[0]}: a folder is in its place; move it away")
    try:
        with locked(out) as is_free:
            if not is_free:
                raise OutputFileError(f"another `cluster` is writing into {out}: wait for it")
            with work_folder(beside=out / SUMMARY) as work:
                yield work
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                out.rmdir()


def _check_place(out: Path, source: Path) -> None:
    """Keep `labels.parquet` away from embeddings: readers take every `.parquet` beside them for a part."""
    try:
        held = next(out.glob("part-*.parquet"), None) if out.is_dir() else None
        inside = out.parent.is_dir() and out.parent.samefile(source) and out.suffix == ".parquet"
        same = out.is_dir() and out.samefile(source)
    except OSError as error:
        raise cannot_write(out, error) from error
    if same:
        raise UsageError(f"--out {out} is the folder of the embeddings itself: give it one of its own")
    if held is not None:
        raise UsageError(f"--out {out} holds embeddings ({held.name}): give it a folder of its own")
    if inside:
        raise UsageError(f"--out {out} would look like a part of the embeddings: drop the .parquet")


def _check_loss(out: Path, assigned: Path | None) -> None:
    """Replace neither the older run that is read, nor what other programs call `summary.json`."""
    try:
        older = assigned if assigned is None or assigned.name != CENTROIDS else assigned.parent
        if older is not None and out.is_dir() and older.samefile(out):
            raise UsageError(f"--out {out} is the older run of --assign: give it a folder of its own")
        if not (out / SUMMARY).is_file():
            return
        is_ours = CENTROIDS in json.loads((out / SUMMARY).read_bytes())["files"]
    except OSError as error:
        raise cannot_write(out, error) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UsageError(f"--out {out} holds a {SUMMARY} that `cluster` did not write: give it a folder of its own")


def publish_results(
    out: Path,
    work: Path,
    roots: Sequence[str],
    paths: Sequence[str],
    clustering: Clustering,
    png: bytes,
    summary: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write the files; gives the summary as written, `files` added.

    Args:
        out: where they go.
        work: from `output_folder`.
        roots: folder of each of the n images.
        paths: path of each in its folder.
        clustering: their clusters.
        png: the picture.
        summary: everything else that the summary tells, as JSON.
        more: other files: `SILHOUETTE`.

    Raises:
        OutputFileError: a file can't be written; an older result is then as before, or has lost its summary.
    """
    contents = {
        LABELS: _labels_parquet(roots, paths, clustering),
        CENTROIDS: _npy(clustering),
        PICTURE: png,
        **(more or {}),
    }
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    full = {**summary, "files": files}
    contents[SUMMARY] = _json(full)
    for name, data in contents.items():
        try:
            (work / name).write_bytes(data)
        except OSError as error:
            raise cannot_write(out / name, error) from error
    with uninterrupted():
        try:
            (out / SUMMARY).unlink(missing_ok=True)
            if SILHOUETTE not in contents:
                (out / SILHOUETTE).unlink(missing_ok=True)  # of another k
            sync_folder(out)
        except OSError as error:
            raise cannot_write(out / SUMMARY, error) from error
        for name in contents:  # the summary is the last
            try:
                publish(work / name, out / name)
            except OutputFileError as error:
                reason = one_line(error.__cause__ or error)
                raise OutputFileError(
                    f"{out} has no {SUMMARY} now, {name} can't be moved in ({reason}): run it again"
                ) from error
    return full


def _labels_parquet(roots: Sequence[str], paths: Sequence[str], clustering: Clustering) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "root": pa.array(roots, pa.string()),
            "path": pa.array(paths, pa.string()),
            "label": pa.array(clustering.labels, pa.int32()),
            "distance": pa.array(clustering.distances, pa.float32()),
        }
    )
    sink = io.BytesIO()
    parquet.write_table(table, sink, use_dictionary=["root"], write_page_checksum=True)
    return sink.getvalue()


def _npy(clustering: Clustering) -> bytes:
    import numpy as np

    sink = io.BytesIO()
    np.save(sink, clustering.centroids, allow_pickle=False)
    return sink.getvalue()


def _json(summary: Mapping[str, Any]) -> bytes:
    """Indented JSON; half of a surrogate pair, as in a folder's name that is not UTF-8, is escaped."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
