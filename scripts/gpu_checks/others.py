"""Checks that are commands of their own: the tests marked `gpu`, C++, the benchmark, the study of the paper's table."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from exporter.models.architecture import Architecture
from runtime.contract.errors import one_line
from scripts.gpu_checks.check import Failed, Figures, Skipped
from scripts.gpu_checks.child import ROOT, command
from scripts.gpu_checks.machine import Road, Target
from scripts.gpu_checks.models import Case, draw, path_of

ITAE_EMBED = ROOT / "build" / "cpp" / "itae-embed"
BUILD_CPP = ROOT / "scripts" / "build-cpp"
STUDY = (sys.executable, "-m", "scripts.studies")
CPP_LIMITS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
"""Largest difference of an element of an embedding by C++ to Python's, on the same library."""
CPP_PICTURES = 16


@dataclass(frozen=True)
class CppLibrary:
    """How C++ is given a library of engines."""

    root: str
    """The variable that names the prefix of its headers, for scripts/build-cpp."""
    library: str
    """The variable that names its library, for `itae-embed`."""
    package: str
    """The Python package in whose folder the library lies."""


CPP_LIBRARIES = {
    "tensorrt": CppLibrary("ITAE_TENSORRT_ROOT", "ITAE_TENSORRT", "tensorrt_libs"),
    "tensorrt-rtx": CppLibrary("ITAE_TENSORRT_RTX_ROOT", "ITAE_TENSORRT_RTX", "tensorrt_rtx_libs"),
}
GPU_TESTS = ("tests/gpu", "tests/runtime/clustering")
"""Where tests are marked `gpu`; tests/test_gpu_checks.py holds this."""


def run_gpu_tests(target: Target, out: Path, log: Path, seconds: float) -> Figures:
    """The tests marked `gpu`; in a dry run they are collected, which imports them.

    Raises:
        Failed: a test failed, or none ran.
    """
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *GPU_TESTS]
    if target.dry:
        listed = command(log, seconds, *pytest, "--collect-only", "-q")
        found = sum("::" in line for line in listed.splitlines())
        if not found:
            raise Failed("no test is marked `gpu`")
        return {"collected": found}
    report = out / "pytest-gpu.xml"
    report.unlink(missing_ok=True)
    problem = None
    try:
        log_text = command(log, seconds, *pytest, "-rs", f"--junitxml={report}")
        (out / "pytest-gpu.txt").write_text(log_text, encoding="utf-8")
    except Failed as failed:
        problem = failed.reason
    if not report.exists():
        raise Failed(problem or "pytest wrote no report")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    ran = counts["tests"] - counts["skipped"]
    skips = sorted({one.get("message", "") for one in suite.iter("skipped")})
    figures: Figures = {**counts, "skipped because": skips}
    bad = [
        f"{case.get('name')}: {one_line(Exception(one.get('message', '')))[:200]}"
        for case in suite.iter("testcase")
        for one in (*case.findall("failure"), *case.findall("error"))
    ]
    if bad or problem:
        raise Failed(f"{len(bad)} tests failed, see {report.name}; the first: {(bad or [problem])[0]}", figures)
    if not ran:
        raise Failed("every test was skipped", figures)
    return figures


def build_cpp(log: Path, seconds: float, *, may_install: bool) -> Figures:
    """Build `itae-embed` where it is not there yet, or lacks a library whose headers a variable names.

    Raises:
        Skipped: there is no build script, or it may not be run.
        Failed: it failed, or left out a library that it was to be built with.
    """
    wanted = [library for library, one in CPP_LIBRARIES.items() if one.root in os.environ]
    there = cpp_backends(log, seconds) if ITAE_EMBED.is_file() else []
    if ITAE_EMBED.is_file() and all(library in there for library in wanted):
        return {"built before": "yes", "backends": there}
    if not BUILD_CPP.is_file():
        raise Skipped("there is neither build/cpp/itae-embed nor scripts/build-cpp")
    if not may_install:
        raise Skipped("build/cpp/itae-embed is not built, and --no-install was given: scripts/build-cpp builds it")
    command(log, seconds, BUILD_CPP)
    if not ITAE_EMBED.is_file():
        raise Failed("scripts/build-cpp ended well and left no build/cpp/itae-embed")
    there = cpp_backends(log, seconds)
    if missing := [library for library in wanted if library not in there]:
        raise Failed(f"scripts/build-cpp left out {', '.join(missing)}", {"backends": there})
    return {"built before": "no", "backends": there}


def cpp_backends(log: Path, seconds: float) -> list[str]:
    """The backends that `itae-embed` was built with."""
    lines = command(log, seconds, ITAE_EMBED, "--version").splitlines()
    found = [line.removeprefix("backends: ") for line in lines if line.startswith("backends: ")]
    return found[0].split(", ") if found else []


def check_cpp(target: Target, folder: Path, log: Path, seconds: float, case: Case, road: Road) -> Figures:
    """The same pictures, from files, by C++ and by Python on one model; and C++'s replay of the golden sample.

    Raises:
        Skipped: `itae-embed` was built without the library of an engine.
        Failed: they differ.
    """
    backend = road.library or "onnxruntime"
    if backend not in cpp_backends(log, seconds):
        if road.library is None:
            raise Failed("build/cpp/itae-embed was built without ONNX Runtime")
        root = CPP_LIBRARIES[road.library].root
        raise Skipped(f"itae-embed was built without {backend}: set {root} to a prefix with its headers and library")
    model = path_of(folder, case, road)
    pictures = folder / "pictures"
    if not pictures.is_dir():
        pictures.mkdir()
        for number, picture in enumerate(draw(target)[:CPP_PICTURES]):
            Image.fromarray(picture).save(pictures / f"{number:03}.jpg", quality=90)
    device = "cuda" if road.library is not None else road.name
    provider, environment = ["--backend", backend, "--device", device], library_variable(road)
    command(log, seconds, ITAE_EMBED, model, *provider, "--verify", environment=environment)
    out = folder / f"{model.name}-cpp.npy"
    command(log, seconds, ITAE_EMBED, model, pictures, *provider, "--out", out, environment=environment)
    store, ours = folder / f"{model.name}-store", folder / f"{model.name}-python.npy"
    runtime = [sys.executable, "-m", "runtime"]
    command(log, seconds, *runtime, "embed", model, pictures, "--provider", road.provider, "--out", store)
    command(log, seconds, *runtime, "export", store, ours)
    got, expected = np.load(out), np.load(ours)
    if got.shape != expected.shape:
        raise Failed(f"C++ gave embeddings of shape {got.shape}, Python {expected.shape}")
    figures: Figures = {"pictures": len(got), "max abs": float(np.abs(got - expected).max())}
    if not figures["max abs"] <= CPP_LIMITS[case.precision]:
        raise Failed(f"max abs {figures['max abs']:.3g} is over {CPP_LIMITS[case.precision]}", figures)
    return figures


def library_variable(road: Road) -> dict[str, str]:
    """The variable that gives C++ the library of Python's package: an engine wants the version that built it."""
    if road.library is None:
        return {}
    names = CPP_LIBRARIES[road.library]
    spec = importlib.util.find_spec(names.package)
    if names.library in os.environ or spec is None or not spec.submodule_search_locations:
        return {}
    return {names.library: str(spec.submodule_search_locations[0])}


def run_bench(target: Target, out: Path, arch: Architecture) -> Figures:
    """`scripts/bench` on the device at one size: our models beside eager PyTorch and torch.compile.

    A contestant that could not be loaded is named; one that is another model fails the check.
    """
    from scripts.benchmark.__main__ import cores, races
    from scripts.benchmark.contestants import choose
    from scripts.benchmark.gpu import gpu_name
    from scripts.benchmark.report import Report, as_json, as_markdown, machine
    from scripts.benchmark.report import Skipped as LeftOut

    names = ["itae-last", "torch-eager"] if target.dry else None
    skipped: list[LeftOut] = []
    found = races(arch, target.device, choose(names, target.device), target.bench_batches, target.bench_rounds, skipped)
    here = machine(cores(), None if target.dry else gpu_name())
    report = Report(here, target.bench_rounds, tuple(found), tuple(skipped))
    (out / f"bench-{arch.name}.json").write_text(as_json(report) + "\n", encoding="utf-8")
    with contextlib.suppress(KeyError):  # a size that the tables of published speeds don't know
        (out / f"bench-{arch.name}.md").write_text(as_markdown(report) + "\n", encoding="utf-8")
    figures: Figures = {}
    for race in found:
        for timing in race.timings:
            figures[f"{timing.name} / {race.reference}, batch {race.batch}"] = round(timing.ratio[1], 3)
    for one in skipped:
        figures[f"{one.name} left out"] = one.reason[:100]
    wrong = [f"{one.name}: {one.reason}" for one in skipped if one.reason.startswith("wrong")]
    if wrong:
        raise Failed("; ".join(wrong), figures)
    return figures


def run_study(target: Target, out: Path, log: Path, seconds: float, data: Sequence[str]) -> Figures:
    """The paper's table, by `scripts/study`, on the GPU; in a dry run that of its small planted models.

    Raises:
        Skipped: the weights are random.
        Failed: a part of the study failed.
    """
    if target.dry:
        words = ["--dry-run"]
    elif target.weights != "auto":
        raise Skipped("it needs the official weights, and these are random")
    else:
        words = ["--data", *data, "--device", "cuda"]
    folder = out / "study"
    text = command(log, seconds, *STUDY, *words, "--out", folder)
    figures: Figures = {"table": "study/table.md", "lines": len(text.splitlines())}
    for one in json.loads((folder / "study.json").read_bytes())["datasets"]:
        for found in one["evaluations"]:
            if found["normalisation"] == "raw":
                figures[f"NMI {one['name']} {Path(found['model']).stem}"] = round(found["nmi"]["mean"], 4)
    return figures


def look_for_faults(found: dict[str, object]) -> Figures:
    """The machine as `doctor` sees it; a fault that it finds fails."""
    faults = [str(one) for one in found["faults"]]  # type: ignore[attr-defined]
    driver = found["driver"]
    figures: Figures = {"PyTorch": str(found["torch"]["version"])}  # type: ignore[index]
    if isinstance(driver, dict):
        figures |= {"driver": driver["version"], "CUDA": driver["cuda"], "GPUs": len(driver["gpus"])}
    if faults:
        raise Failed("; ".join(faults), figures)
    return json.loads(json.dumps(figures))
