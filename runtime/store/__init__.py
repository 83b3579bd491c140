"""Embeddings on disk: read lazily by `Store`, written by `open_writer` so that no crash loses or doubles a row.

Imports `contract`. A store is a folder: `part-00000.parquet` and so on (columns `root`, `path`, `embedding`),
`_store.json`, which says what made it and whether the run ended, and `_errors.jsonl`. `array_pair` writes and reads
embeddings as an array for other programs, `result_folder` the results that other commands make of a store.
"""

from runtime.store.reader import Store
from runtime.store.records import Embeddings
from runtime.store.search import Neighbour

__all__ = ["Embeddings", "Neighbour", "Store"]
