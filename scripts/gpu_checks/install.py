"""Installs what a machine with a GPU lacks, each part by itself: what can't be had stops nothing else."""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.contract.driver import Driver
from runtime.contract.tensorrt import version_pair
from scripts.gpu_checks.check import Failed, Outcome
from scripts.gpu_checks.child import ROOT, command

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
LONGEST = 1800.0
"""Seconds that one installation may last: PyTorch with CUDA is gigabytes."""

Pip = Callable[..., None]
"""Takes pip's words; raises Failed or TimeoutError."""


def extra_for(driver: Driver) -> str:
    """The extra of this project that is for the driver's CUDA."""
    return "gpu" if version_pair(driver.cuda)[0] >= 13 else "gpu-cu12"


def pip_into(log: Path) -> Pip:
    """Return what runs pip in this environment; pip's output goes to `log`."""
    return lambda *words: void(command(log, LONGEST, *PIP, *words))


def void(_: object) -> None:
    """Take a result that nobody needs."""


def install(found: dict[str, Any], driver: Driver, pip: Pip) -> list[Outcome]:
    """Install PyTorch with CUDA, TensorRT and onnxruntime-gpu where they are missing.

    Args:
        found: the result of `machine.survey`.
        driver: whose CUDA decides the versions.
        pip: runs pip.

    Returns:
        An outcome for each part that was missing: passed, or skipped with pip's last words.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {one.partition("[")[0].partition(">")[0]: one for one in extras[extra_for(driver)]}
    cuda = [one for name, one in asked.items() if name.startswith("cuda-")]
    (tensorrt,) = (one for name, one in asked.items() if name.startswith("tensorrt"))
    outcomes = []

    def part(name: str, *steps: tuple[str, ...]) -> None:
        start = time.monotonic()
        try:
            for words in steps:
                pip(*words)
        except (Failed, TimeoutError) as error:
            reason = f"can't be installed here: {error.args[0]}"
            outcomes.append(Outcome(f"install {name}", "skipped", reason, time.monotonic() - start))
        else:
            outcomes.append(Outcome(f"install {name}", "passed", seconds=time.monotonic() - start))

    packages = found["packages"]
    if found["torch"]["cuda"] is None:
        version = (found["torch"]["version"] or "").partition("+")[0]
        # The same version: a build for the CPU counts as installed, so it has to be forced.
        part("torch", ("install", "-q", "--force-reinstall", f"torch=={version}" if version else "torch"))
    if not any(packages[name] for name in ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")):
        part("tensorrt", ("install", "-q", tensorrt, *cuda))
    if not packages["onnxruntime-gpu"]:
        # Both packages own the same files: the one for the CPU goes only once the other is there, which is then
        # written again.
        gpu = asked["onnxruntime-gpu"]
        steps = [("install", "-q", gpu, *cuda)]
        if packages["onnxruntime"]:
            steps.append(("uninstall", "-q", "-y", "onnxruntime"))
            steps.append(("install", "-q", "--force-reinstall", "--no-deps", gpu))
        part("onnxruntime-gpu", *steps)
    return outcomes
