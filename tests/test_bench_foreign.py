"""`scripts/bench foreign`: its table, and what it refuses."""

import json

import pytest

from scripts.benchmark.__main__ import main


def test_a_short_run_times_each_form_of_each_file(tmp_path, capsys):
    file = tmp_path / "times.json"
    small = ["--size", "tiny", "--image-size", "64", "--batch", "1,2", "--rounds", "1"]
    assert main(["foreign", *small, "--json", str(file)]) == 0
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| transformers")]
    assert rows == [f"| transformers, {form}" for form in ("as it is", "with ITAE", "with ITAE, --faster")]
    for of_batch in json.loads(file.read_text())["seconds"].values():
        assert {batch: {len(times) for times in one.values()} for batch, one in of_batch.items()} == {
            "1": {6},
            "2": {6},
        }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "must be 1 or more"),
        (["--batch", "one"], "must be numbers"),
        (["--image-size", "50"], "multiple of 16"),
        (["--json", "no/x.json"], "there is no folder"),
    ],
)
def test_bad_use_is_one_line(words, message, capsys):
    assert main(["foreign", "--size", "tiny", *words]) == 2
    assert message in capsys.readouterr().err
