"""Models are run before they are published: the whole street, engines on the stand-in for a GPU, in a child process."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.__main__ import main
from exporter.build import replay
from exporter.models import architecture
from exporter.models.architecture import Architecture
from exporter.surgery import materialize
from runtime.contract.driver import Driver, GpuInfo
from runtime.contract.errors import BackendError, CheckError, one_line
from runtime.contract.instructions import has_bf16
from runtime.contract.manifest import read_manifest

ON_FAKE_GPU = Path(__file__).parents[2] / "helpers" / "verify_on_fake_gpu.py"
ARGV = ["--size", "tiny", "--weights", "random:1", "--image-size", "56", "--parity-samples", "2", "--batch", "1,2,4"]
TINY = Architecture("tiny", width=128, heads=2, depth=3)
SPOILT = {
    "off": "the engine is off on NVIDIA L4 (compute capability 8.9): ",
    "later rows": "the engine is off on NVIDIA L4",
    "largest batch": "the engine is off on NVIDIA L4",
    "odd batch": "the engine is off on NVIDIA L4",
    "nan": "the engine does not run on NVIDIA L4 (compute capability 8.9): runtime: ",
    "crash": "the engine does not run on NVIDIA L4 (compute capability 8.9): its process died",
    "refused": "TensorRT can't load model.plan: it said so",
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(architecture.ARCHITECTURES, "tiny", TINY)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Export an engine on a machine with a GPU of a compute capability, or none; it is spoilt in one way, or not."""

    def run(*argv: str, spoilt: str = "", capability: str | None = "8.9") -> int:
        def driver() -> Driver:
            if capability is None:
                raise BackendError("CUDA needs an NVIDIA GPU, and there is no driver here")
            return Driver("580.82.07", "13.0", (GpuInfo(0, "NVIDIA L4", capability, 24 << 30),))

        monkeypatch.setattr(replay, "read_driver", driver)
        monkeypatch.setattr(replay, "VERIFY", (sys.executable, str(ON_FAKE_GPU), "verify"))
        monkeypatch.setenv("SPOILT", spoilt)
        return main([*ARGV, "--backend", "tensorrt-rtx", "--out", str(tmp_path / "m.engine"), *argv])

    return run


def test_a_good_engine_is_run_and_its_figures_lie_in_the_manifest(export, tmp_path, capfd):
    assert export() == 0
    assert "replay" in capfd.readouterr().err
    found = read_manifest(tmp_path / "m.engine").replay
    assert found is not None
    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA L4", "8.9", "580.82.07")
    assert "Fake" in found.backend
    assert found.samples == 2
    assert {1, 2, 3, 4} >= set(found.batch_sizes) >= {2, 3, 4}
    assert found.min_cosine > 0.9999
    assert {path.name for path in tmp_path.iterdir()} == {"m.engine", "m.engine.json", "m.engine.parity.npz"}


def test_a_spoilt_engine_is_not_published(export, tmp_path, capfd):
    kept = tmp_path / "m.onnx"
    assert export("--quiet", "--keep-onnx", str(kept), spoilt="later rows") == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert SPOILT["later rows"] in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work folder as it is when an engine is run."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(architecture.ARCHITECTURES, "tiny", TINY)
        patched.setattr(replay, "cannot_replay", lambda _: None)
        patched.setattr(
            replay, "replay", lambda model, *_, **__: shutil.copytree(model.parent, folder / "work") and None
        )
        assert main([*ARGV, "--quiet", "--backend", "tensorrt-rtx", "--out", str(folder / "m.engine")]) == 0
    return folder / "work"


@pytest.mark.parametrize(("spoilt", "words"), SPOILT.items(), ids=SPOILT)
def test_every_way_to_be_wrong_is_found_and_the_message_says_what_helps(work, spoilt, words, monkeypatch):
    monkeypatch.setattr(replay, "read_driver", lambda: Driver(None, "13.0", (GpuInfo(0, "NVIDIA L4", "8.9", 1),)))
    monkeypatch.setattr(replay, "VERIFY", (sys.executable, str(ON_FAKE_GPU), "verify"))
    monkeypatch.setenv("SPOILT", spoilt)
    with pytest.raises(CheckError, match=re.escape(words)) as caught:
        replay.replay(work / "model.plan", "tensorrt-rtx", unfused=False)
    assert caught.value.exit_code == 1
    assert one_line(caught.value) == str(caught.value)
    assert "try another --precision, --unfused, whose attention is no fused kernel, or another" in str(caught.value)
    assert "--no-replay" in str(caught.value)
    assert str(work) not in str(caught.value)
    with pytest.raises(CheckError, match="try another --precision, or another version of the builder"):
        replay.replay(work / "model.plan", "tensorrt-rtx", unfused=True)


@pytest.mark.parametrize(
    ("argv", "capability", "reason"),
    [
        (["--no-replay"], "8.9", "--no-replay was given"),
        ([], None, "there is no driver here"),
        ([], "9.0", "TensorRT-RTX does not run on NVIDIA L4 (compute capability 9.0)"),
        ([], "8.9", "running an engine needs the package cuda-core: pip install 'itae[rtx]'"),
    ],
    ids=["asked for", "no GPU", "a GPU that the library does not support", "no cuda-core"],
)
def test_an_engine_that_is_not_run_is_published_and_says_so(
    export, tmp_path, argv, capability, reason, capfd, monkeypatch
):
    monkeypatch.setattr(replay, "_is_installed", lambda module: "cuda-core" not in reason)
    assert export(*argv, spoilt="crash", capability=capability) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "note: the engine was not run: " in said
    assert reason in said
    manifest = read_manifest(tmp_path / "m.engine")
    assert manifest.replay is None
    assert manifest.not_replayed is not None
    assert reason in manifest.not_replayed


def require_bf16():
    """Skip where nothing runs bf16."""
    pytest.importorskip("openvino")
    if not has_bf16():
        pytest.skip("needs a CPU with bf16 (AVX512-BF16 or AMX)")


@pytest.mark.parametrize("external", [False, True], ids=["weights inside", "weights beside"])
def test_a_bf16_onnx_file_is_run_by_openvino(tmp_path, capfd, external, monkeypatch):
    require_bf16()
    monkeypatch.setattr(materialize, "INLINE_LIMIT", 0 if external else materialize.INLINE_LIMIT)
    out = tmp_path / "m.onnx"
    assert main([*ARGV, "--precision", "bf16", "--out", str(out)]) == 0
    assert "\n  replay   OpenVINO" in capfd.readouterr().out
    manifest = read_manifest(out)
    found = manifest.replay
    assert found is not None
    assert (found.gpu, found.compute_capability, found.driver, found.samples) == (None, None, None, 2)
    assert found.backend.startswith("OpenVINO")
    assert found.backend.endswith("(CPU, bf16)")
    assert {2, 3} <= set(found.batch_sizes)
    assert 0.998 < found.min_cosine < 1  # it was the bf16 file, not its twin
    assert manifest.not_replayed is None
    assert (manifest.files.external_data is not None) == external


def test_the_bf16_file_that_an_engine_was_built_from_is_run_too(export, tmp_path):
    require_bf16()
    assert export("--precision", "bf16", "--keep-onnx", str(tmp_path / "m.onnx"), capability=None) == 0
    assert read_manifest(tmp_path / "m.onnx").replay is not None
    assert read_manifest(tmp_path / "m.engine").replay is None


@pytest.mark.parametrize(
    ("argv", "installed", "reason"),
    [
        ([], False, "ONNX Runtime has no bf16 on a CPU, and OpenVINO is not installed: pip install 'itae[openvino]'"),
        ([], True, "this CPU has no bf16 (AVX512-BF16 or AMX)"),
        (["--no-replay"], True, "--no-replay was given"),
    ],
    ids=["no OpenVINO", "no bf16", "asked for"],
)
def test_a_bf16_onnx_file_that_is_not_run_says_so(tmp_path, capfd, argv, installed, reason, monkeypatch):
    monkeypatch.setattr(replay, "_is_installed", lambda _: installed)
    monkeypatch.setattr(replay, "has_bf16", lambda: False)
    out = tmp_path / "m.onnx"
    assert main([*ARGV, "--precision", "bf16", "--out", str(out), *argv]) == 0
    assert f"note: the bf16 model was not run: {reason}" in " ".join(capfd.readouterr().err.split())
    manifest = read_manifest(out)
    assert (manifest.replay, manifest.not_replayed) == (None, reason)


def test_a_bf16_onnx_file_that_is_off_is_not_published(tmp_path, capfd, monkeypatch):
    wrong = "import json; print(json.dumps({'failures': ['cosine 0.9']})); raise SystemExit(1)"
    monkeypatch.setattr(replay, "VERIFY", (sys.executable, "-c", wrong))
    monkeypatch.setattr(replay, "_is_installed", lambda _: True)
    monkeypatch.setattr(replay, "has_bf16", lambda: True)
    assert main([*ARGV, "--quiet", "--precision", "bf16", "--out", str(tmp_path / "m.onnx")]) == 1
    said = "exporter: the bf16 model is off on OpenVINO: cosine 0.9; try another --precision; --no-replay publishes it"
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_parity_ran_is_not_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "VERIFY", (sys.executable, "-c", "raise SystemExit(1)"))
    assert main([*ARGV, "--quiet", "--out", str(tmp_path / "m.onnx")]) == 0
    manifest = read_manifest(tmp_path / "m.onnx")
    assert (manifest.replay, manifest.not_replayed) == (None, None)


def test_a_package_is_looked_for_without_being_imported():
    assert replay._is_installed("numpy.linalg")
    assert not replay._is_installed("numpy.missing")
    assert not replay._is_installed("missing.module")


def test_tensorrt_is_replayed_on_every_gpu(monkeypatch):
    monkeypatch.setattr(replay, "read_driver", lambda: Driver(None, "13.0", (GpuInfo(0, "NVIDIA H200", "9.0", 1),)))
    assert replay.cannot_replay("tensorrt") is None
    assert replay.cannot_replay("tensorrt-rtx") == "TensorRT-RTX does not run on NVIDIA H200 (compute capability 9.0)"


def test_the_command_is_that_of_this_project_wherever_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__main__.py").write_text("raise SystemExit('of another')")
    monkeypatch.chdir(tmp_path)
    seen = []
    real = subprocess.run
    monkeypatch.setattr(replay.subprocess, "run", lambda *a, **k: seen.append(real(*a, **k)) or seen[0])
    monkeypatch.setattr(replay, "read_driver", lambda: Driver(None, "13.0", (GpuInfo(0, "NVIDIA L4", "8.9", 1),)))
    with pytest.raises(replay.BuildError, match=r"x\.plan: no such model file"):
        replay.replay(tmp_path / "x.plan", "tensorrt-rtx", unfused=False)
    assert len(seen) == 1
