"""`scripts/bench cluster`: its table, who may be left out, and what it refuses."""

import json

import pytest

from scripts.benchmark.__main__ import main
from scripts.benchmark.cluster import OURS, Run, _as_markdown

SMALL = ["--n", "600", "--width", "8", "--k", "5", "--iterations", "3", "--rounds", "2"]


def test_a_short_run_compares_time_memory_and_inertia(tmp_path, capsys):
    file = tmp_path / "runs.json"
    assert main(["cluster", *SMALL, "--contestants", "scikit-learn KMeans", "--json", str(file)]) == 0
    captured = capsys.readouterr()
    assert "| itae cluster |" in captured.out
    assert "600 x 8, k = 5, 3 iterations, one start" in captured.out
    runs = json.loads(file.read_text())
    assert [run["name"] for run in runs] == [OURS, "scikit-learn KMeans", "scikit-learn KMeans", OURS]
    assert all(run["seconds"] > 0 and run["peak"] > 1 for run in runs)
    inertias = [run["inertia"] for run in runs]
    assert max(inertias) < 1.3 * min(inertias)


def test_a_contestant_that_is_not_installed_is_left_out_with_a_reason(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["cluster", *SMALL[:-1], "1", "--contestants", "faiss-cpu"]) == 0
    captured = capsys.readouterr()
    assert "faiss-cpu is left out: the package faiss is not installed" in captured.err
    assert "faiss-cpu" not in captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "every number must be 1 or more"),
        (["--k", "601"], "--k at most --n"),
        (["--contestants", "torch"], "--contestants torch: must be of scikit-learn KMeans"),
    ],
)
def test_bad_use_is_one_line(words, message, capsys):
    assert main(["cluster", *SMALL, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_clustering_that_is_worse_is_marked():
    runs = [Run(OURS, 10, 1.2, 100), Run("good", 8, 3, 100.9), Run("quick", 1, 1, 103)]
    table = _as_markdown(runs, [OURS, "good", "quick"], "x")
    assert "| good | 8.0 | 3.00 | 1.0090 | 1.25 |" in table
    assert "| quick (not as good) | 1.0 | 1.00 | 1.0300 | 10.00 |" in table
