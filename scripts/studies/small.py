"""Runs the exporter or the runtime with a small architecture beside DINOv2's, for dry runs.

`python -m scripts.studies.small exporter ...` takes `--size small` and `--size small_reg`.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from exporter.models.architecture import ARCHITECTURES, Architecture

SMALL = Architecture("small", width=192, heads=3, depth=6)


def add_small() -> None:
    """Let `--size` take `small` and `small_reg`."""
    for arch in (SMALL, SMALL.with_registers()):
        ARCHITECTURES[arch.name] = arch


def plant_both(folder: Path, per_class: int) -> tuple[str, str, Path]:
    """Make weights with artifacts, weights with registers and without artifacts, and pictures, unless they are there.

    Returns:
        The two files of weights, and the folder of pictures.
    """
    from scripts.planting.plan import Plan
    from scripts.planting.write import PICTURES, TRUTH, WEIGHTS, write

    add_small()
    plans = {"plain": Plan(SMALL), "registers": Plan(SMALL.with_registers(), strength=0.0)}
    for name, plan in plans.items():
        if not (folder / name / TRUTH).exists():  # it is written last
            shutil.rmtree(folder / name, ignore_errors=True)
            write(plan, folder / name, per_class)
    plain, registers = (str(folder / name / WEIGHTS) for name in plans)
    return plain, registers, folder / "plain" / PICTURES


def main(words: Sequence[str]) -> int:
    """Run a package's command; returns its exit code."""
    add_small()
    package, *arguments = words
    return int(importlib.import_module(f"{package}.__main__").main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
