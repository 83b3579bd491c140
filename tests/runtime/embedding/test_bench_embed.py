"""`scripts/bench embed`: one short run with a small model."""

from __future__ import annotations

import json

from scripts.benchmark.embed import BARE, DECODE, JPEG, PROCESSES, THREADS, bench


def test_a_short_run_has_a_row_for_each_part_and_the_bound(tiny, tmp_path, capsys) -> None:
    out = tmp_path / "times.json"
    assert bench(["--model", str(tiny), "--images", "3", "--side", "64", "--rounds", "2", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    for part in (BARE, DECODE, JPEG, THREADS, PROCESSES):
        assert len(found[part]["seconds"]) == 2
        assert f"| {part.split(', ')[0]}" in printed
    (bound,) = [line for line in printed.splitlines() if "spread over the cores" in line]
    assert float(bound.split("|")[2]) > 1
