"""What needs a GPU to build. Running engines is not there yet; when it is, its tests belong here too."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from exporter.engine import choose_backend
from runtime.backends.cuda import require_gpu

pytestmark = pytest.mark.gpu

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None, reason="pip install tensorrt, beside everything else, to try it"
)


@pytest.fixture(autouse=True)
def gpu() -> int:
    """Fails, and does not skip, where there is none: these tests were asked for."""
    return require_gpu("scripts/gpu-check")


@needs_tensorrt
def test_auto_prefers_tensorrt_on_a_machine_with_a_gpu():
    assert choose_backend("auto") == "tensorrt"


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("backend", [pytest.param("tensorrt", marks=needs_tensorrt), "tensorrt-rtx"])
def test_vits14_engine_is_built(tmp_path, backend, precision):
    engine = tmp_path / "x.engine"
    command = [sys.executable, "-m", "exporter", "--size", "vits14", "--weights", "random:0", "--batch", "1,8,16"]
    command += ["--backend", backend, "--precision", precision, "--out", engine]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "x.engine.json").read_text())
    assert manifest["builder"]["name"] == backend
    assert manifest["files"]["model"]["bytes"] == engine.stat().st_size > 21e6 * (2 if precision == "fp16" else 4)
