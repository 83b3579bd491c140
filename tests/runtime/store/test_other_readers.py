"""A store as other programs read it, and the names in its folder: those of today and those of earlier versions."""

import glob
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from pyarrow import dataset, parquet
from stores import assert_same, rows, write

from runtime.contract.errors import InputError
from runtime.store import Store, growing_parts
from runtime.store.writer import open_writer

FORMER = {"_store.json": "store.json", "_errors.jsonl": "errors.jsonl"}


def make(folder: Path, monkeypatch) -> None:
    """Nine rows in three parts, and an image that failed."""
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
    with open_writer(folder, {"model": "a.onnx"}) as made:
        made.add_error("/r", "bad.png", "is empty")
        made.add(rows(9).roots, rows(9).paths, rows(9).vectors)


def make_former(folder: Path) -> None:
    write(folder, rows(9)[:4], {"model": "a.onnx"})
    for name, former in FORMER.items():
        (folder / name).rename(folder / former)


READERS = {
    "pandas": lambda folder: pd.read_parquet(folder)[["path", "embedding"]].to_numpy().tolist(),
    "pandas, by name": lambda folder: pd.read_parquet(str(folder))[["path", "embedding"]].to_numpy().tolist(),
    "pyarrow": lambda folder: parquet.read_table(folder).select(["path", "embedding"]).to_pandas().to_numpy().tolist(),
    "pyarrow's dataset": lambda folder: [
        (row["path"], row["embedding"]) for row in dataset.dataset(folder).to_table().to_pylist()
    ],
    "polars": lambda folder: pl.read_parquet(folder / "*.parquet").select("path", "embedding").rows(),
    "duckdb": lambda folder: duckdb.sql(f"SELECT path, embedding FROM '{folder}/*.parquet' ORDER BY path").fetchall(),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_store_with_errors_is_read_by_other_programs(read, tmp_path, monkeypatch) -> None:
    make(tmp_path / "out", monkeypatch)
    found = sorted(read(tmp_path / "out"), key=lambda row: row[0])
    assert [path for path, _ in found] == sorted(rows(9).paths)
    expected = dict(zip(rows(9).paths, rows(9).vectors, strict=True))
    for path, vector in found:
        np.testing.assert_array_equal(np.asarray(vector, np.float32), expected[path])


def test_a_store_of_an_earlier_version_is_read_by_its_parts_as_the_readme_says(tmp_path) -> None:
    make_former(tmp_path / "out")
    assert len(pd.read_parquet(sorted(glob.glob(f"{tmp_path}/out/*.parquet")))) == 4  # noqa: PTH207
    with pytest.raises(ValueError, match="Could not open Parquet input source"):  # why the names are others today
        pd.read_parquet(tmp_path / "out")


def test_a_store_of_an_earlier_version_goes_on_under_its_names(tmp_path) -> None:
    make_former(tmp_path)
    assert_same(Store(tmp_path).read(), rows(9)[:4])
    with open_writer(tmp_path, {"model": "a.onnx"}) as made:
        made.add_error("/r", "bad.png", "is empty")
        made.add(rows(9)[4:].roots, rows(9)[4:].paths, rows(9)[4:].vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "part-00000.parquet", "store.json"]
    assert (tmp_path / "errors.jsonl").read_text().count("bad.png") == 1
    assert Store(tmp_path).complete
    assert_same(Store(tmp_path).read(), rows(9))


def test_errors_of_an_earlier_version_without_a_row_go_on_under_their_name(tmp_path) -> None:
    (tmp_path / "errors.jsonl").write_text('{"root": "/r", "path": "a.png", "error": "is empty"}\n')
    write(tmp_path, rows(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "part-00000.parquet", "store.json"]
    assert (tmp_path / "errors.jsonl").read_text() == ""


def test_a_folder_with_records_of_both_names_is_refused(tmp_path) -> None:
    write(tmp_path, rows(2))
    (tmp_path / "store.json").write_bytes((tmp_path / "_store.json").read_bytes())
    for use in (lambda: Store(tmp_path), lambda: write(tmp_path, rows(2))):
        with pytest.raises(InputError, match=r"holds _store.json and store.json, .*: remove the one that does not"):
            use()
