"""Embeddings as an array with its lines: what is exported is read, by numpy alone too; what is damaged is refused."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_file_systems import count_steps, failing, killed
from stores import assert_same, rows, write

from runtime.contract.errors import InputError, OutputFileError, UsageError
from runtime.store import Embeddings, Store, array_pair, growing_parts
from runtime.store.array_pair import export_array
from runtime.store.parquet_parts import part_path, write_part

NAME = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('/.\\n"\x85\u2028'), max_size=8)


@pytest.fixture
def stored(tmp_path, monkeypatch) -> Store:
    """Nine rows in three parts."""
    monkeypatch.setattr(growing_parts, "PART_ROWS", 4)
    write(tmp_path / "store", rows(9), {"model": "a"})
    return Store(tmp_path / "store")


@pytest.fixture
def pair(stored, tmp_path) -> Path:
    folder = tmp_path / "pair"
    folder.mkdir()
    export_array(stored, folder / "x.npy")
    return folder / "x.npy"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_numpy_and_json_read_what_is_exported(pair) -> None:
    assert names(pair.parent) == ["x.jsonl", "x.npy"]
    np.testing.assert_array_equal(np.load(pair, allow_pickle=False), rows(9).vectors)
    np.testing.assert_array_equal(np.load(pair, mmap_mode="r")[7:], rows(9).vectors[7:])
    lines = [json.loads(line) for line in pair.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    assert lines == [{"row": row, "root": "/root", "path": f"0/{row}.png"} for row in range(9)]


def test_the_files_are_those_that_numpy_would_write(pair, tmp_path) -> None:
    np.save(tmp_path / "numpys.npy", rows(9).vectors)
    assert pair.read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_a_pair_is_read_as_a_store_is(pair, monkeypatch) -> None:
    monkeypatch.setattr(array_pair, "_PART_ROWS", 4)
    store = Store(pair)
    assert (len(store), store.width, store.complete, store.origin) == (9, 3, True, {})
    assert_same(store.read(), rows(9))
    assert [len(part) for part in store.parts()] == [4, 4, 1]
    assert list(store.images()) == list(rows(9).images())
    np.testing.assert_array_equal(store.load(), rows(9).vectors)


def test_the_lines_of_another_program_may_be_ascii_hold_more_and_lack_the_last_newline(pair) -> None:
    lines = [{"path": f"é/{row}", "root": "\u2028", "row": row, "more": []} for row in range(9)]
    pair.with_suffix(".jsonl").write_text("\r\n".join(map(json.dumps, lines)))
    assert list(Store(pair).images()) == [("\u2028", f"é/{row}") for row in range(9)]


ERROR = json.dumps({"root": "r", "path": "bad.jpg", "error": "is empty (0 bytes)"})


def test_lines_of_images_without_a_row_are_passed_over(pair) -> None:
    lines = pair.with_suffix(".jsonl").read_text().splitlines()
    pair.with_suffix(".jsonl").write_text("\n".join([ERROR, *lines[:4], ERROR, ERROR, *lines[4:], ERROR]) + "\n")
    assert list(Store(pair).images()) == list(rows(9).images())
    export_array(Store(pair), pair)  # it is taken for a pair, and replaced
    assert pair.with_suffix(".jsonl").read_text().splitlines() == lines


@given(st.lists(NAME, min_size=1, max_size=9))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_survives_and_any_reader_finds_the_lines(tmp_path, some) -> None:
    expected = Embeddings(some, some[::-1], rows(len(some)).vectors)
    with tempfile.TemporaryDirectory(dir=tmp_path) as out:
        write(Path(out) / "store", expected)
        export_array(Store(Path(out) / "store"), Path(out) / "x.npy")
        assert_same(Store(Path(out) / "x.npy").read(), expected)
        text = (Path(out) / "x.jsonl").read_text("utf-8")
        assert len(text.splitlines()) == text.count("\n") == len(some)  # splitlines knows ten ends of a line


PEAK = """
import re, sys
from runtime.__main__ import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_store(tmp_path) -> None:
    part = rows(4096, width=256)  # 4 MiB
    peaks = []
    for count in (4, 40):
        store = tmp_path / str(count)
        store.mkdir()
        for number in range(count):
            write_part(part_path(store, number), part, {})
        command = [sys.executable, "-c", PEAK, "export", str(store), str(tmp_path / f"{count}.npy"), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024)
        assert (tmp_path / f"{count}.npy").stat().st_size == 128 + count * part.vectors.nbytes
    assert peaks[1] < peaks[0] + part.vectors.nbytes * 8, peaks


# What lies in the place


def test_an_older_pair_is_replaced(pair, tmp_path) -> None:
    write(tmp_path / "other", rows(4, seed=1, width=5))
    export_array(Store(tmp_path / "other"), pair)
    assert_same(Store(pair).read(), rows(4, seed=1, width=5))
    assert names(pair.parent) == ["x.jsonl", "x.npy"]


def test_a_pair_may_be_exported_over_itself(pair) -> None:
    before = pair.read_bytes(), pair.with_suffix(".jsonl").read_bytes()
    export_array(Store(pair), pair)
    assert (pair.read_bytes(), pair.with_suffix(".jsonl").read_bytes()) == before


FOREIGN = {
    "an array alone": ({"x.npy": b"mine"}, "x.npy is there without x.jsonl: give another name"),
    "other lines": ({"x.jsonl": b'{"mine": 1}\n'}, "x.jsonl does not begin as `export` writes it"),
    "an array and other lines": ({"x.npy": b"mine", "x.jsonl": b""}, "x.jsonl does not begin as `export` writes it"),
}


@pytest.mark.parametrize(("files", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_another_program_wrote_is_not_replaced(files, message, stored, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, data in files.items():
        (out / name).write_bytes(data)
    with pytest.raises(OutputFileError, match=message):
        export_array(stored, out / "x.npy")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.mark.parametrize("name", ["x.npy", "x.jsonl"])
def test_a_folder_in_the_place_is_refused(name, stored, tmp_path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputFileError, match=f"{name}: it is no file"):
        export_array(stored, tmp_path / "x.npy")
    assert names(tmp_path) == ["store", name]


def test_another_ending_and_a_missing_folder_are_refused(stored, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.npy"):
        export_array(stored, tmp_path / "x.parquet")
    with pytest.raises(OutputFileError, match="make it first"):
        export_array(stored, tmp_path / "nowhere" / "x.npy")


@pytest.fixture
def steps(pair, tmp_path, monkeypatch):
    """For each step of replacing a pair: its number, a fresh copy of the pair, and the function that replaces it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    write(tmp_path / "other", rows(9, seed=1))  # of the same shape: only the names would tell
    export_array(Store(tmp_path / "other"), tmp_path / "other.npy")
    other = Store(tmp_path / "other.npy")  # not the folder: pyarrow has threads, and the tests fork

    def copies():
        taken = count_steps(lambda: export_array(other, tmp_path / "rehearsal.npy"))
        assert len(taken) > 8
        for step in range(len(taken)):
            copy = Path(shutil.copytree(pair.parent, tmp_path / str(step))) / pair.name
            yield step, copy, lambda copy=copy: export_array(other, copy)

    return copies()


def found_at(pair: Path) -> str:
    """Which of the two pairs a reader finds."""
    try:
        found = Store(pair).read()
    except InputError as error:
        return str(error)
    which = "older" if found.paths == rows(9).paths else "newer"
    assert_same(found, rows(9) if which == "older" else rows(9, seed=1))
    return which


@pytest.mark.parametrize(("how", "number"), [("once", errno.ENOSPC), ("late", errno.EACCES)])
def test_a_failure_at_any_step_leaves_the_older_pair_or_the_newer_one(how, number, steps) -> None:
    failed = 0
    for step, copy, replace in steps:
        try:
            with failing(step, number, how):
                replace()
        except OutputFileError:
            failed += 1
            assert found_at(copy) == "older"
        else:
            assert found_at(copy) == "newer"
        replace()
        assert found_at(copy) == "newer"
    assert failed > 5


def test_a_kill_at_any_step_leaves_the_older_pair_or_the_newer_one_or_a_line_that_says_so(steps) -> None:
    seen = set()
    for step, copy, replace in steps:
        assert killed(step, replace)
        seen.add(state := found_at(copy))
        assert state in ("older", "newer") or "was interrupted" in state
        replace()
        assert found_at(copy) == "newer"
        assert names(copy.parent) == ["x.jsonl", "x.npy"]
    assert {"older", "newer"} < seen


def test_a_full_disk_leaves_the_older_pair(pair, tmp_path) -> None:
    write(tmp_path / "other", rows(200, seed=1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writes beyond it fail; Python ignores the signal
    try:
        with pytest.raises(OutputFileError, match=r"can't write .*x.npy: File too large"):
            export_array(Store(tmp_path / "other"), pair)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(Store(pair).read(), rows(9))
    assert names(pair.parent) == ["x.jsonl", "x.npy"]


# Hostile files


def array(shape=(9, 3), kind="<f4", order="C", header=None) -> bytes:
    text = repr({"descr": kind, "fortran_order": order == "F", "shape": shape}) if header is None else header
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(9 * 3 * 4)


BAD_ARRAYS = {
    "missing": (None, "does not exist"),
    "empty": (b"", "is no .npy file"),
    "no npy": (b"hello there", "is no .npy file"),
    "npz": (b"PK\x03\x04" + bytes(30), "is no .npy file"),
    "version 2": (b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little"), r"is of .npy version 2.0, expected 1.0"),
    "pickle": (array(kind="|O"), r"holds object of shape \(9, 3\), expected float32 \(n, C\)"),
    "float64": (array(kind="<f8"), "holds float64"),
    "big-endian": (array(kind=">f4"), "holds >f4"),
    "one dimension": (array((27,)), "of shape"),
    "no row": (array((0, 3)), "of shape"),
    "negative": (array((-9, -3)), "of shape"),
    "in columns": (array(order="F"), "write it in C order"),
    "more rows than bytes": (array((10, 3)), "holds 108 bytes of numbers, its header speaks of 120"),
    "fewer rows than bytes": (array((8, 3)), "holds 108 bytes of numbers, its header speaks of 96"),
    "huge": (array((10**30, 8)), "its header speaks of"),
    "a header of calls": (array(header="__import__('os').abort()\n"), "is no .npy file"),
    "a deep header": (array(header="(" * 9000), "is no .npy file"),
    "another number of rows": (array((3, 9)), "has more than the 3 lines"),
    "NaN": (array()[:-4] + np.float32(np.nan).tobytes(), "holds NaN or infinity"),
}


@pytest.mark.parametrize(("data", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_a_bad_array_is_refused(data, message, pair) -> None:
    pair.unlink()
    if data is not None:
        pair.write_bytes(data)
    with pytest.raises(InputError, match=message):
        Store(pair).load()


GOOD = [json.dumps({"row": row, "root": "r", "path": "p"}).encode() for row in range(9)]
BAD_LINES = {
    "missing": (None, "x.jsonl does not exist"),
    "too few": (GOOD[:8], "has 8 lines, .*x.npy has 9 rows"),
    "too many": ([*GOOD, GOOD[0]], "has more than the 9 lines"),
    "too few beside errors": ([*GOOD[:8], ERROR.encode()], "has 8 lines, .*x.npy has 9 rows"),
    "an error without a root": ([b'{"path": "p", "error": "e"}', *GOOD], "line 1: expected"),
    "another order": ([GOOD[1], GOOD[0], *GOOD[2:]], "line 1: it is of row 1, expected 0"),
    "a row as text": ([b'{"row": "0", "root": "r", "path": "p"}', *GOOD[1:]], "line 1: it is of row 0, expected 0"),
    "a row that is true": ([GOOD[0], b'{"row": true, "root": "r", "path": "p"}', *GOOD[2:]], "line 2: it is of row"),
    "no path": ([b'{"row": 0, "root": "r"}', *GOOD[1:]], "line 1: expected"),
    "a list": ([b"[0]", *GOOD[1:]], "line 1: expected"),
    "a number as path": ([b'{"row": 0, "root": "r", "path": 1}', *GOOD[1:]], "must be strings"),
    "half a surrogate pair": ([b'{"row": 0, "root": "r", "path": "\\ud800"}', *GOOD[1:]], "line 1: .*surrogates"),
    "not UTF-8": ([b'{"row": 0, "root": "r", "path": "\xff"}', *GOOD[1:]], "line 1: .*utf-8"),
    "UTF-16": ([GOOD[0].decode().encode("utf-16"), *GOOD[1:]], "line 1: "),
    "cut": ([*GOOD[:8], GOOD[8][:-3]], "line 9: "),
    "an empty line": ([*GOOD[:4], b"", *GOOD[4:]], "line 5: "),
    "deep": ([b"[" * 200_000, *GOOD[1:]], "line 1: "),
    "a line without end": ([b'{"row": 0, "root": "' + b"r" * (1 << 20) + b'", "path": "p"}', *GOOD[1:]], "line 1: "),
}


@pytest.mark.parametrize(("lines", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_refused_before_anything_is_computed(lines, message, pair) -> None:
    pair.with_suffix(".jsonl").unlink()
    if lines is not None:
        pair.with_suffix(".jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=message):
        Store(pair)


@pytest.mark.parametrize("name", ["x.npy", "x.jsonl"])
def test_a_pipe_is_refused(name, pair) -> None:
    (pair.parent / name).unlink()
    os.mkfifo(pair.parent / name)
    with pytest.raises(InputError, match=f"{name} is no file"):
        Store(pair)


def test_a_pair_that_was_replaced_since_it_was_opened_is_refused(pair, tmp_path) -> None:
    store = Store(pair)
    write(tmp_path / "other", rows(9, seed=1))
    export_array(Store(tmp_path / "other"), pair)
    for use in (store.load, store.read, lambda: list(store.images())):
        with pytest.raises(InputError, match="has changed since it was opened"):
            use()
