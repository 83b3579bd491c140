"""ViT-g, whose weights no protobuf file can hold: what an export takes, and what it leaves."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.contract.manifest import verified_manifest
from scripts.benchmark.peak import run_to_end

ROOT = Path(__file__).parents[2]
MOST = 1.5
"""Of the weights' bytes, at the peak."""
MEMORY, DISK = 12 << 30, 15 << 30
"""Bytes that must be free; the disk holds the trace, the model and a second one for its flags."""


EXPORT = """
import sys
from exporter import ExportSpec, export
from exporter.surgery import materialize
from exporter.models.architecture import Architecture

materialize.INLINE_LIMIT = 0  # weights on disk, as those of 2 GiB and more are
arch = Architecture("wide", width=int(sys.argv[1]), heads=8, depth=4, swiglu=True)
export(ExportSpec(sys.argv[2], size=arch, weights="random:0", image_size=56))
"""


def peak_memory(*command: str | Path) -> int:
    """Run Python with these arguments; gives the most bytes it held at a time."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    peak = run_to_end(process)
    assert process.returncode == 0
    return peak


def test_memory_grows_by_at_most_half_again_of_what_the_weights_grow(tmp_path) -> None:
    peaks, weights = [], []
    for width in (64, 1536):  # what all else takes is in both
        out = tmp_path / f"{width}.onnx"
        peaks.append(peak_memory("-c", EXPORT, str(width), out))
        weights.append(verified_manifest(out).files.external_data.bytes)
    assert weights[1] - weights[0] > 400e6
    assert peaks[1] - peaks[0] <= MOST * (weights[1] - weights[0])


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
    peak = peak_memory("-m", "exporter", "--size", "vitg14", "--weights", "random:0", "--out", out)
    manifest = verified_manifest(out)
    weights = manifest.files.external_data.bytes
    assert weights > 4.5e9
    assert peak <= MOST * weights
    assert manifest.parity.checks[0].max_abs <= manifest.parity.limits.max_abs
    assert {path.name for path in tmp_path.iterdir()} == {
        "g.onnx",
        "g.onnx.data",
        "g.onnx.json",
        "g.onnx.parity.npz",
    }
