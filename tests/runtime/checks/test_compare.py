"""`bench --compare` and `--tune`: every way side by side, and which of them is chosen."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest

from runtime.__main__ import main
from runtime.backends.tuned import Choice, read_tuned, tuned_path
from runtime.checks import compare as module
from runtime.checks.compare import Comparison, Distance, Measured, Runs, Way, choose, compare_ways, ways
from runtime.checks.compare_report import as_json, as_text, plot
from runtime.contract.errors import BackendError, CheckError, OutputFileError, UsageError
from runtime.contract.manifest import read_manifest

EXACT, ROUNDED = Distance(1e-6, 1.0, None), Distance(0.03, 0.9997, None)


@pytest.fixture
def call(capfd):
    def run(*arguments):
        code = main(["bench", *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def measured(provider, compute, distance, *runs, streams=1):
    """A way with a time of each batch size: (batch, seconds)."""
    timed = tuple(Runs(batch, (seconds, seconds * 0.9, seconds * 1.5)) for batch, seconds in runs)
    return Measured(Way(provider, compute, streams), None, provider, 0.5, distance, None, 10**8, timed)


@pytest.fixture
def comparison(tiny):
    """Of what is fastest in its own way: bf16 for throughput, two streams for fp32."""

    def make(*several):
        return Comparison(read_manifest(tiny), 4, 0, several)

    return make


FP32 = measured("cpu", "fp32", EXACT, (1, 0.10), (8, 0.70))
BF16 = measured("openvino", "bf16", ROUNDED, (1, 0.05), (8, 0.20))
TWICE = measured("cpu", "fp32", EXACT, (1, 0.12), (8, 1.30), streams=2)
WRONG = measured("openvino", "fp32", Distance(9.0, 0.2, "max abs 9 is over the limit 0.0001"), (1, 0.001), (8, 0.001))
UNKNOWN = Measured(Way("cuda", "fp32"), "no GPU")


# Which way is chosen


def test_the_fastest_within_the_limit_is_chosen(comparison) -> None:
    found = comparison(FP32, BF16, TWICE, WRONG, UNKNOWN)
    assert choose(found, 0.999)[0] == Choice("openvino", "bf16", 8, 1)
    assert choose(found, 0.9999)[0] == Choice("cpu", "fp32", 1, 2)  # 16.7 a second, of 12.3 and 11.4
    assert choose(comparison(FP32, UNKNOWN), 1.0)[0] == Choice("cpu", "fp32", 8, 1)


def test_of_equally_fast_ways_the_smallest_is_chosen(comparison) -> None:
    same = measured("cpu", "fp32", EXACT, (1, 0.1), (8, 0.79))  # 10 and 10.1 a second
    double = measured("cpu", "fp32", EXACT, (1, 0.198), streams=2)  # 10.1
    assert choose(comparison(double, same), 0.999)[0] == Choice("cpu", "fp32", 1, 1)
    clearly = measured("cpu", "fp32", EXACT, (1, 0.1), (8, 0.75))  # 10.7
    assert choose(comparison(double, clearly), 0.999)[0] == Choice("cpu", "fp32", 8, 1)


def test_no_way_within_the_limit_is_an_error_with_the_figures(comparison) -> None:
    with pytest.raises(CheckError) as caught:
        choose(comparison(BF16, WRONG, UNKNOWN), 0.9999)
    text = str(caught.value)
    assert "no way keeps a cosine of 0.9999" in text
    assert "openvino, bf16: cosine 0.999700" in text
    assert "openvino, fp32: max abs 9 is over the limit" in text
    assert "cuda, fp32: no GPU" in text


# What is compared


def test_ways_are_all_providers_and_types_that_fit_the_file(tiny, make_model, tmp_path) -> None:
    found = ways(read_manifest(tiny), [1, 2])
    assert [(one.provider, one.compute, one.streams) for one in found] == [
        ("cpu", "fp32", 1), ("cpu", "fp32", 2), ("cuda", "fp32", 1),
        ("openvino", "fp32", 1), ("openvino", "fp32", 2), ("openvino", "bf16", 1), ("openvino", "bf16", 2),
    ]  # fmt: skip
    engine = make_model(tmp_path, "tiny.engine", builder="tensorrt", batch=(1, 2, 4))
    assert ways(read_manifest(engine), [1, 2]) == [Way("tensorrt", "fp32")]


def test_bad_numbers_are_refused_before_anything_starts(tiny) -> None:
    manifest = read_manifest(tiny)
    with pytest.raises(UsageError, match="--streams 4097: must be from 1 to"):
        compare_ways(tiny, manifest, [1], [4097], seconds=1, runs=1)
    with pytest.raises(UsageError, match="a batch of 0"):
        compare_ways(tiny, manifest, [0], seconds=1, runs=1)
    with pytest.raises(UsageError, match="both must be more than 0"):
        compare_ways(tiny, manifest, [1], seconds=0, runs=1)


def test_a_process_that_dies_is_left_out_and_the_others_go_on(tiny, monkeypatch) -> None:
    monkeypatch.setattr(module, "ways", lambda *_: [Way("cpu", "fp32"), Way("cpu", "fp32", 2)])
    monkeypatch.setattr(module, "usable_cores", lambda: 2)

    def tell(line) -> None:
        if "warming up" in line:
            os.kill(min(child.pid for child in multiprocessing.active_children()), signal.SIGKILL)

    found = compare_ways(tiny, read_manifest(tiny), [2], [1, 2], seconds=0.01, runs=5, tell=tell)
    dead, alive = found.measured
    assert dead.problem is not None
    assert dead.problem.startswith("its process died")
    assert alive.problem is None
    assert len(alive.runs[0].seconds) >= module.MIN_ROUNDS
    assert not multiprocessing.active_children()


def test_a_model_that_runs_in_no_way_says_why(tiny, monkeypatch) -> None:
    monkeypatch.setattr(module, "ways", lambda *_: [Way("cuda", "fp32")])
    with pytest.raises(BackendError, match=r"runs in no way here: cuda, fp32: .*CUDA"):
        compare_ways(tiny, read_manifest(tiny), [1], seconds=0.1, runs=1)


# The command


def test_tune_measures_writes_and_is_read_again(call, tiny, tmp_path) -> None:
    code, out, err = call(
        tiny, "--tune", "--batch", "1,2", "--seconds", "0.01", "--json", "--plot", tmp_path / "ways.png"
    )
    assert code == 0, err
    data = json.loads(out)
    by_way = {(one["provider"], one["compute"]): one for one in data["ways"]}
    cpu = by_way["cpu", "fp32"]
    assert (cpu["problem"], cpu["keeps_its_limits"]) == (None, True)
    assert cpu["max_abs"] < 1e-4
    assert cpu["peak_rss_bytes"] > 10**7
    assert [one["batch"] for one in cpu["batches"]] == [1, 2]
    assert by_way["cuda", "fp32"]["problem"]
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")
    chosen = read_tuned(tiny, read_manifest(tiny))
    assert data["tuned"] == vars(chosen)
    fastest = max(
        (run["images_per_s"], one["provider"], one["compute"], run["batch"])
        for one in data["ways"]
        if one["keeps_its_limits"]
        for run in one["batches"]
    )
    best = by_way[chosen.provider, chosen.compute]
    (own,) = (run["images_per_s"] for run in best["batches"] if run["batch"] == chosen.batch)
    assert own >= 0.97 * fastest[0]


def test_nothing_is_written_if_no_way_keeps_the_limit(call, tiny, monkeypatch) -> None:
    found = Comparison(read_manifest(tiny), 2, 0, (BF16,))
    monkeypatch.setattr(module, "compare_ways", lambda *_, **__: found)
    code, out, err = call(tiny, "--tune", "--min-cosine", "0.99999")
    assert code == 1
    assert "no way keeps a cosine of 0.99999" in err
    assert "openvino  bf16" in out  # the figures are shown all the same
    assert not tuned_path(tiny).exists()


TOGETHER = {
    "provider": (["--compare", "--provider", "cpu"], "--provider is not for --compare and --tune"),
    "compute": (["--tune", "--compute", "fp32"], "--compute is not for --compare and --tune"),
    "plot": (["--plot", "a.png"], "--plot is for --compare and --tune"),
    "streams": (["--streams", "1"], "--streams is for --compare and --tune"),
    "cosine": (["--compare", "--min-cosine", "0.9"], "--min-cosine is for --tune"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_options_that_do_not_fit_are_refused(name, call, tiny) -> None:
    arguments, message = TOGETHER[name]
    code, out, err = call(tiny, *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("cosine", ["0", "1.5", "nan", "high"])
def test_an_impossible_cosine_is_refused(cosine, call, tiny) -> None:
    code, _, err = call(tiny, "--tune", "--min-cosine", cosine)
    assert code == 2
    assert "give a cosine above 0, at most 1" in err


# The reports


def test_the_table_marks_the_choice_and_names_what_does_not_run(comparison) -> None:
    found = comparison(FP32, BF16, TWICE, WRONG, UNKNOWN)
    _, best, runs = choose(found, 0.999)
    lines = as_text(found, (best, runs)).splitlines()
    (chosen,) = (line for line in lines if line.startswith("> "))
    assert chosen.split()[1:5] == ["openvino", "bf16", "1", "8"]
    assert chosen.split()[-5] == "0.286"  # 0.20 of 0.70 seconds
    assert any("cuda      fp32           1  no: no GPU" in line for line in lines)
    assert any("OFF: max abs 9 is over the limit" in line for line in lines)
    (twice,) = (line for line in lines if line.split()[:4] == ["cpu", "fp32", "2", "1"])
    assert "0.600" in twice.split()  # 0.12 seconds for two images, 0.10 for one


def test_json_has_every_time_and_no_nan(comparison) -> None:
    data = as_json(comparison(FP32, UNKNOWN))
    json.dumps(data, allow_nan=False)
    assert data["ways"][0]["batches"][1]["images_per_s"] == pytest.approx(8 / 0.7, abs=1e-3)
    assert len(data["ways"][0]["batches"][0]["ms"]) == 3
    assert data["ways"][1]["batches"] == []


def test_a_picture_that_can_not_be_written_is_our_error(comparison, tmp_path) -> None:
    with pytest.raises(OutputFileError, match="can't write"):
        plot(comparison(FP32), tmp_path / "none" / "a.png")
