"""`scripts/bench dedup`: its table, and what it refuses."""

import numpy as np
import pytest

from scripts.benchmark.__main__ import main
from scripts.benchmark.cluster import draw
from scripts.benchmark.dedup import plant


def test_a_short_run_reports_time_memory_and_recall(capsys):
    assert main(["dedup", "--n", "400", "--width", "64"]) == 0
    out = capsys.readouterr().out
    assert "400 x 64, threshold 0.97" in out
    assert "| 80 of 80 |" in out


def test_planted_pairs_are_duplicates():
    points = draw(300, 48, 0)
    one, other = plant(points, 0.9, 0)
    cosines = np.einsum("ij,ij->i", points[one], points[other])
    assert len(one) == 60
    assert not {*one} & {*other}
    assert 0.9 < cosines.min() < 0.92
    assert cosines.max() > 0.98


@pytest.mark.parametrize("words", [["--n", "0"], ["--threshold", "1"]])
def test_bad_use_is_one_line(words, capsys):
    assert main(["dedup", *words]) == 2
    assert "must be 1 or more" in capsys.readouterr().err
