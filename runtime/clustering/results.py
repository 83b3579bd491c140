"""The files of one clustering: `labels.parquet`, `centroids.npy`, `clusters.png`.

Of a clustering by Ray there is no `labels.parquet` but a file for each part of the store, `labels-00000.parquet` of
`part-00000.parquet` and so on, with the same rows: nothing needs the paths of all images in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
KIND = Kind("cluster", (CENTROIDS, PICTURE), sometimes=(LABELS, "silhouette.png"))
"""`silhouette.png` is of older versions; it goes where a new result replaces it."""

Named = tuple[str, Sequence[str], Sequence[str]]
"""Name of a file of labels, and root and path of each image in it."""

__all__ = ["CENTROIDS", "LABELS", "PICTURE", "SUMMARY", "Named", "labels_part", "output_folder", "publish_results"]


def labels_part(number: int) -> str:
    """Name of the file with the labels of a part of the store."""
    return f"labels-{number:05d}.parquet"


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
    named: Iterable[Named],
    clustering: Clustering,
    png: bytes,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the files; returns the summary as written, with `files` added.

    Args:
        out: the folder of the results.
        work: the folder from `output_folder`.
        named: the images of each file of labels, n in all, in their order.
        clustering: their clusters.
        png: the picture.
        summary: the rest of the summary, as JSON.

    Raises:
        OutputFileError: a file can't be written; an older result is then as before, or has lost its summary.
    """

    def contents() -> Iterator[tuple[str, bytes]]:
        first = 0
        for name, roots, paths in named:
            yield name, _labels_parquet(roots, paths, clustering, slice(first, first + len(paths)))
            first += len(paths)
        yield CENTROIDS, _npy(clustering)
        yield PICTURE, png

    return publish_result(out, work, KIND, contents(), summary)


def _labels_parquet(roots: Sequence[str], paths: Sequence[str], clustering: Clustering, rows: slice) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "root": pa.array(roots, pa.string()),
            "path": pa.array(paths, pa.string()),
            "label": pa.array(clustering.labels[rows], pa.int32()),
            "distance": pa.array(clustering.distances[rows], pa.float32()),
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
