"""The replay of a finished model, before it is published: its golden sample and batches, by `verify`.

Engines are replayed on a GPU. So are ONNX files in bf16 by OpenVINO, since ONNX Runtime's CPU, which parity runs on,
has no bf16. The replay is a process of its own, since a broken engine or driver can end one. What is run are the files
that are published afterwards.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from runtime.contract.driver import Driver, GpuInfo, read_driver
from runtime.contract.errors import BackendError, BuildError, ParityError
from runtime.contract.instructions import has_bf16
from runtime.contract.manifest import Replay
from runtime.contract.tensorrt import LIBRARIES, RTX_CAPABILITIES, LibraryName

VERIFY = (sys.executable, "-P", "-m", "runtime", "verify")
"""`-P`: a folder called `runtime` where the user stands is another's."""
_ROOT = Path(__file__).parents[2]
"""Where the packages `exporter` and `runtime` lie."""


def cannot_replay(builder: LibraryName | Literal["onnx"]) -> str | None:
    """Return the reason why nothing here runs models of a builder, and what would help; None if something does."""
    if builder == "onnx":
        if not _is_installed("openvino"):
            return "ONNX Runtime has no bf16 on a CPU, and OpenVINO is not installed: pip install 'itae[openvino]'"
        return None if has_bf16() else "this CPU has no bf16 (AVX512-BF16 or AMX)"
    try:
        gpu = _first_gpu()[1]
    except BackendError as error:
        return str(error)
    if builder == "tensorrt-rtx" and gpu.compute_capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not run on {gpu}"
    if not _is_installed("cuda.core"):
        return f"running an engine needs the package cuda-core: pip install 'itae[{LIBRARIES[builder].extra}]'"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False


def replay(model: Path, builder: LibraryName | Literal["onnx"], *, unfused: bool) -> Replay:
    """Run a model that lies beside its manifest and golden sample, and return its figures.

    Args:
        model: the model.
        builder: what made it: an engine runs on the first GPU, an ONNX file by OpenVINO.
        unfused: whether its attention is written so that it is not fused.

    Raises:
        ParityError: its results are off, or rows of a batch differ from the same images alone.
        BuildError: it does not run.
    """
    command = [*VERIFY, os.fspath(model), "--json"]
    driver: Driver | None = None
    gpu: GpuInfo | None = None
    if builder == "onnx":
        command += ["--provider", "openvino"]
        what, cures = "the bf16 model", "try another --precision"
    else:
        driver, gpu = _first_gpu()
        other_kernels = "" if unfused else "--unfused, whose attention is no fused kernel, "
        what, cures = "the engine", f"try another --precision, {other_kernels}or another version of the builder"
    place = "OpenVINO" if gpu is None else str(gpu)
    cures += "; --no-replay publishes it as it is"
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
        raise ParityError(f"{what} is off on {place}: {'; '.join(found['failures'])}; {cures}")
    if done.returncode != 0 or not found.get("passed"):
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said and done.returncode > 0 else f"its process died ({done.returncode})"
        raise BuildError(f"{what} does not run on {place}: {reason.replace(str(model), model.name)}; {cures}")
    return Replay(
        backend=found["backend"],
        gpu=None if gpu is None else gpu.name,
        compute_capability=None if gpu is None else gpu.compute_capability,
        driver=None if driver is None else driver.version,
        samples=found["samples"],
        max_abs=found["max_abs"],
        min_cosine=found["min_cosine"],
        batch_sizes=tuple(found["batches"]["sizes"]),
        batch_distance=found["batches"]["distance"],
    )


def _first_gpu() -> tuple[Driver, GpuInfo]:
    driver = read_driver()
    return driver, driver.gpus[0]
