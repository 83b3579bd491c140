"""`scripts/bench calibrate`: its table, and what it refuses."""

import json

import pytest

from exporter.models.architecture import ARCHITECTURES, Architecture
from scripts.benchmark.__main__ import main


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture("tiny", width=48, heads=3, depth=4))


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_short_run_times_sixteen_settings_beside_a_plain_pass(layers, tmp_path, capsys):
    file = tmp_path / "times.json"
    small = ["--size", "tiny", "--image-size", "56", "--batch", "2", "--rounds", "3"]
    assert main(["calibrate", *small, "--layers", layers, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert f"artifacts from block 2 on, --layers {layers} recommended" in table
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["| what", "| plain pass", "| a calibration's look", "| 16 settings"]
    times = json.loads(file.read_text())
    assert {name: len(one) for name, one in times.items()} == dict.fromkeys(times, 3)
    assert min(map(min, times.values())) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "must be 1 or more"),
        (["--first", "4"], "--first a block from 1 to 3"),
        (["--size", "huge"], "unknown size"),
        (["--image-size", "50"], "multiple of 14"),
        (["--json", "no/x.json"], "there is no folder"),
    ],
)
def test_bad_use_is_one_line(words, message, capsys):
    assert main(["calibrate", "--size", "tiny", *words]) == 2
    assert message in capsys.readouterr().err
