"""`scripts/bench cpp`: its table, and what it refuses."""

import json

from cpp_programs import program

from scripts.benchmark import cpp
from scripts.benchmark.__main__ import main

SMALL = ["cpp", "--size", "tiny", "--images", "3", "--decoded", "4", "--side", "64", "--rounds", "1"]


def test_a_short_run_compares_whole_commands(tmp_path, capsys) -> None:
    program("itae-embed")
    file = tmp_path / "times.json"
    assert main([*SMALL, "--json", str(file)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in table if line.startswith(("| start", "| tiny"))] == [
        ["| start to first embedding", "1"], ["| tiny, batch 1", "3"], ["| tiny, batch 8", "3"],
        ["| tiny model, batch 8", "4"],
    ]  # fmt: skip
    times = json.loads(file.read_text())
    assert all(len(one["seconds"]) == 1 and one["peak_mib"][0] > 1 for pair in times.values() for one in pair)


def test_without_the_program_it_says_how_to_build_it(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(cpp, "PROGRAM", tmp_path / "itae-embed")
    assert main(SMALL) == 2
    assert "build it with scripts/build-cpp" in capsys.readouterr().err
    assert main(["cpp", "--rounds", "0"]) == 2
