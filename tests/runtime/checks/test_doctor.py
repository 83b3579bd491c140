"""doctor: what it finds, on machines as they are and as they could be."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from multiprocessing import popen_spawn_posix
from pathlib import Path

import numpy as np
import pytest
from fake_driver import FakeDriver

from runtime.__main__ import main
from runtime.checks import doctor
from runtime.checks.doctor import Attempt, Diagnosis, Machine
from runtime.contract import driver
from runtime.contract.driver import Driver, GpuInfo, read_driver
from runtime.contract.errors import BackendError
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import manifest_path, parity_path, read_manifest, record_file

ROOT = Path(__file__).parents[3]


@pytest.fixture
def call(capfd):
    """Run the command in this process; give its exit code, stdout and stderr."""

    def run(*arguments):
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = main(["doctor", *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        return code, out, err

    return run


# The driver


GPUS = (GpuInfo(0, "NVIDIA GPU 10", "8.6", 10 << 30), GpuInfo(1, "NVIDIA GPU 11", "8.7", 11 << 30))


def test_the_driver_and_its_gpus_are_read(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert read_driver() == Driver("580.82.07", "12.9", GPUS)


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlSystemGetDriverVersion", "no library"])
def test_a_driver_whose_version_is_unknown_is_still_read(failing, monkeypatch) -> None:
    def load(name: str) -> FakeDriver:
        if failing == "no library" and name == driver._MANAGEMENT:
            raise OSError(name)
        return FakeDriver(failing=failing)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert read_driver() == Driver(None, "12.9", GPUS)


def test_a_driver_that_fails_says_where(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(failing="cuDeviceGetName"))
    with pytest.raises(BackendError, match="CUDA error 999 of cuDeviceGetName"):
        read_driver()


# The machine


@pytest.fixture
def installed(monkeypatch):
    """Make the environment hold these packages alone."""

    def pretend(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(doctor.metadata, "version", version)

    return pretend


def test_this_machine_has_what_it_has(call) -> None:
    code, out, err = call("--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["passed"]
    machine = found["machine"]
    assert machine["python"] == sys.version.split()[0]
    assert machine["cores"] == usable_cores()
    assert machine["packages"]["numpy"] == metadata.version("numpy")
    assert "CPUExecutionProvider" in machine["onnxruntime_providers"]
    assert (machine["driver"] is None) == ("driver" in machine["no_driver"] if machine["no_driver"] else False)
    assert machine["faults"] == []


def test_a_machine_with_gpus_is_told_with_them(monkeypatch, call) -> None:
    monkeypatch.setattr(doctor, "read_driver", lambda: Driver("580.82.07", "13.0", GPUS))
    code, out, _ = call()
    assert code == 0
    assert "GPU 1             NVIDIA GPU 11, compute 8.7, 11.0 GiB\n" in out
    assert "driver            580.82.07, up to CUDA 13.0\n" in out


FAULTS = {
    "both": ({"onnxruntime": "1.32", "onnxruntime_gpu": "1.26"}, "both installed and overwrite each other"),
    "nothing": ({}, r"nothing here runs a model: pip install 'itae\[cpu\]'"),
    "no cuda-core": ({"tensorrt": "10.9"}, "without cuda-core"),
    "old driver": (
        {"tensorrt_rtx": "1.7", "tensorrt_rtx_cu13": "1.7", "cuda_core": "1.2"},
        "tensorrt-rtx-cu13 needs a driver for CUDA 13, here is one for 12.9: upgrade the driver, .*tensorrt-rtx-cu12$",
    ),
    "old driver for TensorRT": (
        {"tensorrt": "11.4", "tensorrt_cu13": "11.4", "cuda_core": "1.2"},
        r"tensorrt-cu13 needs a driver for CUDA 13, .* pip install 'itae\[gpu-cu12\]'$",
    ),
    "old driver for the bindings": (
        {"tensorrt_cu12": "11.4", "cuda_core": "1.2", "cuda_bindings": "13.5.0"},
        "cuda-bindings 13.5.0 needs a driver for CUDA 13, .* pip install 'cuda-bindings<13'$",
    ),
    "old driver for ONNX Runtime": (
        {"onnxruntime_gpu": "1.31.1"},
        r"onnxruntime-gpu 1.31.1 needs a driver for CUDA 13, .*'itae\[gpu-cu12\]'$",
    ),
    "two of TensorRT": (
        {"tensorrt_cu12": "11.4", "tensorrt_cu13": "11.4", "cuda_core": "1.2"},
        "tensorrt-cu12 and tensorrt-cu13 are both installed and overwrite each other's files: pip uninstall both",
    ),
    "TensorRT by its own name": ({"tensorrt_cu12": "10.9"}, "without cuda-core"),
}


@pytest.mark.parametrize(("packages", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_with_its_cure_and_exit_code_1(packages, message, installed, monkeypatch) -> None:
    installed(**packages)
    cuda = "13.0" if "tensorrt_cu13" in packages and "tensorrt_cu12" in packages else "12.9"
    monkeypatch.setattr(doctor, "read_driver", lambda: Driver("575", cuda, GPUS))
    diagnosis = doctor.examine()
    (fault,) = diagnosis.machine.faults
    assert re.search(message, fault)
    assert not diagnosis.passed


OF_CUDA_12 = {"onnxruntime_gpu": "1.26.0", "tensorrt_cu12": "11.4", "cuda_core": "1.2", "cuda_bindings": "12.9.10"}
OF_CUDA_13 = {"onnxruntime_gpu": "1.31.1", "tensorrt_cu13": "11.4", "cuda_core": "1.2", "cuda_bindings": "13.5.0"}


@pytest.mark.parametrize(
    ("cuda", "packages"),
    [("12.9", OF_CUDA_12), ("13.0", OF_CUDA_13), ("13.0", OF_CUDA_12)],
    ids=["CUDA 12", "CUDA 13", "packages of CUDA 12 on a newer driver"],
)
def test_packages_that_fit_the_driver_are_no_fault(cuda, packages, installed, monkeypatch) -> None:
    installed(**packages)
    monkeypatch.setattr(doctor, "read_driver", lambda: Driver("580", cuda, GPUS))
    monkeypatch.setattr(doctor, "_onnxruntime_providers", lambda _: ((), None))
    assert doctor.look_around().faults == ()


def test_a_driver_that_fails_is_a_fault_and_one_that_is_missing_is_none(monkeypatch) -> None:
    for text, faults in (("no driver here", 0), ("the driver here fails: CUDA error 803", 1)):

        def refuse(text: str = text):
            raise BackendError(text)

        monkeypatch.setattr(doctor, "read_driver", refuse)
        assert len(doctor.look_around().faults) == faults


def test_an_onnxruntime_that_does_not_load_is_a_fault(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    machine = doctor.look_around()
    assert machine.onnxruntime_providers == ()
    assert "does not load" in machine.faults[0]


def test_it_sends_no_telemetry_and_leaves_nothing_in_the_home_folder(tiny, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "runtime", "doctor", str(tiny), "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["passed"]
    assert list(home.iterdir()) == []


# A model


def test_a_model_is_tried_on_every_provider_and_its_golden_sample_compared(tiny, call) -> None:
    code, out, err = call(tiny, "--json")
    assert (code, err) == (0, "")
    attempts = {one["provider"]: one for one in json.loads(out)["attempts"]}
    assert list(attempts) == ["cpu", "cuda", "openvino"]
    cpu = attempts["cpu"]
    assert (cpu["runs"], cpu["parity"], cpu["problem"]) == (True, True, None)
    assert 0 < cpu["max_abs"] < 1e-4
    assert cpu["load_seconds"] > 0
    assert "ONNX Runtime" in cpu["backend"]
    if importlib.util.find_spec("openvino") is not None:
        assert attempts["openvino"]["parity"]
    if not attempts["cuda"]["runs"]:
        assert "CUDA" in attempts["cuda"]["problem"]


def test_the_table_says_whether_the_model_runs_by_default(tiny, call) -> None:
    code, out, _ = call(tiny)
    assert code == 0
    assert f"{tiny}: files as its manifest says, made by onnx 0 for test\n  cpu       yes, on ONNX Runtime" in out
    assert out.endswith("  by default (cpu) it runs here\n")


def test_an_engine_without_a_gpu_does_not_run_and_says_what_to_do(make_model, tmp_path, call, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    path = make_model(tmp_path, "tiny.engine", builder="tensorrt-rtx", batch=(1, 1, 1))
    monkeypatch.setattr(doctor, "in_a_process", lambda function, *arguments: function(*arguments))
    code, out, _ = call(path)
    assert code == 1
    assert "  auto      no: " in out
    assert "needs an NVIDIA GPU, and there is no driver here" in out
    assert "export the .onnx twin" in out
    assert out.endswith("it does NOT run here as it should\n")


def test_files_that_are_not_the_manifests_are_told_and_never_loaded(tiny, call, monkeypatch) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-1])
    monkeypatch.setattr(doctor, "attempt", None)
    code, out, _ = call(tiny)
    assert code == 1
    assert f"{tiny}: BROKEN: {tiny} has" in out


def test_a_missing_model_is_told_beside_the_machine(tmp_path, call) -> None:
    code, out, _ = call(tmp_path / "x.onnx")
    assert code == 1
    assert "no such model file" in out
    assert out.startswith("system")


def test_a_model_whose_figures_are_off_is_told(make_model, tmp_path) -> None:
    path = make_model(tmp_path)
    with np.load(parity_path(path)) as file:
        arrays = dict(file)
    arrays["embedding"] = arrays["embedding"] + np.float32(0.5)
    np.savez(parity_path(path), **arrays)
    manifest = read_manifest(path)
    files = manifest.files.model_copy(update={"parity": record_file(parity_path(path))})
    manifest_path(path).write_bytes(manifest.model_copy(update={"files": files}).to_json())
    found = doctor.attempt(path, "cpu")
    assert (found.runs, found.parity, found.passed) == (True, False, False)
    assert "its figures are off" in found.problem


def test_a_model_without_its_golden_sample_is_run_all_the_same(tiny) -> None:
    parity_path(tiny).unlink()
    found = doctor.attempt(tiny, "cpu")
    assert (found.runs, found.parity, found.passed) == (True, None, True)
    assert "not compared: can't read" in found.problem


def test_a_model_that_gives_nan_is_no_crash(make_model, tmp_path) -> None:
    found = doctor.attempt(make_model(tmp_path, nan=True), "cpu")
    assert not found.passed
    assert found.problem


def test_a_library_that_crashes_its_process_is_told() -> None:
    with pytest.raises(BackendError, match="its process died: a library crashed"):
        doctor.in_a_process(os.abort)
    assert doctor.in_a_process(max, 3, 4) == 4


def test_a_crash_is_a_no_of_that_provider_alone(tiny, monkeypatch) -> None:
    real = doctor.attempt

    def run(function, model, provider):
        if provider == "cuda":
            raise BackendError("its process died")
        return real(model, provider)

    monkeypatch.setattr(doctor, "in_a_process", run)
    diagnosis = doctor.examine(tiny)
    assert {one.provider: one.runs for one in diagnosis.attempts}["cuda"] is False
    assert diagnosis.passed


def test_what_is_off_by_default_fails_and_what_is_off_elsewhere_does_not() -> None:
    machine = Machine("", "", "", {}, 1, None, "none", {}, (), ())
    good, off = Attempt("cpu", runs=True, parity=True), Attempt("cuda", runs=True, parity=False)
    assert Diagnosis(machine, "x", attempts=(good, off)).passed
    assert not Diagnosis(machine, "x", attempts=(off, good)).passed
    assert not Diagnosis(machine, "x").passed


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EAGAIN, "no more processes")]
)
def test_a_child_that_cannot_start_is_a_finding(error, tiny, monkeypatch, capfd) -> None:
    def start(*_):
        raise error

    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", start)
    assert main(["doctor", str(tiny)]) == 1
    assert f"a process for it can't be started ({error.strerror})" in capfd.readouterr().out
