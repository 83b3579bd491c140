"""Embeddings on disk: read lazily by `Store`, written by `open_writer` so that no crash loses or doubles a row.

A folder is a store of one kind: `part-00000.parquet` and so on (columns `root`, `path`, `embedding`), or one
`embeddings.npy` with `paths.txt`. Beside either lie `store.json`, which says what made it and whether the run ended,
and `errors.jsonl`.
"""

from runtime.store.reader import Store
from runtime.store.records import Embeddings

__all__ = ["Embeddings", "Store"]
