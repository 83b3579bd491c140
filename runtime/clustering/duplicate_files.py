"""The files of `dedup`: `duplicates.parquet`, and `summary.json`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.clustering.duplicates import ALONE, Duplicates
from runtime.contract.errors import InputError
from runtime.contract.keys import Key
from runtime.store import Store
from runtime.store.records import file_names
from runtime.store.result_folder import Kind, publish_result

DUPLICATES = "duplicates.parquet"
KIND = Kind("dedup", (DUPLICATES,))
_KEYS = 65_536


def summarize(found: Duplicates, store: Store, threshold: float, keep: str) -> dict[str, Any]:
    """Return the summary of a result, as JSON."""
    return {
        "source": {
            "path": str(store.path.resolve()),
            "images": len(store),
            "width": store.width,
            "complete": store.complete,
            "model": store.origin.get("model"),
            "model_sha256": store.origin.get("model_sha256"),
        },
        "threshold": threshold,
        "keep": keep,
        "kept": int(found.kept.sum()),
        "duplicates": int((~found.kept).sum()),
        "groups": len(found.sizes),
        "largest_group": int(found.sizes[0]) if len(found.sizes) else 0,
        "zeros": found.zeros,
        "images_without_embedding": _errors(store),
    }


def publish(
    out: Path, work: Path, keys: Iterable[Key], found: Duplicates, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files into `out` by the folder from `result_folder`; returns the summary as written.

    Raises:
        OutputFileError: a file can't be written.
    """
    return publish_result(out, work, KIND, [(DUPLICATES, _parquet(keys, found))], summary)


def _parquet(keys: Iterable[Key], found: Duplicates) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    is_alone = found.groups == ALONE
    roots, paths = [], []
    keys = iter(keys)
    while some := list(itertools.islice(keys, _KEYS)):  # as strings of Python all would take more than the result
        roots.append(pa.array([root for root, _ in some], pa.string()))
        paths.append(pa.array([path for _, path in some], pa.string()))
    table = pa.table(
        {
            "root": pa.chunked_array(roots, pa.string()),
            "path": pa.chunked_array(paths, pa.string()),
            "row": pa.array(np.arange(len(is_alone)), pa.int64()),
            "group": pa.array(found.groups, pa.int32(), mask=is_alone),
            "similarity": pa.array(found.similarities, pa.float32(), mask=is_alone),
            "keep": pa.array(found.kept, pa.bool_()),
        }
    )
    sink = io.BytesIO()
    parquet.write_table(table, sink, use_dictionary=["root"], write_page_checksum=True)
    return sink.getvalue()


def _errors(store: Store) -> int:
    """Number of images that `embed` could not embed, which are in no row."""
    if not store.path.is_dir():
        return 0
    path = store.path / file_names(store.path).errors
    try:
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
