"""Embeddings as parquet: they are read back as written, and other files are not taken for them."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from stores import assert_same, rows, write

from runtime.contract.errors import InputError
from runtime.store import Embeddings, Store, growing_parts, parquet_parts
from runtime.store.origin import fingerprint
from runtime.store.records import StoreRecord, write_record


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_what_is_written_is_read_from_any_number_of_parts(count, parts, tmp_path, small_parts) -> None:
    write(tmp_path / "out", rows(count))
    expected = [f"part-{number:05d}.parquet" for number in range(parts)]
    assert names(tmp_path / "out") == ["_errors.jsonl", "_store.json", *expected]
    assert_same(Store(tmp_path / "out").read(), rows(count))


def test_a_store_is_read_lazily_part_by_part(tmp_path, small_parts) -> None:
    write(tmp_path / "out", rows(9), {"model": "a.onnx"})
    store = Store(tmp_path / "out")
    assert (len(store), store.width, store.complete) == (9, 3, True)
    assert store.origin == {"model": "a.onnx"}
    assert [len(part) for part in store.parts()] == [4, 4, 1]
    assert list(store.images()) == [("/root", f"0/{number}.png") for number in range(9)]
    np.testing.assert_array_equal(store.load(), rows(9).vectors)


def test_a_run_that_goes_on_does_not_change_what_a_reader_sees(tmp_path, small_parts) -> None:
    everything = rows(11)
    write(tmp_path / "out", everything[:6])
    store = Store(tmp_path / "out")
    write(tmp_path / "out", everything[6:])
    assert len(Store(tmp_path / "out")) == 11
    assert_same(store.read(), everything[:6])
    assert sum(map(len, store.parts())) == len(list(store.images())) == len(store) == 6
    np.testing.assert_array_equal(store.load(), everything.vectors[:6])


@pytest.mark.parametrize("other", [rows(2), rows(3, width=5)], ids=["shorter", "wider"])
def test_a_part_that_was_replaced_since_the_store_was_opened_is_refused(other, tmp_path) -> None:
    write(tmp_path / "out", rows(3))
    store = Store(tmp_path / "out")
    write(tmp_path / "other", other)
    (tmp_path / "other" / "part-00000.parquet").replace(tmp_path / "out" / "part-00000.parquet")
    with pytest.raises(InputError, match="held 3 rows of 3 when it was opened, now"):
        store.read()
    with pytest.raises(InputError, match="held 3 rows of 3 when it was opened, now"):
        list(store.images())


def test_columns_are_those_that_the_format_promises(tmp_path) -> None:
    write(tmp_path / "out", rows(2), {"model_sha256": "abc"})
    file = parquet.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    schema = file.schema_arrow
    assert schema.names == ["root", "path", "embedding"]
    assert schema.field("root").type == schema.field("path").type == pa.string()
    assert schema.field("embedding").type == pa.list_(pa.float32(), 3)
    metadata = json.loads(schema.metadata[b"itae"])
    assert metadata == {"format": 2, "store": fingerprint({"model_sha256": "abc"}), "model_sha256": "abc"}


def test_the_same_rows_give_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, rows(5))
    for file in names(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_survives(tmp_path, names) -> None:
    expected = Embeddings(names, names[::-1], rows(len(names)).vectors)
    with tempfile.TemporaryDirectory(dir=tmp_path) as out:
        write(Path(out), expected)
        assert_same(Store(out).read(), expected)


def test_a_folder_named_like_a_partition_is_no_column(tmp_path) -> None:
    write(tmp_path / "class=1", rows(2))
    assert_same(Store(tmp_path / "class=1").read(), rows(2))


def test_a_folder_whose_name_is_not_utf8_is_written_and_read(tmp_path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write(folder, rows(2))
    write(folder, Embeddings([], [], np.empty((0, 3), np.float32)))  # the second run looks at what the first one left
    assert_same(Store(folder).read(), rows(2))


# Folders that can't be read


def test_missing_folder_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match="no such folder of embeddings"):
        Store(tmp_path / "out")


@pytest.mark.parametrize("there", [(), ("_errors.jsonl",), ("_store.json",), ("_store.json", ".part-00000.parquet.x")])
def test_a_store_whose_run_was_stopped_before_its_first_rows_says_so(there, tmp_path) -> None:
    for name in there:
        (tmp_path / name).touch()
    if "_store.json" in there:
        write_record(tmp_path, StoreRecord(complete=False, rows=0, width=3, origin={}))
    with pytest.raises(InputError, match=r"holds no embedding yet: `embed` was stopped before .*; run `embed` again"):
        Store(tmp_path)


def test_a_complete_store_that_lost_its_parts_says_so(tmp_path) -> None:
    write(tmp_path, rows(2))
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(InputError, match=r"holds no part-00000.parquet: make them again with"):
        Store(tmp_path)


def test_folder_without_parts_is_told(tmp_path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match=r"holds no part-00000.parquet: make them again with"):
        Store(tmp_path).read()


def test_foreign_parquet_beside_the_parts_is_told(tmp_path) -> None:
    write(tmp_path, rows(2))
    (tmp_path / "labels.parquet").touch()
    with pytest.raises(InputError, match=r"labels.parquet is not a part of embeddings"):
        Store(tmp_path).read()


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_part_is_told(missing, tmp_path, small_parts) -> None:
    write(tmp_path, rows(9))
    (tmp_path / f"part-{missing:05d}.parquet").unlink()
    message = "holds 8 of 9 rows, a part is missing" if missing == 2 else "are not numbered from 0 on"
    with pytest.raises(InputError, match=message):
        Store(tmp_path)


def test_part_of_another_run_is_told(tmp_path, small_parts) -> None:
    write(tmp_path / "a", rows(9), {"model": "one"})
    write(tmp_path / "b", rows(9), {"model": "other"})
    (tmp_path / "b" / "part-00002.parquet").replace(tmp_path / "a" / "part-00002.parquet")
    with pytest.raises(InputError, match=r"part-00002.parquet is not of the same run as the parts before it"):
        Store(tmp_path / "a")


def test_parts_are_read_without_the_record_too(tmp_path, small_parts) -> None:
    write(tmp_path, rows(9), {"model": "one"})
    (tmp_path / "_store.json").unlink()
    assert_same(Store(tmp_path).read(), rows(9))


def test_truncated_or_altered_part_is_refused_or_reads_the_same(tmp_path) -> None:
    write(tmp_path, rows(40))
    path = tmp_path / "part-00000.parquet"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(data), 150).tolist():
        altered = bytearray(data)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data[:place] if place % 3 == 0 else altered)
        try:
            got = Store(tmp_path).read()
        except InputError:
            refused += 1
        else:
            assert_same(got, rows(40))  # the bit was in a statistic or in padding
    assert refused > 75


VECTORS = [[1.0, 2.0], [3.0, 4.0]]
FOREIGN = {
    "no embedding": ({"root": ["r"] * 2, "path": ["a", "b"]}, "has no column `embedding`"),
    "lists of any size": (
        {"root": ["r"] * 2, "path": ["a", "b"], "embedding": pa.array(VECTORS, pa.list_(pa.float32()))},
        "expected a fixed-size list of float32",
    ),
    "float64": (
        {"root": ["r"] * 2, "path": ["a", "b"], "embedding": pa.array(VECTORS, pa.list_(pa.float64(), 2))},
        "expected a fixed-size list of float32",
    ),
    "numbers as paths": (
        {"root": ["r"] * 2, "path": [1, 2], "embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))},
        "column `path` is int64, expected string",
    ),
    "null path": (
        {"root": ["r"] * 2, "path": ["a", None], "embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))},
        "holds nulls",
    ),
    "null vector": (
        {"root": ["r"] * 2, "path": ["a", "b"], "embedding": pa.array([VECTORS[0], None], pa.list_(pa.float32(), 2))},
        "holds nulls|Expected all lists to be of size=2",  # the latter by pyarrow itself, up to 24 at least
    ),
    "NaN": (
        {"root": ["r"], "path": ["a"], "embedding": pa.array([[np.nan, 1.0]], pa.list_(pa.float32(), 2))},
        "holds NaN or infinity",
    ),
}


@pytest.mark.parametrize(("columns", "message"), FOREIGN.values(), ids=FOREIGN)
def test_part_of_another_shape_is_told(columns, message, tmp_path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "part-00000.parquet")
    with pytest.raises(InputError, match=message):
        Store(tmp_path).read()


def test_parts_that_another_program_wrote_in_this_format_are_read(tmp_path) -> None:
    columns = {"root": ["r"] * 2, "path": ["a", "b"], "embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))}
    for number in range(2):
        parquet.write_table(pa.table(columns), tmp_path / f"part-{number:05d}.parquet")
    got = Store(tmp_path).read()
    assert got.paths == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(got.vectors, np.array(VECTORS * 2, np.float32))


def test_parts_of_different_widths_are_told(tmp_path) -> None:
    for number, width in enumerate((2, 3)):
        vectors = pa.array([[1.0] * width], pa.list_(pa.float32(), width))
        table = pa.table({"root": ["r"], "path": ["a"], "embedding": vectors})
        parquet.write_table(table, tmp_path / f"part-{number:05d}.parquet")
    with pytest.raises(InputError, match=r"widths \[2, 3\]"):
        Store(tmp_path).read()


@pytest.mark.parametrize("file", ["_store.json", "part-00000.parquet"])
def test_newer_format_is_refused_by_number(file, tmp_path, monkeypatch) -> None:
    write(tmp_path, rows(1))
    if file == "_store.json":
        path = tmp_path / file
        path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    else:
        monkeypatch.setattr(parquet_parts, "FORMAT", 3)
        parquet_parts.write_part(tmp_path / file, rows(1), {})
        monkeypatch.undo()
    with pytest.raises(InputError, match="has format 3, this version reads 2"):
        Store(tmp_path)


DAMAGED = ["", "{", "[]", "null", "1", "{}", '{"format": 2}', '{"format": true}', '{"format": [', "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_record_is_told(text, tmp_path) -> None:
    write(tmp_path, rows(1))
    (tmp_path / "_store.json").write_text(text)
    with pytest.raises(InputError, match=r"store\.json"):
        Store(tmp_path)
