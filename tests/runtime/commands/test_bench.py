"""`bench`: the figures, the limits of a run, and the reports."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from runtime.__main__ import main
from runtime.backends import device_memory, open_session
from runtime.backends.device_memory import used_device_memory
from runtime.backends.session import check_batch
from runtime.checks import bench as module
from runtime.checks.bench import Timing, as_json, as_text, bench, check_sizes, supported
from runtime.contract.errors import UsageError
from runtime.contract.manifest import read_manifest


class FakeSession:
    """A `Session` whose runs take a given time, the first longer."""

    name, compute = "fake", "fp32"

    def __init__(self, path, seconds=0.001) -> None:
        self.manifest = read_manifest(path)
        self.seconds = seconds
        self.batches: list[np.ndarray] = []
        self.is_closed = False

    def run(self, batch, outputs=None):
        check_batch(self.manifest, batch)
        time.sleep(self.seconds * (20 if not self.batches else 1))
        self.batches.append(batch)
        return {}

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def call(capfd):
    def run(*arguments):
        code = main(["bench", *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def timing(latencies, batch=2):
    return Timing(batch, np.array(latencies, float), 1.0, 10**8, None)


def test_percentiles_are_latencies_that_were_seen() -> None:
    shuffled = timing(np.random.default_rng(0).permutation(np.arange(1, 201)))
    assert [shuffled.percentile(percent) for percent in (50, 95, 99)] == [100, 190, 198]
    few = timing([1, 2, 4])
    assert [few.percentile(percent) for percent in (50, 95, 99)] == [2, 4, 4]
    assert few.images_per_second == pytest.approx(2 * 3 / 7)


@pytest.mark.parametrize(("percent", "runs"), [(50, 2), (95, 20), (99, 100)])
def test_a_percentile_needs_a_run_above_it(percent, runs) -> None:
    assert supported(percent, runs)
    assert not supported(percent, runs - 1)
    latencies = timing(np.arange(runs)).latencies
    assert (latencies > timing(latencies).percentile(percent)).any()


def test_runs_are_bounded_by_their_count(tiny) -> None:
    session = FakeSession(tiny)
    result = bench(lambda: session, [1, 3], seconds=60, runs=7)
    assert [one.runs for one in result.timings] == [7, 7]
    assert [len(batch) for batch in session.batches] == [1] * 10 + [3] * 10  # three to warm up
    assert session.is_closed


def test_runs_are_bounded_by_time_and_at_least_one(tiny) -> None:
    start = time.perf_counter()
    (short,) = bench(lambda: FakeSession(tiny, 0.01), [1], seconds=0.2, runs=10**9).timings
    (slow,) = bench(lambda: FakeSession(tiny, 0.05), [1], seconds=0.01, runs=10**9).timings
    assert time.perf_counter() - start < 5
    assert 2 <= short.runs <= 20
    assert slow.runs == 1


def test_the_first_run_and_the_warm_up_are_left_out(tiny) -> None:
    (one,) = bench(lambda: FakeSession(tiny, 0.005), [1], seconds=60, runs=20).timings
    assert one.first > 0.1
    assert 0.005 <= one.percentile(50) < 0.1


def test_loading_is_timed(tiny) -> None:
    def slow():
        time.sleep(0.2)
        return FakeSession(tiny)

    assert 0.2 <= bench(slow, [1], seconds=1, runs=1).load_seconds < 5


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_inputs_are_seeded_noise_as_the_model_takes_it(dtype, make_model, tmp_path) -> None:
    path = make_model(tmp_path, dtype=dtype)
    seen = []
    for seed in (0, 0, 1):
        session = FakeSession(path)
        bench(lambda session=session: session, [2], seconds=1, runs=1, seed=seed)
        seen.append(session.batches[0])
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).any()
    assert (seen[0][0] != seen[0][1]).any()


def test_a_profile_is_respected_before_anything_is_run(make_model, tmp_path) -> None:
    path = make_model(tmp_path, "tiny.engine", builder="tensorrt", batch=(2, 4, 8))
    check_sizes(read_manifest(path), [2, 3, 8])
    for size in (1, 9, 0, -1):
        with pytest.raises(UsageError, match=f"a batch of {size}: tiny.engine takes 2 to 8 images at a time"):
            check_sizes(read_manifest(path), [2, size])


def test_the_session_is_closed_after_an_error(tiny) -> None:
    session = FakeSession(tiny)
    with pytest.raises(UsageError, match="a batch of 0"):
        bench(lambda: session, [0], seconds=1, runs=1)
    assert session.is_closed


def test_peak_memory_grows_with_what_is_held_and_not_with_who_started_it() -> None:
    block = np.ones(300_000_000, np.uint8)
    code = (
        "from runtime.checks.bench import peak_rss\nimport numpy as np\n"
        "print(peak_rss())\nblock = np.ones(100_000_000, np.uint8)\nprint(peak_rss())\ndel block\nprint(peak_rss())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, held, after = map(int, done.stdout.split())
    assert 5_000_000 < before < block.nbytes
    assert 95_000_000 < held - before < 200_000_000
    assert after - before > 95_000_000  # the peak stays; the kernel counts it to within a few pages


def test_memory_of_a_gpu_is_none_without_its_library(monkeypatch) -> None:
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert used_device_memory() is None


class Library:
    """NVIDIA's management library as far as it is asked, each answer a status; a recording, not a driver."""

    def __init__(self, **statuses) -> None:
        self.statuses = statuses
        self.is_shut = False

    def __call__(self, name):
        assert name == "libnvidia-ml.so.1"
        return self

    def nvmlInit_v2(self):  # noqa: N802
        return self.statuses.get("init", 0)

    def nvmlDeviceGetHandleByIndex_v2(self, device, handle):  # noqa: N802
        return self.statuses.get("handle", 0)

    def nvmlDeviceGetMemoryInfo(self, handle, memory):  # noqa: N802
        memory._obj.used = 123_456_789
        return self.statuses.get("memory", 0)

    def nvmlShutdown(self):  # noqa: N802
        self.is_shut = True


def test_memory_of_a_gpu_is_what_the_library_says(monkeypatch) -> None:
    library = Library()
    monkeypatch.setattr(device_memory.ctypes, "CDLL", library)
    assert used_device_memory() == 123_456_789
    assert library.is_shut


@pytest.mark.parametrize("call", ["init", "handle", "memory"])
def test_memory_of_a_gpu_is_none_where_the_library_fails(call, monkeypatch) -> None:
    monkeypatch.setattr(device_memory.ctypes, "CDLL", Library(**{call: 9}))
    assert used_device_memory() is None


def test_memory_of_a_gpu_is_shown_less_what_was_in_use(tiny, monkeypatch) -> None:
    used = iter([1_000_000_000, 1_500_000_000])
    monkeypatch.setattr(module, "used_device_memory", lambda: next(used))
    result = bench(lambda: FakeSession(tiny), [1], seconds=1, runs=1)
    row = as_text(result).splitlines()[4]
    assert row.endswith(" 500")
    assert as_json(result)["device_memory_before_load_bytes"] == 1_000_000_000
    assert as_json(result)["batches"][0]["device_memory_bytes"] == 1_500_000_000


# Reports and command


def test_what_the_runs_are_too_few_for_is_marked(tiny) -> None:
    result = bench(lambda: FakeSession(tiny, 0.0), [1], seconds=60, runs=30)
    assert as_json(result)["batches"][0]["too_few_runs_for"] == ["p99_ms"]
    text = as_text(result)
    assert text.splitlines()[4].count("*") == 1
    assert "too few runs" in text
    enough = as_text(bench(lambda: FakeSession(tiny, 0.0), [1], seconds=60, runs=100))
    assert "*" not in enough
    assert "too few runs" not in enough


def test_json_is_alone_on_stdout_and_progress_on_stderr(call, tiny) -> None:
    code, out, err = call(tiny, "--batch", "1,3", "--runs", "5", "--json")
    report = json.loads(out)
    assert code == 0
    assert [one["batch"] for one in report["batches"]] == [1, 3]
    for one in report["batches"]:
        assert one["runs"] == 5
        assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
        assert one["images_per_s"] > 0
        assert report["peak_rss_after_load_bytes"] <= one["peak_rss_bytes"]
    assert report["load_s"] > 0
    assert report["backend"].startswith("ONNX Runtime")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["batch 1", "batch 3"]


def test_table_has_a_row_for_each_batch_size(call, tiny) -> None:
    code, out, _ = call(tiny, "--runs", "3")
    assert code == 0
    assert out.startswith("tiny.onnx on ONNX Runtime")
    assert [row.split()[:2] for row in out.splitlines()[4:6]] == [["1", "3"], ["8", "3"]]


BAD_USE = {
    "batch 0": (["--batch", "0"], "a batch of 0: tiny.onnx takes 1 or more images at a time"),
    "batch no number": (["--batch", "1,x"], "'1,x': expected numbers with commas"),
    "no batch": (["--batch", ""], "expected numbers with commas"),
    "seconds 0": (["--seconds", "0"], "must be more than 0"),
    "seconds NaN": (["--seconds", "nan"], "must be more than 0"),
    "runs 0": (["--runs", "0"], "must be more than 0"),
    "seed": (["--seed", "-1"], "--seed -1: must be 0 or more"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_USE.values(), ids=BAD_USE)
def test_bad_use_is_one_line_and_exit_2(arguments, message, call, tiny) -> None:
    code, out, err = call(tiny, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("runtime: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_real_session_is_measured(tiny) -> None:
    result = bench(lambda: open_session(tiny), [2], seconds=5, runs=4)
    assert result.timings[0].runs == 4
    assert result.rss_before <= result.rss_loaded <= result.timings[0].peak_rss
