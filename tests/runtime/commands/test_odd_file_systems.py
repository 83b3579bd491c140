"""Every command that writes, on file systems that lack something: it says so once, and writes what it always does."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_file_systems import lacking

from runtime.__main__ import main
from runtime.store import Store

LACKS = {
    "no fsync of folders": (("fsyncdir",), errno.EINVAL),
    "no fsync of folders, another number": (("fsyncdir",), errno.ENOTSUP),
    "a failing fsync of folders, no chmod": (("fsyncdir", "chmod"), errno.EIO),
    "no fsync, chmod, locks or links": (("fsyncdir", "fsync", "chmod", "flock", "link"), errno.ENOTSUP),
}


def commands(model: Path, pictures: Path, root: Path) -> list[list[str]]:
    """Each command twice: it makes, then it replaces or goes on."""
    store, given = str(root / "store"), ["--data", f"folder:{pictures}", "--seeds", "1", "--cache", str(root / "cache")]
    each = [
        ["embed", str(model), str(pictures), "--out", store],
        ["cluster", store, "--k", "2", "--out", str(root / "clusters"), "--report", str(root / "clusters.html")],
        ["cluster", store, "--assign", str(root / "clusters"), "--out", str(root / "assigned")],
        ["export", store, str(root / "all.npy")],
        ["evaluate", str(model), *given, "--out", str(root / "scores"), "--report", str(root / "scores.html")],
        ["verify", str(model), "--junit", str(root / "junit.xml")],
    ]
    return [one for one in each for _ in range(2)]


def files_below(root: Path) -> list[str]:
    """The names of all files, those of the cache's folders as they are called for this data."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture(scope="module")
def run_all() -> Callable[[Path, Path, Path, Callable[[], str]], list[list[str]]]:
    """Run all commands into a folder; give the warnings of each."""

    def run(model: Path, pictures: Path, root: Path, stderr: Callable[[], str]) -> list[list[str]]:
        root.mkdir()
        found = []
        for arguments in commands(model, pictures, root):
            code, err = main(arguments), stderr()
            assert (code, "Traceback" in err) == (0, False), (arguments, err)
            found.append([line for line in err.splitlines() if line.startswith("runtime: warning: ")])
        return found

    return run


@pytest.mark.parametrize(("features", "number"), LACKS.values(), ids=LACKS)
def test_every_command_writes_the_same_and_says_once_what_is_lacking(
    features, number, run_all, tiny, pictures, tmp_path, capsys
) -> None:
    def stderr() -> str:
        return capsys.readouterr().err

    usual, odd = tmp_path / "usual", tmp_path / "odd"
    assert not any(run_all(tiny, pictures, usual, stderr))
    with lacking(*features, number=number):
        warnings = run_all(tiny, pictures, odd, stderr)
    assert files_below(odd) == files_below(usual)
    assert not [name for name in files_below(odd) if Path(name).name.startswith(".")]
    for name in (
        "clusters/labels.parquet",
        "clusters/centroids.npy",
        "assigned/labels.parquet",
        "scores/scores.parquet",
    ):
        assert (odd / name).read_bytes() == (usual / name).read_bytes(), name
    for array in (np.load(odd / "all.npy"), Store(odd / "store").read().vectors):
        np.testing.assert_array_equal(array, np.load(usual / "all.npy"))
    for said in warnings:
        words = [word for word in ("no fsync of folders", "no locks", "no fsync (") if any(word in one for one in said)]
        assert len(said) == len(words)  # each once in a command
    assert all(any("no fsync of folders" in one for one in said) for said in warnings)


@pytest.mark.parametrize("command", range(0, 12, 2), ids=["embed", "cluster", "assign", "export", "evaluate", "verify"])
def test_a_disk_that_fails_to_write_is_one_line_and_leaves_nothing_half_written(
    command, tiny, pictures, tmp_path, capsys
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    before = commands(tiny, pictures, root)
    for arguments in before[:command:2]:
        assert main(arguments) == 0
    there = files_below(root)
    capsys.readouterr()
    with lacking("fsync", number=errno.EIO):
        assert main(before[command]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("runtime: ")
    assert "Input/output error" in last
    left = {name for name in files_below(root) if name not in there and (root / name).is_file()}
    assert not left, left
