"""Embeddings as one npy file: they are read back as written, also by numpy alone."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import assert_same, rows, write

from runtime.contract.errors import InputError
from runtime.store import Embeddings, Store
from runtime.store.npy_file import header, key_of, line_of

PART = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("/.\\n"), max_size=8)


def test_what_is_written_is_read_by_numpy_and_any_editor(tmp_path) -> None:
    write(tmp_path, rows(9), kind="npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embeddings.npy",
        "errors.jsonl",
        "paths.txt",
        "store.json",
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy", allow_pickle=False), rows(9).vectors)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(mapped[7:], rows(9).vectors[7:])
    assert (tmp_path / "paths.txt").read_text().splitlines() == [f"/root/./0/{number}.png" for number in range(9)]


def test_the_store_is_mapped_not_read(tmp_path) -> None:
    write(tmp_path, rows(9), {"model": "a"}, kind="npy")
    store = Store(tmp_path)
    assert (len(store), store.width, store.kind, store.complete, store.origin) == (9, 3, "npy", True, {"model": "a"})
    assert isinstance(store.vectors(), np.memmap)
    assert_same(store.read(), rows(9))
    assert [len(part) for part in store.parts()] == [9]


def test_header_has_one_length_for_any_number_of_rows() -> None:
    assert len({len(header(count, 768)) for count in (0, 1, 10**6, 10**9)}) == 1


@given(PART, PART)
@settings(max_examples=200, deadline=None)
def test_any_name_survives_in_a_line(root, path) -> None:
    line = line_of(root, path)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "\r" not in line
    assert key_of(line) == (root, path)


@pytest.mark.parametrize("root", ["s3://b/./x", "s3://b/.", "/./.", "s3://b/./.hidden/\\.x"])
def test_a_root_may_itself_hold_what_joins_it_to_the_path(root) -> None:
    assert key_of(line_of(root, "./x/./y.png")) == (root, "./x/./y.png")


@given(st.lists(PART, min_size=1, max_size=9))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_survives_in_a_store(tmp_path, names) -> None:
    expected = Embeddings(names, names[::-1], rows(len(names)).vectors)
    with tempfile.TemporaryDirectory(dir=tmp_path) as out:
        write(Path(out), expected, kind="npy")
        assert_same(Store(out).read(), expected)


@pytest.mark.parametrize("name", ["embeddings.npy", "paths.txt"])
def test_truncated_file_is_told(name, tmp_path) -> None:
    write(tmp_path, rows(9), kind="npy")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{name} has \d+ bytes, store.json speaks of \d+"):
        Store(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=rf"can't read .*{name}"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "lines", [b"\n" * 9, b"/root/./a.png" + b" " * 60, b"\xff/./\n" * 9, b"x/./y\n" * 4 + b"z" * 99]
)
def test_damaged_paths_are_told_by_row(lines, tmp_path) -> None:
    write(tmp_path, rows(9), kind="npy")
    size = (tmp_path / "paths.txt").stat().st_size
    (tmp_path / "paths.txt").write_bytes(lines.ljust(size, b" "))
    with pytest.raises(InputError, match=r"paths.txt.* row "):
        list(Store(tmp_path).images())


def test_nan_is_told(tmp_path) -> None:
    write(tmp_path, rows(9), kind="npy")
    with (tmp_path / "embeddings.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(InputError, match="holds NaN or infinity"):
        Store(tmp_path).read()
