"""`scripts/bench seeding`: its table, a contestant that takes too long, and what it refuses."""

import json
import subprocess

import pytest

from scripts.benchmark import seeding
from scripts.benchmark.__main__ import main
from scripts.benchmark.seeding import OURS

SMALL = ["--n", "600", "--width", "8", "--k", "5", "--rounds", "2"]


def test_a_short_run_compares_seconds_and_inertia(tmp_path, capsys):
    file = tmp_path / "runs.json"
    theirs = "scikit-learn kmeans_plusplus"
    assert main(["seeding", *SMALL, "--iterations", "3", "--contestants", theirs, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert "600 x 8, k = 5, 3 iterations" in table
    assert f"| {theirs} |" in table
    runs = json.loads(file.read_text())
    assert [run["name"] for run in runs] == [OURS, theirs, theirs, OURS]
    assert all(run["seconds"] > 0 and run["pass_seconds"] > 0 for run in runs)
    assert max(run["inertia"] for run in runs) < 1.3 * min(run["inertia"] for run in runs)


def test_without_iterations_one_pass_labels_the_points(capsys):
    assert main(["seeding", *SMALL, "--iterations", "0", "--contestants", "none"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| itae |")]
    assert row.endswith("| 1.0000 |")


def test_a_seeding_that_takes_too_long_is_said_to(monkeypatch, capsys):
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 7)

    monkeypatch.setattr(seeding.subprocess, "run", late)
    assert main(["seeding", *SMALL, "--limit", "7", "--contestants", "none"]) == 0
    assert "| itae | over 7 |  |  |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "every number must be 1 or more"),
        (["--k", "601"], "--k at most --n"),
        (["--contestants", "torch"], "--contestants torch: must be of scikit-learn kmeans_plusplus"),
    ],
)
def test_bad_use_is_one_line(words, message, capsys):
    assert main(["seeding", *SMALL, *words]) == 2
    assert message in capsys.readouterr().err
