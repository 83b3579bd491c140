"""`scripts/bench ray`: its table, and what it refuses."""

import importlib.util

import pytest

from scripts.benchmark.__main__ import main
from scripts.benchmark.by_ray import Round


def test_the_ratio_leaves_out_what_starting_costs():
    round_ = Round(one_alone=2, one_ray=12, all_alone=22, all_ray=34)
    assert (round_.start, round_.ratio) == (10, 1.1)


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--images", "0", "--decoded", "0"], ["--images", "-1"]])
def test_bad_use_is_one_line(words, capsys):
    assert main(["ray", *words]) == 2
    assert "every number must be 1 or more" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
def test_a_short_run_compares_the_rows_and_reports_the_ratio(capsys):
    assert main(["ray", "--images", "0", "--decoded", "300", "--side", "100"]) == 0
    assert "| tiny model | 300 | 1 | " in capsys.readouterr().out
