"""The files of an evaluation: `scores.parquet`, a row for each seed, and `summary.json` last, with its SHA-256.

An older summary goes before the scores are replaced: files of two runs never pass as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.atomic import cannot_write, sync_folder, write_atomically
from runtime.errors import OutputFileError, UsageError
from runtime.evaluation_report import DatasetResult
from runtime.paper import is_random

SCORES = "scores.parquet"
SUMMARY = "summary.json"


@contextlib.contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """Make `out` where its parent exists, before anything is computed; unmake it if nothing came.

    Raises:
        UsageError: it holds embeddings, whose readers would take `scores.parquet` for a part.
        OutputFileError: it can't be made or written.
    """
    made = False
    try:
        if next(out.glob("part-*.parquet"), None) is not None:
            raise UsageError(f"--out {out} holds embeddings: give it a folder of its own")
        if not out.is_dir():
            out.mkdir()
            made = True
        in_the_way = [name for name in (SCORES, SUMMARY) if (out / name).is_dir()]
    except OSError as error:
        raise cannot_write(out, error) from error
    if in_the_way:
        raise OutputFileError(f"can't write {out / in_the_way[0]}: a folder is in its place; move it away")
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                out.rmdir()


def publish_evaluation(out: Path, results: Sequence[DatasetResult], summary: Mapping[str, Any]) -> None:
    """Write both files; raises OutputFileError, after which an older result is as before or has lost its summary."""
    scores = _scores(results)
    files = {SCORES: {"bytes": len(scores), "sha256": hashlib.sha256(scores).hexdigest()}}
    text = json.dumps({**summary, "files": files}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        (out / SUMMARY).unlink(missing_ok=True)
        sync_folder(out)
    except OSError as error:
        raise cannot_write(out / SUMMARY, error) from error
    write_atomically(out / SCORES, scores)
    write_atomically(out / SUMMARY, text.encode("utf-8", "backslashreplace"))


def _scores(results: Sequence[DatasetResult]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {
            "dataset": one.embedded.dataset.name,
            "kind": one.embedded.dataset.kind,
            "dataset_sha256": one.embedded.dataset.identity,
            "model": one.embedded.name,
            "model_sha256": one.embedded.manifest.files.model.sha256,
            "random_weights": is_random(one.embedded.manifest),
            "normalisation": one.normalisation,
            "images": len(one.truth),
            "k": one.k,
            "starts": one.starts,
            **vars(score),
        }
        for result in results
        for one in result.evaluations
        for score in one.scores
    ]
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=True)
    return sink.getvalue()
