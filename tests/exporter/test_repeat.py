"""The same command twice gives the same bytes, whatever order Python's sets have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPORT = """
import sys
from exporter import ExportSpec, export
from exporter.surgery import materialize
from exporter.models.architecture import Architecture

materialize.INLINE_LIMIT = int(sys.argv[2])
arch = Architecture("tiny", width=48, heads=3, depth=3, registers=4, swiglu=True)
export(ExportSpec(sys.argv[1], size=arch, weights="random:0", image_size=56))
"""


def files_of(folder: Path, inline_limit: int, hash_seed: int) -> dict[str, bytes]:
    """Export in a process of its own; gives what lies in the folder then."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    arguments = ["-c", EXPORT, str(folder / "m.onnx"), str(inline_limit)]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("inline_limit", "files"), [(1 << 31, 3), (0, 4)], ids=["one file", "external data"])
def test_the_same_export_twice_gives_the_same_bytes(inline_limit, files, tmp_path) -> None:
    first, second = (files_of(tmp_path / str(seed), inline_limit, seed) for seed in (1, 2))
    assert len(first) == files
    assert first == second
