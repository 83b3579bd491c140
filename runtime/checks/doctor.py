"""The machine, its backends, and whether a model runs on each of them, with advice if it does not."""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.backends import PROVIDERS, open_session
from runtime.backends.ort import import_onnxruntime
from runtime.backends.session import Session, batch_limits, image_shape, run_in_batches
from runtime.contract.comparison import compare
from runtime.contract.driver import Driver, read_driver
from runtime.contract.errors import BackendError, ItaeError, ManifestError, one_line
from runtime.contract.golden import read_golden
from runtime.contract.instructions import GIVES, cpu_instructions, cpu_name
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest, verified_manifest
from runtime.contract.tensorrt import version_pair

Result = TypeVar("Result")

PACKAGES = (
    "itae", "numpy", "pillow", "pillow-heif", "pyarrow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "cuda-core", "cuda-bindings", "torch",
)  # fmt: skip
TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")
"""The packages of TensorRT; `tensorrt` brings one of the two that are named after a version of CUDA."""
BACKENDS = ("onnxruntime", "onnxruntime-gpu", "openvino", *TENSORRT)
"""The packages that run models."""
_CUDA_OF = {"tensorrt-cu12": 12, "tensorrt-cu13": 13, "tensorrt-rtx-cu12": 12, "tensorrt-rtx-cu13": 13}
"""Packages that are built for one major version of CUDA, which the driver must have or exceed."""
_ORT_OF_CUDA_13 = (1, 27)
"""The first onnxruntime-gpu that is built for CUDA 13."""


@dataclass(frozen=True)
class Machine:
    """The machine, its GPUs and packages, whatever the model."""

    system: str
    python: str
    cpu: str
    instructions: dict[str, str]
    """Those of the CPU that decide how fast a model can run, with what they give."""
    cores: int
    """Number of cores that this process may use."""
    driver: Driver | None
    no_driver: str | None
    """The reason why there is no driver."""
    packages: dict[str, str | None]
    """Version by name; None if it is not installed."""
    onnxruntime_providers: tuple[str, ...]
    faults: tuple[str, ...]
    """Faults, each with advice; empty if nothing is broken. A GPU or package that is not there is no fault."""


@dataclass(frozen=True)
class Attempt:
    """The attempt to run a model on one provider."""

    provider: str
    runs: bool
    backend: str | None = None
    """The library that ran it, with its version."""
    problem: str | None = None
    """The reason why it doesn't run, or is off, with advice."""
    parity: bool | None = None
    """Whether the golden sample came out as it should; None if it could not be compared."""
    max_abs: float | None = None
    load_seconds: float | None = None
    run_seconds: float | None = None
    """Time to run the golden sample, or one batch if there is none."""

    @property
    def passed(self) -> bool:
        """Whether the model runs, and is not off."""
        return self.runs and self.parity is not False


@dataclass(frozen=True)
class Diagnosis:
    """Machine and model."""

    machine: Machine
    model: str | None = None
    built_by: str | None = None
    """`tensorrt-rtx 1.7.1.116 for linux-x86_64`."""
    broken: str | None = None
    """The fault of the model's files."""
    attempts: tuple[Attempt, ...] = ()
    """The first is the default provider's."""

    @property
    def passed(self) -> bool:
        """Whether the model runs by default; without a model, whether nothing is broken."""
        if self.model is None:
            return not self.machine.faults
        return self.broken is None and bool(self.attempts) and self.attempts[0].passed


def examine(model: Path | None = None) -> Diagnosis:
    """Look at this machine, and try `model` on every provider, each in a process of its own: some crash theirs."""
    machine = look_around()
    if model is None:
        return Diagnosis(machine)
    try:
        manifest = verified_manifest(model)
    except ManifestError as error:
        return Diagnosis(machine, str(model), broken=one_line(error))
    built_by = f"{manifest.builder.name} {manifest.builder.version} for {manifest.builder.platform}"
    attempts = []
    for provider in providers(manifest):
        try:
            attempts.append(in_a_process(attempt, model, provider))
        except BackendError as error:
            attempts.append(Attempt(provider, runs=False, problem=one_line(error)))
    return Diagnosis(machine, str(model), built_by, attempts=tuple(attempts))


def providers(manifest: Manifest) -> tuple[str, ...]:
    """The providers that may run a model, the default first: those of ONNX, or only `auto` for engines."""
    is_onnx = manifest.builder.name == "onnx"
    return tuple(name for name in PROVIDERS if name != "auto") if is_onnx else ("auto",)


def attempt(model: Path, provider: str) -> Attempt:
    """Load a model on a provider and replay its golden sample once; batches are left to `verify`."""
    start = time.perf_counter()
    try:
        session = open_session(model, provider)
    except ItaeError as error:
        return Attempt(provider, runs=False, problem=one_line(error))
    try:
        loaded = time.perf_counter() - start
        return _replay(model, provider, session, loaded)
    except ItaeError as error:
        return Attempt(provider, runs=False, backend=session.name, problem=one_line(error))
    finally:
        session.close()


def _replay(model: Path, provider: str, session: Session, loaded: float) -> Attempt:
    manifest = session.manifest
    start = time.perf_counter()
    try:
        golden = read_golden(model, manifest)
    except ManifestError as error:
        session.run(np.zeros((batch_limits(manifest)[0], *image_shape(manifest.input)), manifest.input.dtype))
        seconds, problem = time.perf_counter() - start, f"not compared: {one_line(error)}"
        return Attempt(provider, True, session.name, problem, None, None, loaded, seconds)
    start = time.perf_counter()
    got = run_in_batches(session, golden.input)
    seconds = time.perf_counter() - start
    parity = compare(got, golden, manifest.parity.limits)
    off = None if parity.passed else f"its figures are off: {'; '.join(parity.failures)}; see `verify`"
    max_abs = float(parity.max_abs) if math.isfinite(parity.max_abs) else None  # JSON has no NaN
    return Attempt(provider, True, session.name, off, parity.passed, max_abs, loaded, seconds)


def look_around() -> Machine:
    """This machine; nothing is imported that could crash without a GPU."""
    packages = {name: _version(name) for name in PACKAGES}
    driver, no_driver = None, None
    try:
        driver = read_driver()
    except BackendError as error:
        no_driver = one_line(error)
    found, ort_fault = _onnxruntime_providers(packages)
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_name(),
        instructions={name: GIVES[name] for name in cpu_instructions()},
        cores=usable_cores(),
        driver=driver,
        no_driver=no_driver,
        packages=packages,
        onnxruntime_providers=found,
        faults=tuple(filter(None, [ort_fault, *_faults(packages, driver, no_driver)])),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _onnxruntime_providers(packages: dict[str, str | None]) -> tuple[tuple[str, ...], str | None]:
    """ONNX Runtime's providers, and what is wrong with it."""
    if not (packages["onnxruntime"] or packages["onnxruntime-gpu"]):
        return (), None
    try:
        return tuple(import_onnxruntime("what is installed does not load, it").get_available_providers()), None
    except BackendError as error:
        return (), one_line(error)


def _faults(packages: dict[str, str | None], driver: Driver | None, no_driver: str | None) -> list[str]:
    faults = []
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        faults.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall both, "
            "then pip install 'itae[cpu]' or 'itae[gpu]'"
        )
    if not any(packages[name] for name in BACKENDS):
        faults.append("nothing here runs a model: pip install 'itae[cpu]'")
    for name in ("tensorrt", "tensorrt-rtx"):
        twins = [f"{name}-cu12", f"{name}-cu13"]
        if all(map(_version, twins)):
            faults.append(
                f"{' and '.join(twins)} are both installed and overwrite each other's files: pip uninstall both, with "
                f"{name} and their -bindings and -libs, then install one"
            )
    if any(packages[name] for name in TENSORRT) and packages["cuda-core"] is None:
        faults.append("TensorRT is installed without cuda-core, which engines need: pip install cuda-core")
    if no_driver is not None and "CUDA error" in no_driver:
        faults.append(f"{no_driver}: reboot, or install the driver again")
    if driver is not None:
        faults += _newer_than(driver)
    return faults


def _newer_than(driver: Driver) -> list[str]:
    """The packages that are built for a newer CUDA than the driver's; a minor version may be newer."""
    needs = {name: cuda for name, cuda in _CUDA_OF.items() if _version(name)}
    bindings, ort = _version("cuda-bindings"), _version("onnxruntime-gpu")
    if bindings is not None:
        needs[f"cuda-bindings {bindings}"] = version_pair(bindings)[0]
    if ort is not None and version_pair(ort) >= _ORT_OF_CUDA_13:
        needs[f"onnxruntime-gpu {ort}"] = 13
    return [
        f"{name} needs a driver for CUDA {cuda}, here is one for {driver.cuda}: upgrade the driver, or install what is "
        f"for CUDA 12: {_for_cuda_12(name)}"
        for name, cuda in needs.items()
        if version_pair(driver.cuda)[0] < cuda
    ]


def _for_cuda_12(name: str) -> str:
    if name.startswith("tensorrt-rtx"):
        return "pip uninstall tensorrt-rtx tensorrt-rtx-cu13, then pip install tensorrt-rtx-cu12"
    if name.startswith("cuda-bindings"):
        return "pip install 'cuda-bindings<13'"
    return "pip uninstall onnxruntime-gpu tensorrt tensorrt-cu13, then pip install 'itae[gpu-cu12]'"


def in_a_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process.

    Raises:
        BackendError: the process can't start, or died: a library crashed it, or the system ran out of memory.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_stdout_to_stderr) as pool:
        try:
            submitted = pool.submit(function, *arguments)
        except OSError as error:
            raise BackendError(f"a process for it can't be started ({error.strerror or one_line(error)})") from error
        try:
            return submitted.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise BackendError(
                "its process died: a library crashed, or there was not enough memory; compare the versions above with "
                "the library's own requirements"
            ) from error


def _stdout_to_stderr() -> None:
    """Send the output of libraries to stderr, since stdout is the report."""
    os.dup2(2, 1)


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything as data."""
    attempts = [asdict(one) | {"passed": one.passed} for one in diagnosis.attempts]
    return asdict(diagnosis) | {"attempts": attempts, "passed": diagnosis.passed}
