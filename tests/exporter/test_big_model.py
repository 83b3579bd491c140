"""ViT-g, whose weights no protobuf file can hold: what an export takes, and what it leaves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.manifest import verified_manifest

ROOT = Path(__file__).parents[2]
MOST = 1.5
"""Of the weights' bytes, at the peak."""
MEMORY, DISK = 12 << 30, 15 << 30
"""Bytes that must be free; the disk holds the trace, the model and a second one for its flags."""


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_vitg14_takes_at_most_half_again_its_weights_in_memory(tmp_path) -> None:
    if (memory := available_memory()) < MEMORY:
        pytest.skip(f"{memory >> 30} GiB of memory are available, {MEMORY >> 30} needed")
    if (disk := shutil.disk_usage(tmp_path).free) < DISK:
        pytest.skip(f"{disk >> 30} GiB of disk are free, {DISK >> 30} needed")
    out = tmp_path / "g.onnx"
    command = [sys.executable, "-m", "exporter", "--size", "vitg14", "--weights", "random:0", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    manifest = verified_manifest(out)
    weights = manifest.files.external_data.bytes
    assert weights > 4.5e9
    assert usage.ru_maxrss << 10 <= MOST * weights
    assert manifest.parity.checks[0].max_abs <= manifest.parity.limits.max_abs
    assert {path.name for path in tmp_path.iterdir()} == {
        "g.onnx",
        "g.onnx.data",
        "g.onnx.json",
        "g.onnx.parity.npz",
    }
