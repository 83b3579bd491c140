"""`plan`: figures that were computed by hand, and what it refuses."""

import json

import pytest

from runtime.__main__ import main


@pytest.fixture
def call(capsys):
    def run(*arguments):
        code = main(["plan", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_figures_are_those_computed_by_hand(call) -> None:
    words = ("--price-per-hour", 2, "--decode-rate", 300, "--image-bytes", "1e5", "--width", 384)
    code, out, _ = call("--images", "1e9", "--rate", 2000, "--devices", 50, *words, "--json")
    assert code == 0
    assert json.loads(out) == {
        "images": 10**9,
        "devices": 50,
        "images_per_second_and_device": 2000.0,
        "images_per_second": 100_000.0,
        "hours": pytest.approx(10_000 / 3600),
        "device_hours": pytest.approx(500_000 / 3600),
        "width": 384,
        "store_bytes": 10**9 * (4 * 384 + 64),
        "parts": 244_141,
        "cost": pytest.approx(1_000_000 / 3600),
        "decoding_cores": 334,
        "read_bytes_per_second": 1e10,
    }


def test_the_table_says_the_same(call) -> None:
    code, out, _ = call("--images", 1000000, "--rate", 12.5, "--devices", 2)
    assert code == 0
    assert out.splitlines() == [
        "images           1,000,000",
        "images a second  25 (2 x 12.5)",
        "time             11.1 h",
        "device hours     22.2",
        "store            3.14 GB, 245 parts (width 768)",
    ]


def test_rate_and_width_come_from_bench(call, tiny, tmp_path, capsys) -> None:
    assert main(["bench", str(tiny), "--batch", "1,4", "--runs", "2", "--json"]) == 0
    measured = capsys.readouterr().out
    file = tmp_path / "bench.json"
    file.write_text(measured)
    _, out, _ = call("--images", 1000, "--bench", file, "--json")
    made = json.loads(out)
    rates = [one["images_per_s"] for one in json.loads(measured)["batches"]]
    assert (made["images_per_second"], made["width"]) == (max(rates), 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--images", 10), "give one of --rate and --bench"),
        (("--images", 10, "--rate", 1, "--bench", "x"), "give one of --rate and --bench"),
        (("--images", 10, "--rate", 0), "--rate 0: must be above 0"),
        (("--images", 10, "--rate", "nan"), "--rate nan: must be above 0"),
        (("--images", "1.5", "--rate", 1), "'1.5': give a whole number above 0"),
        (("--images", "inf", "--rate", 1), "'inf': give a whole number above 0"),
        (("--images", 10, "--rate", 1, "--price-per-hour", -1), "--price-per-hour -1: must be above 0"),
        (("--images", 10, "--bench", "/nowhere.json"), "can't read /nowhere.json"),
    ],
)
def test_bad_use_is_an_error_of_one_line(words, said, call) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"batches": []}', '{"batches": [{"images_per_s": 0, "batch": 1}]}'])
def test_a_file_that_bench_did_not_write_is_refused(text, call, tmp_path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    code, _, err = call("--images", 10, "--bench", file)
    assert code == 2
    assert str(file) in err
