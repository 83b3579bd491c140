"""The replay of a finished engine, before it is published: its golden sample and batches, by `verify`.

It runs in a process of its own, since a broken engine or driver can end one. What is run are the files that are
published afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.contract.driver import Driver, GpuInfo, read_driver
from runtime.contract.errors import BackendError, BuildError, ParityError
from runtime.contract.manifest import Replay
from runtime.contract.tensorrt import RTX_CAPABILITIES, LibraryName

VERIFY = (sys.executable, "-P", "-m", "runtime", "verify")
"""`-P`: a folder called `runtime` where the user stands is another's."""
_ROOT = Path(__file__).parents[2]
"""Where the packages `exporter` and `runtime` lie."""
_UNFUSED = "--unfused, whose attention is no fused kernel, "


def cannot_replay(backend: LibraryName) -> str | None:
    """Return the reason why no GPU here runs engines of a library; None if the first one does."""
    try:
        gpu = _first_gpu()[1]
    except BackendError as error:
        return str(error)
    if backend == "tensorrt-rtx" and gpu.compute_capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not run on {gpu}"
    return None


def replay(model: Path, *, unfused: bool) -> Replay:
    """Run an engine that lies beside its manifest and golden sample, on the first GPU, and return its figures.

    Args:
        model: the engine.
        unfused: whether its attention is written so that it is not fused.

    Raises:
        ParityError: its results are off, or rows of a batch differ from the same images alone.
        BuildError: it does not run.
    """
    cures = (
        f"try another --precision, {'' if unfused else _UNFUSED}or another version of the builder; "
        "--no-replay publishes the engine as it is"
    )
    driver, gpu = _first_gpu()
    command = [*VERIFY, os.fspath(model), "--json"]
    paths = [os.fspath(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        found = {}
    if found.get("failures"):
        raise ParityError(f"the engine is off on {gpu}: {'; '.join(found['failures'])}; {cures}")
    if done.returncode != 0 or not found.get("passed"):
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said and done.returncode > 0 else f"its process died ({done.returncode})"
        raise BuildError(f"the engine does not run on {gpu}: {reason.replace(str(model), model.name)}; {cures}")
    return Replay(
        backend=found["backend"],
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=driver.version,
        samples=found["samples"],
        max_abs=found["max_abs"],
        min_cosine=found["min_cosine"],
        batch_sizes=tuple(found["batches"]["sizes"]),
        batch_distance=found["batches"]["distance"],
    )


def _first_gpu() -> tuple[Driver, GpuInfo]:
    driver = read_driver()
    return driver, driver.gpus[0]
