"""Writing a store: no row is lost or doubled, however a run ends; files of others are not overwritten."""

import errno
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from odd_file_systems import failing, killed, lacking
from pyarrow import parquet
from stores import assert_same, rows, write

from runtime.contract.atomic import forget_warnings
from runtime.contract.errors import InputError, OutputFileError, UsageError
from runtime.store import Embeddings, Store, growing_parts, writer
from runtime.store.parquet_parts import write_part
from runtime.store.writer import open_writer


def add(made, embeddings: Embeddings) -> None:
    made.add(embeddings.roots, embeddings.paths, embeddings.vectors)


def wait_for_rows(folder, count: int) -> Store:
    """The store, once it has `count` rows on disk."""
    for _ in range(500):
        if (folder / "_store.json").exists() and any(folder.glob("part-*.parquet")):
            try:
                store = Store(folder)
            except InputError:  # the first part is on its way
                store = []
            if len(store) == count:
                return store
        time.sleep(0.01)
    raise AssertionError(f"{count} rows never came")


def _part(path: Path, embeddings: Embeddings) -> Path:
    write_part(path, embeddings, {})
    return path


def test_rows_are_on_disk_after_so_many(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS", 4)
    with open_writer(tmp_path, {}) as made:
        add(made, rows(9)[0:3])
        time.sleep(0.1)
        assert not (tmp_path / "_store.json").exists()
        add(made, rows(9)[3:5])
        store = wait_for_rows(tmp_path, 5)
        assert not store.complete
        assert_same(store.read(), rows(9)[0:5])
        add(made, rows(9)[5:9])
        assert_same(wait_for_rows(tmp_path, 9).read(), rows(9))
    assert Store(tmp_path).complete


def test_a_part_grows_beside_finished_ones_until_it_is_full(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS", 1)
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
    out, finished = tmp_path / "store", tmp_path / "finished.parquet"
    expected = rows(16)
    with open_writer(out, {}) as made:
        add(made, expected[0:2])
        meanwhile = wait_for_rows(out, 2)
        for at in (2, 5):
            made.add_part(_part(finished, expected[at : at + 3]), 3, expected.vectors.shape[1])
        later = Store(out)
        add(made, expected[8:11])  # 2 of them fill the first part
        wait_for_rows(out, 11)
        assert_same(meanwhile.read(), expected[0:2])
        assert_same(later.read(), expected[0:8])
        made.add_part(_part(finished, expected[11:14]), 3, expected.vectors.shape[1])
        add(made, expected[14:15])
    assert [len(part) for part in Store(out).parts()] == [4, 3, 3, 2, 3]
    with open_writer(out, {}) as made:
        add(made, expected[15:16])
    assert [len(part) for part in Store(out).parts()] == [4, 3, 3, 2, 4]
    assert sorted(Store(out).images()) == sorted(expected.images())


def test_rows_are_on_disk_after_so_long(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.2)
    with open_writer(tmp_path, {}) as made:
        add(made, rows(1))
        assert_same(wait_for_rows(tmp_path, 1).read(), rows(1))  # though nothing more is added


@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError, MemoryError])
def test_what_was_added_before_a_run_ended_early_is_kept_and_gone_on_with(end, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)

    def run_into_it() -> None:
        with open_writer(tmp_path / "out", {}) as made:
            add(made, rows(9)[0:6])
            raise end

    with pytest.raises(end):
        run_into_it()
    store = Store(tmp_path / "out")
    assert not store.complete
    assert_same(store.read(), rows(9)[0:6])
    with open_writer(tmp_path / "out", {}) as made:
        assert len(made.stored) == 6
        assert ("/root", "0/5.png") in made.stored
        assert ("/root", "0/6.png") not in made.stored
        add(made, rows(9)[6:9])
    assert_same(Store(tmp_path / "out").read(), rows(9))
    assert Store(tmp_path / "out").complete


def test_a_store_that_was_gone_on_with_has_the_bytes_of_one_that_was_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
    write(tmp_path / "whole", rows(9))
    for start, stop in ((0, 2), (2, 7), (7, 9)):
        write(tmp_path / "steps", rows(9)[start:stop])
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "steps" / path.name).read_bytes(), path.name


def test_nothing_is_left_where_a_first_run_added_nothing(tmp_path) -> None:
    def run_into_it() -> None:
        with open_writer(tmp_path / "out", {}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_into_it()
    assert list(tmp_path.iterdir()) == []


def test_no_moment_of_a_flush_loses_or_doubles_a_row(tmp_path, monkeypatch) -> None:
    """Stop before each fsync and each rename in turn, as a power cut would; then go on."""
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
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
                    write(out, rows(9)[start : start + 3])
            except OutputFileError:
                stops += 1
            else:
                break
        expected = rows(9)
        with open_writer(out, {}) as made:
            missing = [row for row in range(9) if ("/root", f"0/{row}.png") not in made.stored]
            for row in missing:
                add(made, expected[row : row + 1])
        assert_same(Store(out).read(), expected)
    assert stops > 10


def finished(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("older", [0, 2, 6], ids=["none before", "a part that grows", "full parts"])
def test_a_kill_at_any_step_leaves_a_store_that_is_whole_as_far_as_it_says(older, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
    monkeypatch.setattr(writer, "FLUSH_ROWS", 1)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    expected = rows(9)

    def run(folder: Path) -> None:
        with open_writer(folder, {}) as made:
            made.add_error("/r", "new.png", "bad")
            for row in range(9):
                if ("/root", f"0/{row}.png") not in made.stored:
                    add(made, expected[row : row + 1])

    start = tmp_path / "start"
    if older:
        with open_writer(start, {}) as made:
            made.add_error("/r", "old.png", "bad")
            add(made, expected[0:older])
    run(tmp_path / "whole")
    for step in range(1000):
        out = tmp_path / str(step)
        if older:
            shutil.copytree(start, out)
        if not killed(step, lambda out=out: run(out)):
            break
        try:
            found = Store(out)
        except InputError:
            assert not older
        else:
            assert_same(found.read(), expected[0 : len(found)])
            assert len(found) >= older
            if found.complete:
                bad = json.loads((out / "_errors.jsonl").read_text())["path"]
                assert (bad, len(found)) in (("old.png", older), ("new.png", 9))
        run(out)
        assert finished(out) == finished(tmp_path / "whole")
    assert step > 10


@pytest.mark.parametrize("older", [False, True], ids=["none before", "over an older one"])
@pytest.mark.parametrize("how", ["once", "late"])
def test_a_failure_at_any_step_leaves_no_half_of_a_store(how, older, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if older:
        write(tmp_path / "start", rows(2))
    said = []
    for step in range(1000):
        out = tmp_path / str(step)
        if older:
            shutil.copytree(tmp_path / "start", out)
        try:
            with failing(step, errno.ENOSPC, how) as reached, open_writer(out, {}) as made:
                add(made, rows(4)[2 * older : 4])
        except OutputFileError as error:
            said.append(str(error))
            if not older and not (out / "part-00000.parquet").exists():
                assert not out.exists() or not any(out.iterdir())
        count = 0
        if out.exists() and any(out.iterdir()):
            found = Store(out)
            count = len(found)
            assert_same(found.read(), rows(4)[0:count])
        assert count >= 2 * older
        write(out, rows(4)[count:4])
        assert_same(Store(out).read(), rows(4))
        if not reached():
            break
    assert len(said) > 5
    assert all("No space left on device" in one for one in said)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.EPERM], ids=errno.errorcode.get)
def test_a_file_system_that_lacks_something_is_said_once_and_written_to(number, tmp_path, caplog) -> None:
    forget_warnings()
    with lacking("fsyncdir", "chmod", "flock", number=number):
        for stop in (3, 9):
            write(tmp_path, rows(9)[stop // 9 * 3 : stop])
    assert_same(Store(tmp_path).read(), rows(9))
    assert len(caplog.messages) == 2
    assert "no locks" in caplog.messages[0]
    assert "no fsync of folders" in caplog.messages[1]


def test_leftovers_of_a_killed_run_are_removed(tmp_path) -> None:
    write(tmp_path, rows(2))
    for name in (".part-00001.parquet.abc123", "._store.json.x_y", ".store.json.x_y"):
        (tmp_path / name).write_bytes(b"PAR1")
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, rows(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_errors.jsonl", "_store.json", "part-00000.parquet"]


# Errors of images


def test_errors_are_lines_of_json_at_once(tmp_path) -> None:
    lines = [("/r", "a\u2028b.png", "is empty"), ("/r", 'quo"te\n.png', "é")]
    with open_writer(tmp_path / "out", {}) as made:
        for line in lines:
            made.add_error(*line)
        text = (tmp_path / "out" / "_errors.jsonl").read_text("ascii")
    got = [json.loads(line) for line in text.splitlines()]
    assert got == [dict(zip(("root", "path", "error"), line, strict=True)) for line in lines]


def test_errors_of_the_run_before_are_replaced(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        with open_writer(tmp_path, {}) as made:
            made.add_error("/r", name, "bad")
        assert [json.loads(line)["path"] for line in (tmp_path / "_errors.jsonl").read_text().splitlines()] == [name]
    write(tmp_path, rows(1))
    assert (tmp_path / "_errors.jsonl").read_text() == ""


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
            add(made, rows(9)[1 + len(errors) : 2 + len(errors)])
        *before, record, _ = seen  # the last is the folder's
        assert record.startswith("._store.json.")
        assert before[-1] == "_errors.jsonl"


# Folders that must not be written into


def test_rows_of_another_origin_are_refused_with_what_differs(tmp_path) -> None:
    write(tmp_path, rows(2), {"model_sha256": "a", "options": {"precision": "fp32", "size": "vits14"}})
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with pytest.raises(
        UsageError, match=r"model_sha256 is a there, b here; options.precision is fp32 there, fp16 here; give"
    ):
        write(tmp_path, rows(2), {"model_sha256": "b", "options": {"precision": "fp16", "size": "vits14"}})
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


def test_rows_of_another_origin_are_refused_without_the_record_too(tmp_path) -> None:
    write(tmp_path, rows(2), {"model_sha256": "a"})
    (tmp_path / "_store.json").unlink()
    with pytest.raises(UsageError, match=r"model_sha256 is a there, b here"):
        write(tmp_path, rows(2), {"model_sha256": "b"})


@pytest.mark.parametrize("keep_record", [True, False])
def test_a_store_that_is_gone_on_with_keeps_its_origin(keep_record, tmp_path) -> None:
    first = {"model": "a.onnx", "model_sha256": "a", "options": {"precision": "fp32"}}
    write(tmp_path, rows(9)[0:4], first)
    if not keep_record:
        (tmp_path / "_store.json").unlink()
    write(tmp_path, rows(9)[4:9], {"model": "b.onnx", "model_sha256": "a", "options": {"new": 0}})
    assert Store(tmp_path).origin == first
    assert_same(Store(tmp_path).read(), rows(9))


def test_a_store_of_the_former_format_npy_is_refused_with_what_to_do(tmp_path) -> None:
    record = {"format": 2, "kind": "npy", "complete": True, "rows": 2, "width": 3, "paths_bytes": 20, "origin": {}}
    (tmp_path / "_store.json").write_text(json.dumps(record))
    for use in (lambda: write(tmp_path, rows(2)), lambda: Store(tmp_path)):
        with pytest.raises(InputError, match=r"is a store of --format npy.*: embed the images again .*runtime export"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["_store.json"]


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
    "_errors.jsonl": "holds _errors.jsonl, which `embed` did not write",
    "errors.jsonl": "holds errors.jsonl, which `embed` did not write",
}


@pytest.mark.parametrize(("name", "message"), FOREIGN.items(), ids=FOREIGN)
def test_what_another_program_wrote_is_not_overwritten(name, message, tmp_path) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_text('{"mine": 1}\n')
    before = path.read_bytes()
    with pytest.raises((InputError, OutputFileError), match=message):
        write(tmp_path, rows(2))
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
    with pytest.raises(OutputFileError, match="is a file: --out is the folder of the embeddings; give another"):
        write(tmp_path / "out", rows(2))


# Disks that fail


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path, monkeypatch) -> None:
    write(tmp_path, rows(2))

    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputFileError, match="No space left on device"):
            write(tmp_path, rows(9)[2:5])
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, rows(9)[2:9])
    assert len(Store(tmp_path)) == 9


def test_a_disk_that_is_full_in_the_middle_of_a_file_is_told(tmp_path) -> None:
    write(tmp_path, rows(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writes beyond it fail; Python ignores the signal
    try:
        with (
            pytest.raises(OutputFileError, match=r"can't write .*part-00000.parquet: File too large"),
            open_writer(tmp_path, {}) as made,
        ):
            add(made, rows(200, seed=1))  # less than a file object keeps in memory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(Store(tmp_path).read(), rows(2))
    write(tmp_path, rows(9)[2:9])
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
