"""The files of one clustering: `labels.parquet`, `centroids.npy`, `clusters.png`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from runtime.clustering.clusters import Clustering
from runtime.contract.atomic import cannot_write
from runtime.contract.errors import UsageError
from runtime.store.result_folder import SUMMARY, Kind, publish_result, result_folder

LABELS = "labels.parquet"
CENTROIDS = "centroids.npy"
PICTURE = "clusters.png"
KIND = Kind("cluster", (CENTROIDS, LABELS, PICTURE), sometimes=("silhouette.png",))
"""`silhouette.png` is of older versions; it goes where a new result replaces it."""

__all__ = ["CENTROIDS", "LABELS", "PICTURE", "SUMMARY", "output_folder", "publish_results"]


def output_folder(out: Path, source: Path, assigned: Path | None = None) -> AbstractContextManager[Path]:
    """As `result_folder`, after checking that nothing is lost that is read.

    Args:
        out: where the results go.
        source: the folder of embeddings, which must not be `out`.
        assigned: an older run or its centroids, which must not be `out` either.

    Raises:
        UsageError: `out` is one of these, or would be taken for a part of the embeddings.
    """
    try:
        inside = out.parent.is_dir() and out.parent.samefile(source) and out.suffix == ".parquet"
        same = out.is_dir() and out.samefile(source)
        older = assigned if assigned is None or assigned.name != CENTROIDS else assigned.parent
        lost = older is not None and out.is_dir() and older.samefile(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    if same:
        raise UsageError(f"--out {out} is the folder of the embeddings itself: give it one of its own")
    if inside:
        raise UsageError(f"--out {out} would look like a part of the embeddings: drop the .parquet")
    if lost:
        raise UsageError(f"--out {out} is the older run of --assign: give it a folder of its own")
    return result_folder(out, KIND)


def publish_results(
    out: Path,
    work: Path,
    roots: Sequence[str],
    paths: Sequence[str],
    clustering: Clustering,
    png: bytes,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the files; returns the summary as written, with `files` added.

    Args:
        out: the folder of the results.
        work: the folder from `output_folder`.
        roots: folder of each of the n images.
        paths: path of each in its folder.
        clustering: their clusters.
        png: the picture.
        summary: the rest of the summary, as JSON.

    Raises:
        OutputFileError: a file can't be written; an older result is then as before, or has lost its summary.
    """
    contents = {
        LABELS: _labels_parquet(roots, paths, clustering),
        CENTROIDS: _npy(clustering),
        PICTURE: png,
    }
    return publish_result(out, work, KIND, contents, summary)


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
