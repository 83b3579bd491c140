"""The files of an evaluation: `scores.parquet`, a row for each seed, and its summary."""

from __future__ import annotations

import io
from collections.abc import Sequence

from runtime.evaluation.presentation import DatasetResult
from runtime.store.result_folder import Kind

SCORES = "scores.parquet"
KIND = Kind("evaluate", (SCORES,))


def scores_parquet(results: Sequence[DatasetResult]) -> bytes:
    """The contents of `SCORES`."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {
            "dataset": one.embedded.dataset.name,
            "kind": one.embedded.dataset.kind,
            "dataset_sha256": one.embedded.dataset.identity,
            "model": one.embedded.name,
            "model_sha256": one.embedded.manifest.files.model.sha256,
            "random_weights": one.embedded.manifest.has_random_weights,
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
