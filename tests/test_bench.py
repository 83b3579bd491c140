"""`scripts/bench`: its arithmetic by hand, and one short run of a small model from end to end."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import exporter.models.architecture
from exporter.models.architecture import Architecture, architecture
from runtime.contract.errors import ManifestError, UsageError
from runtime.contract.instructions import has_bf16
from scripts.benchmark import __main__ as bench
from scripts.benchmark import measure, plot, report
from scripts.benchmark.contestants import CONTESTANTS, REFERENCE, choose
from scripts.benchmark.gpu import flops_per_image, peak_tflops
from scripts.benchmark.measure import Accuracy, Race
from scripts.benchmark.prepare import Check
from scripts.benchmark.products import shapes
from scripts.benchmark.runners import Job, load
from scripts.benchmark.worker import Refused

ROOT = Path(__file__).parents[1]
TINY = Architecture("tiny", width=48, heads=3, depth=2)
EXACT = Accuracy(0.0, 1.0)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


@pytest.mark.parametrize("n", range(1, 10))
def test_every_contestant_has_every_place_equally_often(n):
    cycle = measure.orders("abcdefghi"[:n])
    assert all(sorted(order) == sorted("abcdefghi"[:n]) for order in cycle)
    for place in range(n):
        assert len(set(Counter(order[place] for order in cycle).values())) == 1


@pytest.mark.parametrize("n", range(2, 10))
def test_every_contestant_follows_every_other_equally_often(n):
    after = Counter(pair for order in measure.orders("abcdefghi"[:n]) for pair in itertools.pairwise(order))
    assert len(after) == n * (n - 1)
    assert len(set(after.values())) == 1


def test_of_up_to_three_all_orders_are_run():
    assert set(measure.orders("abc")) == set(itertools.permutations("abc"))


@pytest.mark.parametrize(
    ("wanted", "contestants", "rounds"), [(1, 2, 2), (6, 3, 6), (7, 3, 12), (24, 8, 24), (9, 5, 10)]
)
def test_rounds_are_whole_cycles(wanted, contestants, rounds):
    assert measure.round_up(wanted, contestants) == rounds


def test_ratios_are_taken_within_a_round():
    # Round 3 was slow for both: the ratio of the medians would be 3 / 2, within each round it is 1 / 2, 1 / 2, 3 / 4.
    seconds = {"itae-last": [1.0, 1.0, 3.0], "transformers": [2.0, 2.0, 4.0]}
    ours, theirs = measure.timings(seconds, "transformers", 8, {"itae-last": EXACT, "transformers": EXACT})
    assert ours.ratio == (0.5, 0.5, 0.625)
    assert ours.ms == (1000.0, 1000.0, 2000.0)
    assert ours.images_per_second == 8.0
    assert theirs.ratio == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "off", "right"),
    [
        ("itae-last", 9e-5, True),
        ("itae-last", 1.1e-4, False),
        ("itae-last", np.nan, False),
        ("torch-fp16", 1e-2, True),
        ("torch-fp16", 2.0, False),
        ("torch-fp16", np.nan, False),
    ],
)
def test_another_model_is_not_timed(name, off, right):
    want = np.ones((2, 4), np.float32)
    got = want.copy()
    got[1, 2] += off
    check = Check(np.zeros((2, 3, 1, 1), np.float32), want)
    if right:
        assert measure.accuracy(BY_NAME[name], got, check).max_abs == pytest.approx(off, rel=1e-2)
    else:
        with pytest.raises(Refused, match="wrong: max abs"):
            measure.accuracy(BY_NAME[name], got, check)


def test_the_reference_always_takes_part():
    assert [one.name for one in choose(["itae-last"], "cpu")] == ["itae-last", "transformers"]
    assert [one.name for one in choose(["itae-last"], "cuda")] == [REFERENCE["cuda"]]
    assert not any(one.by_name_only for device in REFERENCE for one in choose(None, device))
    assert [one.name for one in choose(["itae-min-all"], "cpu")] == ["itae-min-all", "transformers"]
    with pytest.raises(UsageError, match="--contestants fastest: choose from itae-last"):
        choose(["fastest"], "cpu")


def test_operations_are_counted_as_in_the_literature():
    # ViT-B/14 at 224 px: 23.2 billion multiply-adds (16 x 16 patches and the CLS token), of which attention is 1.2.
    assert flops_per_image(architecture("vitb14")) / 2e9 == pytest.approx(23.2, abs=0.2)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA Something New", None),
    ],
)
def test_a_gpus_peak_is_found_by_its_name(gpu, peak):
    assert peak_tflops(gpu) == peak


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds 0: must be a number from 1"),
        (["--rounds", "2,3"], "--rounds 2,3: must be a number"),
        (["--batch", "1,x"], "--batch 1,x: must be numbers"),
        (["--sizes", "huge"], "unknown size 'huge'"),
        (["--contestants", "x"], "--contestants x"),
        (["--plot", "/nowhere/at/all.png"], "there is no folder /nowhere/at"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(arguments, words, capsys):
    assert bench.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_the_gpus_table_gives_images_a_second_and_the_share_of_the_peak():
    seconds = {"itae-last-trt": [0.001], "torch-fp16": [0.002]}
    accuracies = dict.fromkeys(seconds, EXACT)
    race = Race("vitb14", 8, "cuda", "torch-fp16", measure.timings(seconds, "torch-fp16", 8, accuracies))
    here = report.machine(2, "NVIDIA H100 80GB HBM3")
    text = report.as_markdown(report.Report(here, 1, (race,), ()))
    assert "| vitb14: ITAE, last layer · TensorRT fp16 | 8 | 8000 | 37% |" in text
    assert "| **ITAE, last layer · TensorRT fp16** | 0.50 (0.50-0.50), 1 ms |" in text


def test_a_short_run_reports_what_it_promises(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(exporter.models.architecture.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(bench, "_devices", lambda: ["cpu"])
    file = tmp_path / "bench.json"
    arguments = [
        "--sizes",
        "tiny",
        "--batch",
        "1,3",
        "--rounds",
        "1",
        "--contestants",
        "itae-last",
        "--json",
        str(file),
    ]
    assert bench.main(arguments) == 0
    said = capfd.readouterr()
    found = json.loads(file.read_text())
    assert found["skipped"] == []
    assert found["machine"]["threads"] >= 1
    assert found["machine"]["packages"]["onnxruntime"]
    assert [(race["size"], race["batch"], race["device"]) for race in found["races"]] == [
        ("tiny", 1, "cpu"),
        ("tiny", 3, "cpu"),
    ]
    for race in found["races"]:
        assert race["reference"] == "transformers"
        ours, theirs = race["timings"]
        assert (ours["name"], theirs["name"]) == ("itae-last", "transformers")
        assert len(ours["seconds"]) == len(theirs["seconds"]) == 2
        assert ours["ratio"][1] == pytest.approx(np.median(np.divide(ours["seconds"], theirs["seconds"])))
        assert 0 < ours["accuracy"]["max_abs"] < 1e-4
    assert "| | tiny b1 | tiny b3 | max abs |" in said.out
    assert "| **ITAE, last layer · ONNX Runtime** | " in said.out
    assert all(line.startswith("bench: ") for line in said.err.splitlines())


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_runs_our_file_by_the_runtimes_own_backend_and_transformers_beside_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(exporter.models.architecture.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(bench, "_devices", lambda: ["cpu"])
    file = tmp_path / "bench.json"
    names = "openvino-itae-last,openvino-transformers"
    arguments = ["--sizes", "tiny", "--batch", "2", "--rounds", "1", "--contestants", names, "--json", str(file)]
    assert bench.main(arguments) == 0
    found = json.loads(file.read_text())
    assert found["skipped"] == []
    (race,) = found["races"]
    assert {timing["name"] for timing in race["timings"]} == {*names.split(","), "transformers"}
    assert all(0 <= timing["accuracy"]["max_abs"] < 1e-4 for timing in race["timings"])
    job = Job(BY_NAME["openvino-itae-last"], TINY, tmp_path / "no.onnx", 1)
    with pytest.raises(ManifestError, match="no such model file"):  # which OpenVINO itself would not say
        load(job)


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None or not has_bf16(),
    reason="needs OpenVINO and a CPU with bf16 (AVX512-BF16 or AMX)",
)
def test_bf16_is_timed_beside_its_peers_and_the_products_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(exporter.models.architecture.ARCHITECTURES, "tiny", TINY)
    file = tmp_path / "bf16.json"
    assert bench.main(["bf16", "--size", "tiny", "--batch", "2", "--rounds", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    names = {"openvino-itae-last-bf16", "openvino-transformers-bf16", "transformers", "products-bf16", "products-int8"}
    assert set(found["seconds"]["2"]) == names
    assert 0.99 < found["cosines"]["openvino-itae-last-bf16"] < 1 - 1e-7  # it was bf16
    said = capfd.readouterr().out
    assert "| its matrix products alone, int8 |" in said
    assert bench.main(["bf16", "--size", "vitg14"]) == 2
    assert "take S, B or L" in capfd.readouterr().err


@pytest.mark.skipif(not has_bf16(), reason="needs OpenVINO and a CPU with bf16 (AVX512-BF16 or AMX)")
def test_int8_is_timed_beside_bf16_and_fp32(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(exporter.models.architecture.ARCHITECTURES, "tiny", TINY)
    file = tmp_path / "int8.json"
    options = ["--size", "tiny", "--batch", "2", "--rounds", "1", "--check", "8", "--min-cosine", "0.9"]
    assert bench.main(["int8", *options, "--json", str(file)]) == 0
    found = json.loads(file.read_text())["tiny"]
    assert len(found["seconds"]) == 7
    assert found["quantization"]["int8_layers"] == 12
    assert found["checked"]["pictures"] == 8
    assert 0.9 < found["checked"]["worst_cosine"] < 1 - 1e-7  # it was int8
    said = capfd.readouterr().out
    assert "share of bf16" in said
    assert bench.main(["int8", "--rounds", "0"]) == 2


def test_the_products_alone_are_those_of_the_model():
    arch = architecture("vitb14")
    facts = arch.facts((224, 224))
    tokens = facts.patches + facts.prefix
    of_products = sum(k * n for k, n in shapes(arch)) * tokens
    attention = 2 * (arch.depth - 1) * tokens**2 * arch.width
    last_block = (4 * arch.width**2 + 2 * arch.width * arch.mlp_width - 2 * arch.width**2) * tokens  # of one token
    patches = facts.patches * arch.width * 3 * arch.patch**2
    whole = flops_per_image(arch) / 2
    assert (of_products + attention + last_block + patches) / whole == pytest.approx(1, abs=0.02)


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    seconds = {"itae-last": [0.1, 0.12], "transformers": [0.2, 0.2]}
    accuracies = dict.fromkeys(seconds, EXACT)
    races = [
        Race(size, batch, "cpu", "transformers", measure.timings(seconds, "transformers", batch, accuracies))
        for size in ("vits14", "vitb14")
        for batch in (1, 8)
    ]
    plot.plot(races, "some CPU, 2 threads", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_door_installs_what_is_missing_and_goes_on_without_it(tmp_path):
    """With a stand-in for Python that has neither matplotlib, faiss nor openvino and can't install them."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/bench", root / "scripts")
    (root / "scripts/setup").write_text("#!/bin/sh\n")
    python = root / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$*" >>"$CALLS"\ncase "$*" in *import*|*install*) exit 1 ;; esac\n')
    for file in (root / "scripts/bench", root / "scripts/setup", python):
        file.chmod(0o755)
    calls = tmp_path / "calls"
    environment = {**os.environ, "CALLS": str(calls)}
    door = [root / "scripts/bench", "--rounds", "2"]
    done = subprocess.run(door, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("going on without") == 4
    assert calls.read_text().splitlines()[-1] == "-m scripts.benchmark --rounds 2"
    assert "-m pip --disable-pip-version-check install -qq -e .[bench]" in calls.read_text()
