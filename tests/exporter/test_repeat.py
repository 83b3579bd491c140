"""The same command twice gives the same bytes, whatever order Python's sets have."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMITS = {"one file": 1 << 31, "external data": 0}
EXPORT = """
import sys
from exporter import ExportSpec, export
from exporter.surgery import materialize
from exporter.models.architecture import Architecture

arch = Architecture("tiny", width=48, heads=3, depth=3, registers=4, swiglu=True)
for out, limit in zip(sys.argv[1::2], sys.argv[2::2]):
    materialize.INLINE_LIMIT = int(limit)
    export(ExportSpec(out, size=arch, weights="random:0", image_size=56))
"""


def files_of(folder: Path, hash_seed: int) -> dict[str, dict[str, bytes]]:
    """Export in a process of its own, in both forms; gives the files of each."""
    arguments = ["-c", EXPORT]
    for form, limit in LIMITS.items():
        (folder / form).mkdir(parents=True)
        arguments += [str(folder / form / "m.onnx"), str(limit)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)
    return {form: {path.name: path.read_bytes() for path in (folder / form).iterdir()} for form in LIMITS}


def test_the_same_export_twice_gives_the_same_bytes(tmp_path) -> None:
    first, second = (files_of(tmp_path / str(seed), seed) for seed in (1, 2))
    assert {form: len(files) for form, files in first.items()} == {"one file": 3, "external data": 4}
    assert first == second
