"""Writing a store: no row is lost or doubled, however a run ends; files of others are not overwritten."""

import errno
import json
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from stores import assert_same, rows, write

from runtime.contract.errors import InputError, OutputFileError, UsageError
from runtime.store import Embeddings, Store, sinks, writer
from runtime.store.writer import open_writer

KINDS = ["parquet", "npy"]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def piece(embeddings: Embeddings, start: int, stop: int) -> Embeddings:
    return Embeddings(embeddings.roots[start:stop], embeddings.paths[start:stop], embeddings.vectors[start:stop])


def add(made, embeddings: Embeddings) -> None:
    made.add(embeddings.roots, embeddings.paths, embeddings.vectors)


def wait_for_rows(folder, count: int) -> Store:
    """The store, once it has `count` rows on disk."""
    for _ in range(500):
        if (folder / "store.json").exists() and any(folder.glob("[pe]*.[pn]*")):
            try:
                store = Store(folder)
            except InputError:  # the first part is on its way
                store = []
            if len(store) == count:
                return store
        time.sleep(0.01)
    raise AssertionError(f"{count} rows never came")


@both_kinds
def test_rows_are_on_disk_after_so_many(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS", 4)
    with open_writer(tmp_path, {}, kind) as made:
        add(made, piece(rows(9), 0, 3))
        time.sleep(0.1)
        assert not (tmp_path / "store.json").exists()
        add(made, piece(rows(9), 3, 5))
        store = wait_for_rows(tmp_path, 5)
        assert not store.complete
        assert_same(store.read(), piece(rows(9), 0, 5))
        add(made, piece(rows(9), 5, 9))
        assert_same(wait_for_rows(tmp_path, 9).read(), rows(9))
    assert Store(tmp_path).complete


@both_kinds
def test_rows_are_on_disk_after_so_long(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.2)
    with open_writer(tmp_path, {}, kind) as made:
        add(made, rows(1))
        assert_same(wait_for_rows(tmp_path, 1).read(), rows(1))  # though nothing more is added


@both_kinds
@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError, MemoryError])
def test_what_was_added_before_a_run_ended_early_is_kept_and_gone_on_with(end, kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sinks, "PART_ROWS", 4)

    def run_into_it() -> None:
        with open_writer(tmp_path / "out", {}, kind) as made:
            add(made, piece(rows(9), 0, 6))
            raise end

    with pytest.raises(end):
        run_into_it()
    store = Store(tmp_path / "out")
    assert not store.complete
    assert_same(store.read(), piece(rows(9), 0, 6))
    with open_writer(tmp_path / "out", {}, kind) as made:
        assert len(made.stored) == 6
        assert ("/root", "0/5.png") in made.stored
        assert ("/root", "0/6.png") not in made.stored
        add(made, piece(rows(9), 6, 9))
    assert_same(Store(tmp_path / "out").read(), rows(9))
    assert Store(tmp_path / "out").complete


def test_a_store_that_was_gone_on_with_has_the_bytes_of_one_that_was_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sinks, "PART_ROWS", 4)
    for kind in KINDS:
        write(tmp_path / f"{kind}-whole", rows(9), kind=kind)
        for start, stop in ((0, 2), (2, 7), (7, 9)):
            write(tmp_path / f"{kind}-steps", piece(rows(9), start, stop), kind=kind)
        for path in (tmp_path / f"{kind}-whole").iterdir():
            assert path.read_bytes() == (tmp_path / f"{kind}-steps" / path.name).read_bytes(), path.name


@both_kinds
def test_nothing_is_left_where_a_first_run_added_nothing(kind, tmp_path) -> None:
    def run_into_it() -> None:
        with open_writer(tmp_path / "out", {}, kind):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_into_it()
    assert list(tmp_path.iterdir()) == []


@both_kinds
def test_no_moment_of_a_flush_loses_or_doubles_a_row(kind, tmp_path, monkeypatch) -> None:
    """Stop before each fsync and each rename in turn, as a power cut would; then go on."""
    monkeypatch.setattr(sinks, "PART_ROWS", 4)
    monkeypatch.setattr(writer, "FLUSH_ROWS", 1)
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}
    stops = 0
    for stop in range(1000):
        out = tmp_path / str(stop)
        calls = 0

        def step(name, *args, stop=stop, **rest):
            nonlocal calls
            calls += 1
            if calls > stop:
                raise OSError(errno.EIO, "power cut")
            return real[name](*args, **rest)

        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, lambda *args, name=name, **rest: step(name, *args, **rest))
            try:
                for start in (0, 3, 6):
                    write(out, piece(rows(9), start, start + 3), kind=kind)
            except OutputFileError:
                stops += 1
            else:
                break
        expected = rows(9)
        with open_writer(out, {}, kind) as made:
            missing = [row for row in range(9) if ("/root", f"0/{row}.png") not in made.stored]
            for row in missing:
                add(made, piece(expected, row, row + 1))
        assert_same(Store(out).read(), expected)
    assert stops > 10


def test_leftovers_of_a_killed_run_are_removed(tmp_path) -> None:
    write(tmp_path, rows(2))
    for name in (".part-00001.parquet.abc123", ".store.json.x_y"):
        (tmp_path / name).write_bytes(b"PAR1")
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, rows(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "part-00000.parquet", "store.json"]


# Errors of images


def test_errors_are_lines_of_json_at_once(tmp_path) -> None:
    lines = [("/r", "a\u2028b.png", "is empty"), ("/r", 'quo"te\n.png', "é")]
    with open_writer(tmp_path / "out", {}) as made:
        for line in lines:
            made.add_error(*line)
        text = (tmp_path / "out" / "errors.jsonl").read_text("ascii")
    got = [json.loads(line) for line in text.splitlines()]
    assert got == [dict(zip(("root", "path", "error"), line, strict=True)) for line in lines]


def test_errors_of_the_run_before_are_replaced(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        with open_writer(tmp_path, {}) as made:
            made.add_error("/r", name, "bad")
        assert [json.loads(line)["path"] for line in (tmp_path / "errors.jsonl").read_text().splitlines()] == [name]
    write(tmp_path, rows(1))
    assert (tmp_path / "errors.jsonl").read_text() == ""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells files by Linux's /proc")
def test_errors_are_on_disk_before_a_store_says_that_it_is_complete(tmp_path, monkeypatch) -> None:
    with open_writer(tmp_path, {}) as made:
        made.add_error("/r", "a.png", "bad")
        add(made, rows(1))
    seen = []
    real = os.fsync

    def fsync(descriptor) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for errors in ([("/r", "b.png", "bad")], []):
        seen.clear()
        with open_writer(tmp_path, {}) as made:
            for error in errors:
                made.add_error(*error)
            add(made, piece(rows(9), 1 + len(errors), 2 + len(errors)))
        *before, record, _ = seen  # the last is the folder's
        assert record.startswith(".store.json.")
        assert before[-1] == "errors.jsonl"


# Folders that must not be written into


@both_kinds
def test_rows_of_another_origin_are_refused_with_what_differs(kind, tmp_path) -> None:
    write(tmp_path, rows(2), {"model_sha256": "a", "options": {"precision": "fp32", "size": "vits14"}}, kind)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with pytest.raises(
        UsageError, match=r"model_sha256 is a there, b here; options.precision is fp32 there, fp16 here; give"
    ):
        write(tmp_path, rows(2), {"model_sha256": "b", "options": {"precision": "fp16", "size": "vits14"}}, kind)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


def test_rows_of_another_origin_are_refused_without_the_record_too(tmp_path) -> None:
    write(tmp_path, rows(2), {"model_sha256": "a"})
    (tmp_path / "store.json").unlink()
    with pytest.raises(UsageError, match=r"model_sha256 is a there, b here"):
        write(tmp_path, rows(2), {"model_sha256": "b"})


@pytest.mark.parametrize("keep_record", [True, False])
def test_a_store_that_is_gone_on_with_keeps_its_origin(keep_record, tmp_path) -> None:
    first = {"model": "a.onnx", "model_sha256": "a", "options": {"precision": "fp32"}}
    write(tmp_path, piece(rows(9), 0, 4), first)
    if not keep_record:
        (tmp_path / "store.json").unlink()
    write(tmp_path, piece(rows(9), 4, 9), {"model": "b.onnx", "model_sha256": "a", "options": {"new": 0}})
    assert Store(tmp_path).origin == first
    assert_same(Store(tmp_path).read(), rows(9))


@both_kinds
def test_another_format_is_refused(kind, tmp_path) -> None:
    write(tmp_path, rows(2), kind=kind)
    (other,) = set(KINDS) - {kind}
    with pytest.raises(UsageError, match=f"is of --format {kind}, not {other}"):
        write(tmp_path, rows(2), kind=other)


def test_two_runs_at_once_into_one_folder_are_refused(tmp_path) -> None:
    with open_writer(tmp_path / "out", {}) as made:
        with pytest.raises(OutputFileError, match="another `embed` is writing into"):
            write(tmp_path / "out", rows(2, seed=1))
        add(made, rows(1))
    assert_same(Store(tmp_path / "out").read(), rows(1))


@pytest.mark.parametrize("name", ["data.parquet", "part-1.parquet"])
def test_a_folder_with_other_parquet_is_refused(name, tmp_path) -> None:
    parquet.write_table(pa.table({"a": [1]}), tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a part of embeddings"):
        write(tmp_path, rows(2))
    assert [path.name for path in tmp_path.iterdir()] == [name]


FOREIGN = {
    "part-00000.parquet": "has no column `root`",
    "embeddings.npy": "holds embeddings.npy, which `embed` did not write",
    "paths.txt": "holds paths.txt, which `embed` did not write",
    "errors.jsonl": "holds errors.jsonl, which `embed` did not write",
}


@pytest.mark.parametrize(("name", "message"), FOREIGN.items(), ids=FOREIGN)
@both_kinds
def test_what_another_program_wrote_is_not_overwritten(kind, name, message, tmp_path) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_text('{"mine": 1}\n')
    before = path.read_bytes()
    with pytest.raises((InputError, OutputFileError), match=message):
        write(tmp_path, rows(2), kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == before


def test_parts_that_another_program_wrote_are_not_gone_on_with(tmp_path) -> None:
    vectors = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    parquet.write_table(pa.table({"root": ["r"], "path": ["a"], "embedding": vectors}), tmp_path / "part-00000.parquet")
    with pytest.raises(OutputFileError, match=r"holds part-00000.parquet, which `embed` did not write"):
        write(tmp_path, rows(2))


def test_a_damaged_part_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"part-00000.parquet can't be read"):
        write(tmp_path, rows(2))


def test_missing_parent_folder_is_told(tmp_path) -> None:
    with pytest.raises(OutputFileError, match=r"the folder .*nowhere does not exist; make it first"):
        write(tmp_path / "nowhere" / "out", rows(2))


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputFileError, match="File exists"):
        write(tmp_path / "out", rows(2))


# Disks that fail


@both_kinds
def test_a_full_disk_is_told_and_what_was_written_stays(kind, tmp_path, monkeypatch) -> None:
    write(tmp_path, rows(2), kind=kind)

    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputFileError, match="No space left on device"):
            write(tmp_path, piece(rows(9), 2, 5), kind=kind)
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, piece(rows(9), 2, 9), kind=kind)
    assert len(Store(tmp_path)) == 9


@both_kinds
def test_a_disk_that_is_full_in_the_middle_of_a_file_is_told(kind, tmp_path) -> None:
    write(tmp_path, rows(2), kind=kind)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writes beyond it fail; Python ignores the signal
    try:
        with (
            pytest.raises(OutputFileError, match=r"can't write .*(part-00000.parquet|embeddings.npy): File too large"),
            open_writer(tmp_path, {}, kind) as made,
        ):
            add(made, rows(200, seed=1))  # less than a file object keeps in memory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, piece(rows(9), 2, 9), kind=kind)
    assert_same(Store(tmp_path).read(), rows(9))


def test_a_full_disk_ends_a_run_soon_not_at_its_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS", 1)

    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    added = 0

    def run() -> None:
        nonlocal added
        with open_writer(tmp_path / "out", {}) as made:
            for _ in range(1000):
                add(made, rows(1))
                added += 1
                time.sleep(0.001)

    with pytest.raises(OutputFileError, match="No space left"):
        run()
    assert added < 900


def test_a_slow_disk_makes_the_run_wait_not_its_memory_grow(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS", 1)
    gate = threading.Event()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (gate.wait(20), real(file)))
    added = []

    def run() -> None:
        with open_writer(tmp_path / "out", {}) as made:
            for number in range(500):
                made.add(["/r"], [f"{number}.png"], np.ones((1, 3), np.float32))
                added.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    waited_at = len(added)
    gate.set()
    thread.join()
    assert waited_at < 200
    assert len(Store(tmp_path / "out")) == 500
