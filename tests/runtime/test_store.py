"""Embeddings on disk: what is written is read, and nothing else is taken for it."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from runtime import atomic, store_writer
from runtime.errors import InputError, OutputFileError
from runtime.store import Embeddings, part_files, read_embeddings
from runtime.store_writer import new_store


def rows(count: int, seed: int = 0, width: int = 3) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return Embeddings(["/root"] * count, [f"{seed}/{number}.png" for number in range(count)], vectors)


def write(folder: Path, embeddings: Embeddings, origin=None) -> None:
    with new_store(folder, origin or {}) as writer:
        for row, (root, path) in enumerate(zip(embeddings.roots, embeddings.paths, strict=True)):
            writer.add([root], [path], embeddings.vectors[row : row + 1])


def assert_same(got: Embeddings, expected: Embeddings) -> None:
    assert got.roots == expected.roots
    assert got.paths == expected.paths
    assert got.vectors.dtype == np.float32
    np.testing.assert_array_equal(got.vectors, expected.vectors)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(store_writer, "PART_ROWS", 4)


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_what_is_written_is_read_from_any_number_of_parts(count, parts, tmp_path, small_parts) -> None:
    write(tmp_path / "out", rows(count))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["errors.jsonl", *[f"part-{number:05d}.parquet" for number in range(parts)]]
    assert_same(read_embeddings(tmp_path / "out"), rows(count))


def test_rows_may_come_many_at_a_time(tmp_path, small_parts) -> None:
    expected = rows(11)
    with new_store(tmp_path / "out", {}) as writer:
        writer.add(expected.roots[:9], expected.paths[:9], expected.vectors[:9])
        writer.add(expected.roots[9:], expected.paths[9:], expected.vectors[9:])
    assert len(part_files(tmp_path / "out")) == 3
    assert_same(read_embeddings(tmp_path / "out"), expected)


def test_columns_are_those_that_the_format_promises(tmp_path) -> None:
    write(tmp_path / "out", rows(2), {"model_sha256": "abc"})
    file = parquet.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    schema = file.schema_arrow
    assert schema.names == ["root", "path", "embedding"]
    assert schema.field("root").type == schema.field("path").type == pa.string()
    assert schema.field("embedding").type == pa.list_(pa.float32(), 3)
    metadata = json.loads(schema.metadata[b"itae"])
    assert metadata == {"format": 1, "part": 0, "previous": "", "last": True, "model_sha256": "abc"}


def test_the_same_rows_give_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, rows(5))
    one, other = (tmp_path / name / "part-00000.parquet" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_survives(tmp_path, names) -> None:
    expected = Embeddings(names, names[::-1], rows(len(names)).vectors)
    write(tmp_path / "out", expected)
    assert_same(read_embeddings(tmp_path / "out"), expected)


def test_a_folder_named_like_a_partition_is_no_column(tmp_path) -> None:
    write(tmp_path / "class=1", rows(2))
    assert_same(read_embeddings(tmp_path / "class=1"), rows(2))


def test_a_folder_whose_name_is_not_utf8_is_written_and_read(tmp_path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for _ in range(2):  # the second run looks at what the first one left
        write(folder, rows(2))
    assert_same(read_embeddings(folder), rows(2))


def test_errors_are_lines_of_json(tmp_path) -> None:
    lines = [("/r", "a\u2028b.png", "is empty"), ("/r", 'quo"te\n.png', "é")]
    with new_store(tmp_path / "out", {}) as writer:
        writer.add(["/r"], ["good.png"], np.ones((1, 3), np.float32))
        for line in lines:
            writer.add_error(*line)
    text = (tmp_path / "out" / "errors.jsonl").read_text("ascii")
    got = [json.loads(line) for line in text.splitlines()]
    assert got == [dict(zip(("root", "path", "error"), line, strict=True)) for line in lines]


# Writing over an older set


def test_an_older_larger_set_is_replaced_whole(tmp_path, small_parts) -> None:
    write(tmp_path / "out", rows(11, seed=1))
    write(tmp_path / "out", rows(5, seed=2))
    assert [path.name for path in part_files(tmp_path / "out")] == ["part-00000.parquet", "part-00001.parquet"]
    assert_same(read_embeddings(tmp_path / "out"), rows(5, seed=2))


@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError, MemoryError])
def test_an_older_set_stays_when_a_run_ends_early(end, tmp_path, small_parts) -> None:
    write(tmp_path / "out", rows(6, seed=1))
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir())

    def run_into_it() -> None:
        with new_store(tmp_path / "out", {}) as writer:
            more = rows(9, seed=2)
            writer.add(more.roots, more.paths, more.vectors)
            raise end

    with pytest.raises(end):
        run_into_it()
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()) == before


def test_nothing_is_left_where_a_first_run_ends_early(tmp_path) -> None:
    def run_into_it() -> None:
        with new_store(tmp_path / "out", {}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_into_it()
    assert list(tmp_path.iterdir()) == []


def test_nothing_named_parquet_exists_before_the_end(tmp_path, small_parts) -> None:
    with new_store(tmp_path / "out", {}) as writer:
        more = rows(9)
        writer.add(more.roots, more.paths, more.vectors)
        assert writer.parts  # two are on disk
        assert list(tmp_path.rglob("*.parquet")) == []


def test_an_older_set_stays_where_no_row_was_added(tmp_path) -> None:
    write(tmp_path / "out", rows(2))
    with new_store(tmp_path / "out", {}) as writer:
        writer.add_error("/r", "a.png", "bad")
    assert_same(read_embeddings(tmp_path / "out"), rows(2))
    assert (tmp_path / "out" / "errors.jsonl").read_text() == ""


def test_a_run_cut_short_between_two_renames_is_not_read_as_one_set(tmp_path, small_parts, monkeypatch) -> None:
    write(tmp_path / "out", rows(8, seed=1))
    real, moved = store_writer.publish, []

    def publish_one(source, target):
        if moved:
            raise OutputFileError("power cut")
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(store_writer, "publish", publish_one)
    with pytest.raises(OutputFileError, match="power cut"):
        write(tmp_path / "out", rows(8, seed=2))
    assert [path.name for path in moved] == ["part-00000.parquet"]
    with pytest.raises(InputError, match=r"part-00001.parquet is not of the same run"):
        read_embeddings(tmp_path / "out")


def test_two_runs_at_once_into_one_folder_are_refused(tmp_path) -> None:
    with new_store(tmp_path / "out", {}) as writer:
        with pytest.raises(OutputFileError, match="another `embed` is writing into"):
            write(tmp_path / "out", rows(2, seed=1))
        writer.add(["/r"], ["a.png"], np.ones((1, 3), np.float32))
    assert read_embeddings(tmp_path / "out").paths == ["a.png"]


# Folders that can't be written into


@pytest.mark.parametrize("name", ["data.parquet", "part-00000.parquet", "part-1.parquet"])
def test_another_programs_parquet_is_not_overwritten(name, tmp_path) -> None:
    parquet.write_table(pa.table({"a": [1]}), tmp_path / name)
    with pytest.raises(OutputFileError, match=f"holds {name}, which `embed` did not write"):
        write(tmp_path, rows(2))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_damaged_part_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(OutputFileError, match="or not whole"):
        write(tmp_path, rows(2))


def test_missing_parent_folder_is_told(tmp_path) -> None:
    with pytest.raises(OutputFileError, match=r"the folder .*nowhere does not exist; make it first"):
        write(tmp_path / "nowhere" / "out", rows(2))


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputFileError, match="File exists"):
        write(tmp_path / "out", rows(2))


def test_a_full_disk_is_told_and_leaves_the_older_set(tmp_path, monkeypatch) -> None:
    write(tmp_path / "out", rows(2, seed=1))

    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OutputFileError, match="No space left on device"):
        write(tmp_path / "out", rows(2, seed=2))
    assert_same(read_embeddings(tmp_path / "out"), rows(2, seed=1))


def test_a_read_only_folder_is_told(tmp_path, monkeypatch) -> None:
    def denied(*args, **rest):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", denied)
    with pytest.raises(OutputFileError, match="Permission denied"):
        write(tmp_path, rows(2))


# Folders that can't be read


def test_missing_folder_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match="no such folder of embeddings"):
        read_embeddings(tmp_path / "out")


def test_folder_without_parts_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match=r"holds no part-00000.parquet: make them again with"):
        read_embeddings(tmp_path)


def test_foreign_parquet_beside_the_parts_is_told(tmp_path) -> None:
    write(tmp_path, rows(2))
    (tmp_path / "labels.parquet").touch()
    with pytest.raises(InputError, match=r"labels.parquet is not a part of embeddings"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_part_is_told(missing, tmp_path, small_parts) -> None:
    write(tmp_path, rows(9))
    (tmp_path / f"part-{missing:05d}.parquet").unlink()
    message = "is not the last part, but no more are there" if missing == 2 else "are not numbered from 0 on"
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path)


def test_part_of_another_run_is_told(tmp_path, small_parts) -> None:
    write(tmp_path / "a", rows(9, seed=1))
    write(tmp_path / "b", rows(9, seed=2))
    (tmp_path / "b" / "part-00002.parquet").replace(tmp_path / "a" / "part-00002.parquet")
    with pytest.raises(InputError, match=r"part-00002.parquet is not of the same run as the parts before it"):
        read_embeddings(tmp_path / "a")


def test_part_after_the_last_is_told(tmp_path, small_parts) -> None:
    write(tmp_path / "a", rows(4))
    write(tmp_path / "b", rows(9))
    (tmp_path / "b" / "part-00001.parquet").replace(tmp_path / "a" / "part-00001.parquet")
    with pytest.raises(InputError, match=r"part-00000.parquet ends the set early"):
        read_embeddings(tmp_path / "a")


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
            got = read_embeddings(tmp_path)
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
        "holds nulls",
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
        read_embeddings(tmp_path)


def test_parts_that_another_program_wrote_in_this_format_are_read(tmp_path) -> None:
    columns = {"root": ["r"] * 2, "path": ["a", "b"], "embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))}
    for number in range(2):
        parquet.write_table(pa.table(columns), tmp_path / f"part-{number:05d}.parquet")
    got = read_embeddings(tmp_path)
    assert got.paths == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(got.vectors, np.array(VECTORS * 2, np.float32))


def test_parts_of_different_widths_are_told(tmp_path) -> None:
    for number, width in enumerate((2, 3)):
        vectors = pa.array([[1.0] * width], pa.list_(pa.float32(), width))
        table = pa.table({"root": ["r"], "path": ["a"], "embedding": vectors})
        parquet.write_table(table, tmp_path / f"part-{number:05d}.parquet")
    with pytest.raises(InputError, match=r"widths \[2, 3\]"):
        read_embeddings(tmp_path)


def test_newer_format_is_refused_by_number(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store_writer, "FORMAT", 2)
    write(tmp_path, rows(1))
    with pytest.raises(InputError, match="it has format 2, this version reads 1"):
        read_embeddings(tmp_path)
