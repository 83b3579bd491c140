"""`scripts/gpu-check`: its loop, its process, what it installs, its plan for machines that are not here, a dry run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from rehash import rehash

from exporter.models.architecture import architecture
from runtime.contract.driver import Driver, GpuInfo
from runtime.contract.errors import BackendError, CheckError, UsageError
from scripts.gpu_checks import __main__ as gpu_check
from scripts.gpu_checks import install as installing
from scripts.gpu_checks import models, others
from scripts.gpu_checks.check import Check, Failed, Outcome, Skipped, choose, run_all
from scripts.gpu_checks.child import ROOT, Child, command
from scripts.gpu_checks.machine import Road, Target, dry_target, gpu_target
from scripts.gpu_checks.models import Case
from scripts.gpu_checks.plan import Places, make_plan
from scripts.gpu_checks.report import Report, as_json, as_junit, as_markdown
from scripts.studies.__main__ import parser as study_parser


def outcomes_of(*checks: Check, deadline: float | None = None, ticks: float = 1.0) -> dict[str, Outcome]:
    """Run checks by a clock that moves with each look."""
    now = iter(np.arange(0.0, 1000.0, ticks).tolist())
    found = run_all(checks, longest=60, deadline=deadline, tell=lambda _: None, clock=lambda: next(now))
    return {one.name: one for one in found}


def raising(error: BaseException):
    def run(_: float):
        raise error

    return run


def good(_: float):
    return {"x": 1}


# The loop


def test_a_failure_stops_nothing_and_every_kind_of_error_is_one():
    found = outcomes_of(
        Check("a", raising(Failed("off", {"max abs": 3.0}))),
        Check("b", raising(CheckError("ours\nin two lines"))),
        Check("c", raising(ZeroDivisionError("a library's"))),
        Check("d", raising(TimeoutError("it ran longer than 60 s"))),
        Check("e", good),
    )
    assert [one.status for one in found.values()] == ["failed"] * 4 + ["passed"]
    assert found["a"].figures == {"max abs": 3.0}
    assert found["b"].reason == "ours in two lines"
    assert found["c"].reason == "ZeroDivisionError: a library's"
    assert found["e"].figures == {"x": 1}
    assert [one.is_wrong for one in found.values()] == [True] * 4 + [False]


def test_what_needs_a_check_that_did_not_pass_is_skipped_and_counts_as_that_one_does():
    found = outcomes_of(
        Check("broken", raising(Failed("off"))),
        Check("after it", good, needs=("broken",)),
        Check("impossible", raising(Skipped("no GPU"))),
        Check("after that", good, needs=("impossible",)),
        Check("forgotten", raising(Skipped("could have", excused=False))),
    )
    assert found["after it"].reason == "it needs `broken`, which failed"
    assert [name for name, one in found.items() if one.is_wrong] == ["broken", "after it", "forgotten"]


def test_minutes_leave_out_the_rest_and_say_so():
    asked = []
    checks = [
        Check("first", lambda left: asked.append(left) or {}),
        Check("slow", raising(TimeoutError("longer"))),
        Check("late", good),
        Check("after the late one", good, needs=("late",)),
    ]
    found = outcomes_of(*checks, deadline=3.0)
    assert asked == [3.0]
    assert [one.status for one in found.values()] == ["passed", "skipped", "skipped", "skipped"]
    assert found["slow"].reason == "left out: --minutes ended while it ran"
    assert found["after the late one"].reason == found["late"].reason == "left out: --minutes were over"
    assert not any(one.is_wrong for one in found.values())


def test_only_takes_what_the_chosen_checks_need_in_the_plans_order():
    checks = [Check(name, good, needs) for name, needs in (("a", ()), ("b", ("a",)), ("c", ()), ("golden d", ("b",)))]
    assert [one.name for one in choose(checks, ["golden"])] == ["a", "b", "golden d"]
    assert choose(checks, []) == checks
    with pytest.raises(UsageError, match="--only wrong: no check's name holds that; names begin with a, b, c, golden"):
        choose(checks, ["wrong"])


# The process


def double(number: int) -> int:
    return 2 * number


def fail() -> None:
    raise Failed("off", {"x": 1})


def skip() -> None:
    raise Skipped("it could have run", False)


def raise_unpicklable() -> None:
    raise type("Local", (Exception,), {})("only here")


@pytest.fixture
def child(tmp_path):
    process = Child(tmp_path / "log")
    yield process
    process.close()


def test_a_process_survives_success_and_is_replaced_after_everything_else(child, tmp_path):
    first = child.call(60, os.getpid)
    assert child.call(60, double, 21) == 42
    assert child.call(60, os.getpid) == first
    with pytest.raises(Failed, match="off") as caught:
        child.call(60, fail)
    assert caught.value.figures == {"x": 1}
    with pytest.raises(Skipped) as skipped:
        child.call(60, skip)
    assert not skipped.value.excused
    second = child.call(60, os.getpid)
    with pytest.raises(Failed, match="Local: only here"):
        child.call(60, raise_unpicklable)
    with pytest.raises(Failed, match=r"its process died \(SIGABRT\): a library crashed"):
        child.call(60, os.abort)
    assert len({first, second, child.call(60, os.getpid), os.getpid()}) == 4


def test_a_check_that_hangs_is_ended(child):
    child.call(60, double, 1)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="longer than 0 s"):
        child.call(0.2, time.sleep, 100)
    assert time.monotonic() - start < 30
    assert child.call(60, double, 2) == 4


def test_a_command_gives_its_output_or_its_last_words(tmp_path):
    assert command(tmp_path / "log", 60, "sh", "-c", "echo out; echo err >&2") == "out\n"
    with pytest.raises(Failed, match=r"^exit code 3: the last words$"):
        command(tmp_path / "log", 60, "sh", "-c", "echo first >&2; echo the last words >&2; exit 3")
    with pytest.raises(TimeoutError):
        command(tmp_path / "log", 0.2, "sh", "-c", "sleep 100 & sleep 100")


# What is installed

H200 = Driver("580.1", "13.0", (GpuInfo(0, "NVIDIA H200", "9.0", 140 << 30),))
L4_CUDA_12 = Driver("550.1", "12.4", (GpuInfo(0, "NVIDIA L4", "8.9", 24 << 30),))
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch")


def machine(**more) -> dict:
    """A machine as `scripts/setup` leaves it."""
    packages = dict.fromkeys(PACKAGES) | {"onnxruntime": "1.32.0", "torch": "2.13.0"}
    found = {
        "packages": packages,
        "torch": {"version": "2.13.0+cpu", "cuda": None, "problem": "PyTorch 2.13.0+cpu is built without CUDA"},
        "libraries": {"tensorrt": "it is not installed", "tensorrt-rtx": None},
        "onnxruntime_providers": ("CPUExecutionProvider",),
        "faults": (),
        "driver": {"version": "580.1", "cuda": "13.0", "gpus": [{}]},
        "cpu": "a CPU", "cores": 16, "system": "Linux", "python": "3.11",
    }  # fmt: skip
    return found | more


@pytest.mark.parametrize(
    ("driver", "tensorrt", "cuda"), [(H200, "tensorrt>=10.14", "cu13"), (L4_CUDA_12, "tensorrt-cu12>=10.9", "cu12")]
)
def test_what_is_installed_is_for_the_drivers_cuda(driver, tensorrt, cuda):
    calls = []
    found = installing.install(machine(), driver, lambda *words: calls.append(" ".join(words)))
    assert [(one.name, one.status) for one in found] == [
        ("install torch", "passed"), ("install tensorrt", "passed"), ("install onnxruntime-gpu", "passed"),
    ]  # fmt: skip
    assert calls[0] == "install -q --force-reinstall torch==2.13.0"
    assert calls[1].startswith(f"install -q {tensorrt} cuda-core[{cuda}]")
    assert calls[2].startswith("install -q onnxruntime-gpu[cuda,cudnn]")
    assert calls[3] == "uninstall -q -y onnxruntime"
    assert calls[4].startswith("install -q --force-reinstall --no-deps onnxruntime-gpu[cuda,cudnn]")


def test_what_can_not_be_had_is_skipped_with_pips_words_and_the_cpus_onnxruntime_stays():
    calls = []

    def pip(*words: str) -> None:
        calls.append(words)
        raise Failed("exit code 1: ERROR: No matching distribution found")

    found = installing.install(machine(), H200, pip)
    assert [one.status for one in found] == ["skipped"] * 3
    assert all("No matching distribution" in one.reason and not one.is_wrong for one in found)
    assert not any("uninstall" in words for words in calls)


def test_what_is_there_is_not_installed_again():
    packages = dict.fromkeys(PACKAGES, "1.0") | {"onnxruntime": None}
    there = machine(packages=packages, torch={"version": "2.13.0", "cuda": "13.0", "problem": None})
    assert installing.install(there, H200, lambda *_: pytest.fail("nothing is missing")) == []


# The plan on machines that are not here


def plan_for(target: Target, tmp_path: Path, found: dict, **more) -> dict[str, Check]:
    options = {"may_install": True, "study": None} | more
    checks = make_plan(target, Places(tmp_path, tmp_path, tmp_path / "log"), None, found, **options)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for number, check in enumerate(checks):
        assert set(check.needs) <= set(names[:number]), check.name
    return {check.name: check for check in checks}


def reason(check: Check) -> str | None:
    """Why a check is skipped at once; None for one that would run."""
    with contextlib.suppress(AttributeError):  # there is no child process
        try:
            check.run(0.0)
        except Skipped as skipped:
            return skipped.reason if skipped.excused else "it could have run"
    return None


def reasons_of(plan: dict[str, Check]) -> dict[str, str | None]:
    """The reasons of all checks that run in the child process."""
    here = ("machine", "gpu-tests", "c++", "study")
    return {name: reason(check) for name, check in plan.items() if name.split()[0] not in here}


def test_a_machine_with_everything_runs_the_whole_matrix_smallest_and_fp16_first(tmp_path):
    whole = machine(
        torch={"version": "2.13.0", "cuda": "13.0", "problem": None},
        libraries={"tensorrt": None, "tensorrt-rtx": None},
        onnxruntime_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    )
    plan = plan_for(gpu_target(whole, L4_CUDA_12), tmp_path, whole, study=["cifar10:x"])
    for road in ("tensorrt", "tensorrt-rtx", "cuda"):
        for size in ("vits14", "vitb14", "vitl14"):
            for kind in ("itae", "plain"):
                for precision in ("fp16", "fp32", "bf16"):
                    for check in ("export", "golden", "batches", "pictures", "tensors"):
                        assert f"{check} {road} {size}-{kind}-{precision}" in plan
    assert "fusion tensorrt vitl14-plain-bf16" in plan
    assert "fusion cuda vits14-itae-fp16" not in plan
    names = list(plan)
    assert names[:2] == ["machine", "export tensorrt vits14-itae-fp16"]
    assert names.index("build-log tensorrt") < names.index("gpu-tests") < names.index("export cuda vitb14-plain-fp32")
    assert names[-1] == "study"
    assert not any(reasons_of(plan).values())


@pytest.mark.parametrize(("capability", "level"), [("8.9", "ampere-plus"), ("7.5", "same-compute-capability")])
def test_an_engine_for_other_gpus_is_checked_where_tensorrt_builds(capability, level, tmp_path):
    whole = machine(libraries={"tensorrt": None, "tensorrt-rtx": None})
    here = dataclasses.replace(L4_CUDA_12.gpus[0], compute_capability=capability)
    target = gpu_target(whole, dataclasses.replace(L4_CUDA_12, gpus=(here,)))
    plan = plan_for(target, tmp_path, whole)
    travelling = [name for name in plan if level in name]
    assert travelling[0] == f"export tensorrt vits14-itae-fp16-{level}"
    assert {name.split()[0] for name in travelling} == {"export", "golden", "batches", "pictures", "tensors"}
    assert {name.split()[1] for name in travelling} == {"tensorrt"}


def test_an_engine_for_other_gpus_is_exported_for_later_versions_too(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(models, "export", lambda spec, _: asked.append(spec))
    case = Case(architecture("vits14"), itae=True, precision="fp16", travels="ampere-plus")
    for one in (case, dataclasses.replace(case, travels="none")):
        with pytest.raises(AttributeError):  # what the stand-in gives has no manifest
            models.export_case(dry_target(), tmp_path, one, Road("tensorrt", "tensorrt"))
    assert [(spec.hardware_compatibility, spec.version_compatible) for spec in asked] == [
        ("ampere-plus", True),
        ("none", False),
    ]


# C++


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Stand-ins for `itae-embed` and for the script that builds it, which prints the backends given."""

    def make(before: str | None, after: str = "onnxruntime") -> None:
        embed, script = tmp_path / "itae-embed", tmp_path / "build-cpp"
        for name in ("ITAE_TENSORRT_ROOT", "ITAE_TENSORRT_RTX_ROOT"):
            monkeypatch.delenv(name, raising=False)
        embed.unlink(missing_ok=True)
        if before is not None:
            embed.write_text(f"#!/bin/sh\necho itae-embed 0.1.0\necho backends: {before}\n")
            embed.chmod(0o755)
        script.write_text(f"#!/bin/sh\nprintf '#!/bin/sh\\necho backends: {after}\\n' >{embed}\nchmod +x {embed}\n")
        script.chmod(0o755)
        monkeypatch.setattr(others, "ITAE_EMBED", embed)
        monkeypatch.setattr(others, "BUILD_CPP", script)

    return make


def build(tmp_path, *, may_install: bool = True):
    return others.build_cpp(tmp_path / "log", 60, may_install=may_install)


def test_cpp_is_built_again_for_a_library_whose_headers_are_named(built, monkeypatch, tmp_path):
    built("onnxruntime", "onnxruntime, tensorrt")
    assert build(tmp_path) == {"built before": "yes", "backends": ["onnxruntime"]}
    monkeypatch.setenv("ITAE_TENSORRT_ROOT", "/opt/tensorrt")
    assert build(tmp_path) == {"built before": "no", "backends": ["onnxruntime", "tensorrt"]}
    assert build(tmp_path)["built before"] == "yes"
    built(None)
    with pytest.raises(Skipped, match="--no-install was given"):
        build(tmp_path, may_install=False)
    monkeypatch.setenv("ITAE_TENSORRT_RTX_ROOT", "/opt/rtx")
    with pytest.raises(Failed, match="left out tensorrt-rtx"):
        build(tmp_path)


def test_an_engine_is_skipped_by_a_cpp_without_its_library(built, tmp_path):
    built("onnxruntime")
    case, road = Case(architecture("vits14"), itae=True), Road("tensorrt", "tensorrt")
    with pytest.raises(Skipped, match="built without tensorrt: set ITAE_TENSORRT_ROOT to a prefix") as caught:
        others.check_cpp(dry_target(), tmp_path, tmp_path / "log", 60, case, road)
    assert caught.value.excused
    built("none")
    with pytest.raises(Failed, match="without ONNX Runtime"):
        others.check_cpp(dry_target(), tmp_path, tmp_path / "log", 60, case, Road("cpu"))


def test_an_h200_with_torch_alone_still_runs_all_that_torch_can_show(tmp_path):
    bare = machine(torch={"version": "2.13.0", "cuda": "13.0", "problem": None})
    plan = plan_for(gpu_target(bare, H200), tmp_path, bare)
    reasons = reasons_of(plan)
    for precision in ("fp32", "fp16", "bf16"):
        assert reasons[f"eager torch-cuda vits14-itae-{precision}"] is None
        assert reasons[f"eager torch-cuda vitl14-itae-{precision}"] is None
    assert reasons["half-range"] is reasons["k-means"] is reasons["bench vits14"] is None
    assert reasons["export tensorrt vits14-itae-fp16"] == "it is not installed"
    assert "does not support NVIDIA H200 (compute capability 9.0)" in reasons["export tensorrt-rtx vits14-itae-fp16"]
    assert reasons["export cuda vits14-itae-fp16"] == "onnxruntime-gpu is not installed"


def test_a_torch_without_cuda_skips_what_needs_it(tmp_path):
    plan = plan_for(gpu_target(machine(), H200), tmp_path, machine())
    assert reason(plan["k-means"]) == reason(plan["eager torch-cuda vits14-itae-fp16"])
    assert "without CUDA" in str(reason(plan["k-means"]))


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch, tmp_path):
    def none(what: str) -> int:
        raise BackendError(f"{what} needs an NVIDIA GPU, and there is no driver here")

    monkeypatch.setattr(gpu_check, "require_gpu", none)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "gpu-check: gpu-check needs an NVIDIA GPU, and there is no driver here\n"
    assert not (tmp_path / "out").exists()


def test_the_tests_marked_gpu_lie_where_they_are_looked_for():
    marked = [path for path in (ROOT / "tests").rglob("*.py") if "pytest.mark.gpu" in path.read_text()]
    ours = {Path(__file__), ROOT / "tests/test_matrix.py"}  # which tests the mark itself
    places = [ROOT / place for place in others.GPU_TESTS]
    assert places[0] / "test_run.py" in marked
    for path in set(marked) - ours:
        assert any(path.is_relative_to(place) for place in places), path


STUDY = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[-1])
out.mkdir()
scores = [{"model": "plain.onnx", "normalisation": "raw", "nmi": {"mean": 0.5}}]
(out / "study.json").write_text(json.dumps({"datasets": [{"name": "cifar10", "evaluations": scores}]}))
print("|", *sys.argv[1:], "|")
sys.exit("a model failed" if "bad:x" in sys.argv else 0)
"""


def test_the_study_runs_on_the_gpu_with_official_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(others, "STUDY", (sys.executable, "-c", STUDY))
    arguments = (tmp_path, tmp_path / "log", 60.0)
    target = gpu_target(machine(), H200)
    with pytest.raises(Skipped, match="needs the official weights"):
        others.run_study(target, *arguments, ["cifar10:x"])
    official = dataclasses.replace(target, weights="auto")
    figures = others.run_study(official, *arguments, ["cifar10:x"])
    assert figures == {"table": "study/table.md", "lines": 1, "NMI cifar10 plain": 0.5}
    (tmp_path / "study/study.json").unlink()
    (tmp_path / "study").rmdir()
    with pytest.raises(Failed, match="exit code 1: a model failed"):
        others.run_study(official, *arguments, ["bad:x"])


def test_a_dry_run_of_the_study_is_the_studys_own(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(others, "command", lambda log, seconds, *words: called.append(words) or "")
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.json").write_text('{"datasets": []}')
    others.run_study(dry_target(), tmp_path, tmp_path / "log", 60.0, [])
    assert called == [(*others.STUDY, "--dry-run", "--out", tmp_path / "study")]
    words = called[0][called[0].index("scripts.studies") + 1 :]
    assert study_parser().parse_args([str(word) for word in words]).dry_run


# The report

SOME = (
    Outcome("machine", "passed", seconds=0.1, figures={"PyTorch": "2.13.0"}),
    Outcome("export tensorrt vits14-itae-fp16", "passed", figures={"MB": 44.1, "build s": 60.0}),
    Outcome("golden tensorrt vits14-itae-fp16", "failed", "cosine 0.5 is under the limit", 1.0,
            {"max abs": float("nan"), "min cosine": 0.5}),
    Outcome("fusion tensorrt vits14-itae-fp16", "passed", figures={"fused": 12, "of": 12}),
    Outcome("export tensorrt-rtx vits14-itae-fp16", "skipped", "TensorRT-RTX does not support NVIDIA H200"),
    Outcome("study", "skipped", "it could have run", excused=False),
    Outcome("bench vitl14", "skipped", "left out: --minutes were over"),
)  # fmt: skip


def report(*outcomes: Outcome, dry: bool = False) -> Report:
    return Report(dry, str(H200.gpus[0]), "random:0", machine(), outcomes, 90.0, ("golden", "k-means"))


def test_the_report_says_first_what_is_wrong():
    text = as_markdown(report(*SOME))
    assert text.startswith("# gpu-check: FAILED\n\n3 checks passed, 1 failed, 3 were skipped, in 1.5 minutes.")
    wrong = text.partition("## What is wrong")[2].partition("##")[0]
    assert re.findall(r"\*\*(.+?)\*\* \((\w+)\)", wrong) == [
        ("golden tensorrt vits14-itae-fp16", "failed"), ("study", "skipped"),
    ]  # fmt: skip
    assert "(failed): cosine 0.5 is under the limit; max abs nan, min cosine 0.5" in wrong
    assert "(skipped): it could have run\n" in wrong
    assert "| vits14-itae-fp16 | tensorrt | **FAILED** nan, 0.5 |  |  | 12, 12 |  |" in text
    assert "- left out: --minutes were over: bench vitl14" in text.partition("## Left out")[2].partition("##")[0]
    assert "TensorRT-RTX does not support NVIDIA H200: export" in text.partition("## Skipped")[2]
    assert "dry run" not in text
    assert "- weights: random:0, not the official ones\n" in text
    assert "- only the checks that --only golden,k-means names, and what they need\n" in text
    assert as_markdown(report(*SOME, dry=True)).startswith("# gpu-check, dry run: FAILED\n")


def test_the_rows_of_a_model_lie_together():
    names = ("golden tensorrt b-fp16", "golden tensorrt a-fp16", "eager torch-cuda b-fp16", "golden cuda a-fp16")
    text = as_markdown(report(*(Outcome(name, "passed", figures={"max abs": 0.1}) for name in names)))
    rows = re.findall(r"^\| ([ab]-fp16) \| (\S+) \|", text, re.MULTILINE)
    assert rows == [("b-fp16", "tensorrt"), ("b-fp16", "torch-cuda"), ("a-fp16", "tensorrt"), ("a-fp16", "cuda")]


def test_the_json_is_json_and_the_junit_has_a_test_for_each_check():
    data = json.loads(json.dumps(as_json(report(*SOME)), allow_nan=False))
    assert data["passed"] is False
    assert data["only"] == ["golden", "k-means"]
    assert data["checks"][2]["figures"] == {"max abs": None, "min cosine": 0.5}
    assert [one["could_have_run"] for one in data["checks"]] == [True, True, True, True, False, True, False]
    suite = ElementTree.fromstring(as_junit(report(*SOME))).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "gpu-check"
    assert suite.find("testcase").get("time") == "0.100"
    assert b'name="gpu-check, dry run"' in as_junit(report(*SOME, dry=True))
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["7", "2", "0", "2"]  # what could have run and was skipped is a failure


def test_a_run_in_which_nothing_ran_did_not_pass():
    nothing = report(Outcome("k-means", "skipped", "PyTorch is built without CUDA"))
    assert not nothing.passed
    assert "nothing was shown" in as_markdown(nothing)
    suite = ElementTree.fromstring(as_junit(nothing)).find("testsuite")
    assert suite is not None
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == ["2", "1", "1"]
    assert report(SOME[0]).passed


# A dry run


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> Path:
    """The folder of a whole dry run, its models in `models`."""
    out = tmp_path_factory.mktemp("gpu-check")
    (out / "gpu-check.xml").write_text("of an earlier run")
    arguments = ["--dry-run", "--no-install", "--out", str(out), "--models", str(out / "models")]
    assert gpu_check.main(arguments) == 0, (out / "gpu-check.log").read_text()[-3000:]
    return out


def statuses(out: Path) -> dict[str, str]:
    return {one["name"]: one["status"] for one in json.loads((out / "gpu-check.json").read_text())["checks"]}


def test_a_dry_run_passes_ten_checks_of_every_kind(dry_run):
    found = statuses(dry_run)
    passed = [name for name, status in found.items() if status == "passed"]
    assert len(passed) >= 10
    kinds = {name.split()[0] for name in passed}
    assert kinds >= {
        "machine", "export", "golden", "batches", "reference", "pictures", "tensors", "build-log", "eager",
        "half-range", "k-means", "gpu-tests", "bench",
    }  # fmt: skip
    if others.ITAE_EMBED.is_file():
        assert {"c++ build", "c++ cpu tiny-itae-fp32"} <= set(passed)
    assert {"export cpu tiny-itae-int8", "golden cpu tiny-itae-int8", "batches cpu tiny-itae-int8"} <= set(passed)
    assert "failed" not in found.values()
    assert (dry_run / "evidence/tensorrt-rtx-build.log").stat().st_size > 10_000
    text = (dry_run / "gpu-check.md").read_text()
    assert text.startswith("# gpu-check, dry run: passed\n")
    assert "It says nothing about one" in text
    data = json.loads((dry_run / "gpu-check.json").read_text())
    assert data["dry_run"] is True
    flagged = {one["name"]: one["figures"].get("patches flagged") for one in data["checks"]
               if one["name"].startswith("golden")}  # fmt: skip
    assert all((share is None) == ("plain" in name) for name, share in flagged.items())
    assert all(0 < share < 0.5 for share in flagged.values() if share is not None)
    assert data["seconds"] < 600


def test_a_spoilt_model_makes_it_exit_with_1(dry_run, tmp_path, capsys):
    arguments = ["--dry-run", "--no-install", "--models", str(dry_run / "models"), "--only", "golden,pictures"]
    model = dry_run / "models" / "tiny-plain-fp32-cpu.onnx"
    before = model.read_bytes()
    graph = onnx.load(model)
    weight = max(graph.graph.initializer, key=lambda one: np.prod(one.dims))
    array = onnx.numpy_helper.to_array(weight) * np.float32(1.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(graph, model)
    rehash(model)
    try:
        assert gpu_check.main([*arguments, "--out", str(tmp_path / "bad")]) == 1
    finally:
        model.write_bytes(before)
        rehash(model)
    found = statuses(tmp_path / "bad")
    failed = [name for name, status in found.items() if status == "failed"]
    passed = {name for name, status in found.items() if status == "passed"}
    assert {"golden cpu tiny-itae-fp32", "pictures cpu tiny-itae-fp32"} <= passed  # these models were not spoilt
    assert failed == ["golden cpu tiny-plain-fp32", "pictures cpu tiny-plain-fp32"]
    assert "FAILED: " in capsys.readouterr().out
    assert (tmp_path / "bad" / "gpu-check.md").read_text().startswith("# gpu-check, dry run: FAILED\n")


def test_list_prints_the_names_and_writes_nothing(tmp_path, capsys):
    assert gpu_check.main(["--dry-run", "--list", "--only", "k-means", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "k-means\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], "--minutes 0: must be more than 0"),
        (["--only", "nothing-like-it"], "no check's name holds that"),
        (["--minutes", "soon"], "invalid float value"),
        (["--study", "cifar10:x"], "with --dry-run it takes none"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys, tmp_path):
    assert gpu_check.main(["--dry-run", "--out", str(tmp_path), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpu-check: ")]
    assert words in line


def test_the_dry_target_differs_in_its_size_only():
    dry, real = dry_target(), gpu_target(machine(), H200)
    assert dry.sizes[0].depth < real.sizes[0].depth == architecture("vits14").depth
    assert (dry.device, real.device) == ("cpu", "cuda")
