"""TensorRT 10, 11 and TensorRT-RTX as the exporter and the runtime load them: their names, import, log, data types.

Importing a library is safe on any machine. Without a GPU the rest of TensorRT crashes the process: ask
`driver.require_gpu` before. TensorRT-RTX builds engines without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from runtime.contract.errors import BackendError, one_line

_log = logging.getLogger(__name__)

TrtObject = Any
"""An object of TensorRT's bindings, which ship no types."""
LibraryName = Literal["tensorrt", "tensorrt-rtx"]
"""As in a manifest's `builder.name` and in the exporter's `--backend`."""
Record = Callable[[str, str], None]
"""Takes a severity (`verbose`, `info`, `warning`, `error`, `internal error`) and a message."""

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of the GPUs that TensorRT-RTX supports: RTX GPUs; not H100 and H200, whose is 9.0."""
AMPERE = (8, 0)
"""The compute capability from which on TensorRT builds and runs engines for all later GPUs."""
MAX_ERRORS = 3
"""Number of errors that are quoted."""
MAX_ERROR_CHARS = 1200
"""Length of one quoted error: TensorRT quotes whole tensors."""
_KEPT_ERRORS = 100
_NO_DRIVER = "cudaError 35"
"""In a line that TensorRT-RTX adds to every error where there is no GPU; it would read as the cause."""
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""TensorRT's data types that numpy calls otherwise."""


@dataclass(frozen=True)
class Library:
    """The facts about a library that are known before it is imported."""

    title: str
    module: str
    extra: str
    """The extra of this project that installs it."""
    oldest: tuple[int, int]
    """The oldest version that is supported, major and minor. The extras of pyproject.toml ask for no older one."""


LIBRARIES: dict[str, Library] = {
    "tensorrt": Library("TensorRT", "tensorrt", "gpu", (10, 9)),
    "tensorrt-rtx": Library("TensorRT-RTX", "tensorrt_rtx", "rtx", (1, 2)),
}


@dataclass(frozen=True)
class KnownFault:
    """A public report of wrong results, without any error, of transformers on images."""

    versions: tuple[tuple[int, int], ...]
    """Versions of TensorRT, major and minor."""
    capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs."""
    precisions: tuple[str, ...]
    what: str
    source: str


KNOWN_FAULTS = (
    KnownFault(
        ((10, 16),),
        ("12.0",),
        ("fp16", "bf16"),
        "fused attention gave wrong results",
        "https://github.com/NVIDIA/TensorRT/issues/4837",
    ),
    KnownFault(
        ((10, 16),),
        ("8.9",),
        ("fp16",),
        "equal rows of one batch gave different results",
        "https://github.com/NVIDIA/TensorRT/issues/4796",
    ),
    KnownFault(
        ((10, 11), (11, 1)),
        ("8.9", "12.0"),
        ("fp32", "fp16"),
        "batches of more than one image gave wrong results",
        "https://github.com/NVIDIA/TensorRT/issues/4853",
    ),
    KnownFault(
        ((11, 1),),
        ("12.0",),
        ("fp32",),
        "equal rows of one batch gave different results, all wrong",
        "https://github.com/NVIDIA/TensorRT/issues/4813",
    ),
)
"""Reports about supported versions, each open and without a word of ours against it: a reason to check, no proof."""


def known_faults(library: str, version: str, capability: str, precision: str) -> list[str]:
    """Return a warning for each public report about engines like this one; empty for TensorRT-RTX."""
    if library != "tensorrt":
        return []
    return [
        f"TensorRT {version} on compute capability {capability}: {fault.what} in {precision} by a public report "
        f"({fault.source}); check the engine on this GPU by `verify`"
        for fault in KNOWN_FAULTS
        if version_pair(version) in fault.versions
        and capability in fault.capabilities
        and precision in fault.precisions
    ]


def import_library(name: str, what: str) -> ModuleType:
    """Import a library of `LIBRARIES`.

    Args:
        name: which one.
        what: what needs it; the message begins with it.

    Raises:
        BackendError: it is not installed, does not load, or is too old.
    """
    library = LIBRARIES[name]
    install = f"pip install 'itae[{library.extra}]'"
    try:
        module = importlib.import_module(library.module)
    except ModuleNotFoundError as error:
        raise BackendError(f"{what} needs {name}, which is not installed here: {install}") from error
    except (ImportError, OSError, RuntimeError) as error:  # a package without its shared libraries
        problem = f"which is installed and does not load ({one_line(error)})"
        raise BackendError(f"{what} needs {name}, {problem}: {install}") from error
    version = str(module.__version__)
    if version_pair(version) < library.oldest:
        wanted = f"{name} {'.'.join(map(str, library.oldest))} or newer"
        raise BackendError(f"{what} needs {wanted}, {version} is too old: {install} --upgrade")
    return module


def version_pair(version: str) -> tuple[int, int]:
    """Return major and minor of a version such as `10.9.0.34`."""
    major, minor, *_ = [*version.split("."), "0"]
    return int(major), int(minor)


def numpy_name(dtype: TrtObject) -> str:
    """Return numpy's name of one of TensorRT's data types."""
    name = str(dtype.name)
    return _DTYPES.get(name, name.lower())


class LibraryLog:
    """The last messages of a library, which fails without a reason and gives the reason to its logger."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

    def forget(self) -> None:
        """Forget what was said so far, about something else."""
        self._errors.clear()

    def record(self, severity: str, message: str) -> None:
        """Take one message."""
        if severity.endswith("error"):
            self._errors.append(message)

    def last_errors(self) -> str:
        """Return the last errors on one line, each once; empty where there is none."""
        latest_first = dict.fromkeys(shortened(error) for error in reversed(self._errors))
        return "; ".join(reversed(list(latest_first)[:MAX_ERRORS]))


def shortened(message: str) -> str:
    """Return a message on one line, without complaints about a missing driver, cut where it is very long."""
    lines = message.splitlines()
    line = " ".join(" ".join([line for line in lines if _NO_DRIVER not in line] or lines).split())
    return line if len(line) <= MAX_ERROR_CHARS else line[:MAX_ERROR_CHARS] + "..."


class SharedLogger:
    """The one logger that a library is given in this process, and those who hear it.

    TensorRT keeps the first logger as long as a Builder or Runtime lives, and ignores later ones without a word: a
    build beside an open session would get no errors and no list of kernels.
    """

    def __init__(self, trt: ModuleType) -> None:
        """Make the logger; TensorRT's own `Logger` would print to stdout."""
        self.log = LibraryLog()
        """The last messages, whoever caused them."""
        self._hearers: list[Record] = [self.log.record, _debug]
        hand_on = self._hand_on

        class Logger(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is known at run time only
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 refuses super().__init__

            def log(self, severity: TrtObject, message: str) -> None:
                hand_on(severity.name.lower().replace("_", " "), message)

        self.logger: TrtObject = Logger()

    def _hand_on(self, severity: str, message: str) -> None:
        for hear in tuple(self._hearers):
            hear(severity, message)

    @contextlib.contextmanager
    def heard_by(self, record: Record) -> Iterator[None]:
        """A block in which `record` gets every message, whoever caused it: the library doesn't say."""
        self._hearers.append(record)
        try:
            yield
        finally:
            self._hearers.remove(record)


def _debug(severity: str, message: str) -> None:
    _log.debug("%s: %s", severity, message)


@functools.cache
def shared_logger(trt: ModuleType) -> SharedLogger:
    """Return the logger of a library in this process, which the exporter and the runtime share."""
    return SharedLogger(trt)
