"""Engines whose build needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from gpu_marks import ENGINES, needs_tensorrt

from exporter.__main__ import main
from exporter.build import build_log
from exporter.build.engine import choose_backend
from runtime.contract.driver import require_gpu
from runtime.contract.manifest import read_manifest

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> int:
    """Fails, and does not skip, where there is none: these tests were asked for."""
    return require_gpu("scripts/gpu-check")


@needs_tensorrt
def test_auto_prefers_tensorrt_on_a_machine_with_a_gpu():
    assert choose_backend("auto").backend == "tensorrt"


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("backend", ENGINES)
def test_vits14_engine_is_built(tmp_path, backend, precision):
    engine = tmp_path / "x.engine"
    command = [sys.executable, "-m", "exporter", "--size", "vits14", "--weights", "random:0", "--batch", "1,8,16"]
    command += ["--backend", backend, "--precision", precision, "--out", engine]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "x.engine.json").read_text())
    assert manifest["builder"]["name"] == backend
    assert manifest["files"]["model"]["bytes"] == engine.stat().st_size > 21e6 * (2 if precision == "fp16" else 4)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("told_by", ["the log or the inspector", "the inspector alone"])
def test_fusion_is_told(tmp_path, monkeypatch, backend, told_by):
    if told_by == "the inspector alone":
        monkeypatch.setattr(build_log, "logged_kernels", lambda _: ())
    command = ["--size", "vits14", "--weights", "random:0", "--batch", "1,8,16", "--attenuate", "mask", "--quiet"]
    assert main([*command, "--backend", backend, "--require-fusion", "--out", str(tmp_path / "x.engine")]) == 0
    found = read_manifest(tmp_path / "x.engine").fusion
    assert found is not None
    assert (found.sites, found.fused, found.unfused_layers) == (12, 12, ())
    assert all(len(kernels) == 1 for kernels in found.kernels)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("backend", ENGINES)
def test_unfused_attention_is_no_single_kernel_and_the_engine_is_right(tmp_path, backend, precision):
    command = ["--size", "vits14", "--weights", "random:0", "--batch", "1,8,16", "--layers", "all", "--unfused"]
    command += ["--backend", backend, "--precision", precision, "--quiet", "--out", str(tmp_path / "x.engine")]
    assert main(command) == 0  # a fused attention, or figures that are off, would end it
    manifest = read_manifest(tmp_path / "x.engine")
    assert manifest.fusion is not None
    assert manifest.fusion.fused == 0
    assert manifest.replay is not None


@needs_tensorrt
def test_a_timing_cache_is_filled_and_taken_again(tmp_path):
    cache = tmp_path / "cache"
    command = ["--size", "vits14", "--weights", "random:0", "--backend", "tensorrt", "--timing-cache", str(cache)]
    sizes = []
    for _ in range(2):
        assert main([*command, "--quiet", "--out", str(tmp_path / "x.engine")]) == 0
        sizes.append(cache.stat().st_size)
    assert sizes[0] > 1000
    assert sizes[1] >= sizes[0]
