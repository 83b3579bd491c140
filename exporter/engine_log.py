"""What TensorRT says while it builds: its errors, and the kernels it chose.

TensorRT has no call that names the kernels of a plan without a GPU; the verbose log does, in one last message.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

Log = Callable[[str, str], None]
"""Takes a severity (`verbose`, `info`, `warning`, `error`, `internal error`) and a message."""

MAX_ERRORS = 3
MAX_ERROR_CHARS = 1200
_KERNEL = re.compile(r"^Name: (\S+), LayerType: ", re.MULTILINE)
_FUSED_ATTENTION = ("_gemm_mha", "_gemv_mha")


class BuildLog:
    """Keeps the errors and the kernels of one build, and hands every message on.

    TensorRT calls from C++ that lets no exception through, and a Ctrl-C arrives in whatever Python runs: so whatever
    is raised in here is kept in `raised` for the caller, who ends the build and raises it again.
    """

    def __init__(self, forward: Log | None = None) -> None:
        """`forward` gets every message; none: they are only read."""
        self._forward = forward
        self._lock = threading.Lock()  # the builder may log from several threads
        self._errors: list[str] = []
        self.kernels: tuple[str, ...] = ()
        """The names of the kernels, in the order of execution."""
        self.raised: BaseException | None = None

    def record(self, severity: str, message: str) -> None:
        """Take one message; never raises."""
        try:
            with self._lock:
                if message.startswith("Layers:"):
                    self.kernels = kernel_names(message)
                if severity.endswith("error"):
                    self._errors.append(message)
                if self._forward is not None and self.raised is None:
                    self._forward(severity, message)
        except BaseException as error:  # noqa: BLE001  # see the class
            self.raised = error

    def last_errors(self) -> str:
        """The builder's own last words on one line, the same only once; empty if it gave none."""
        lines = [" ".join(error.split()) for error in self._errors]
        return "; ".join(list(dict.fromkeys(lines))[-MAX_ERRORS:])[:MAX_ERROR_CHARS]


def kernel_names(layers: str) -> tuple[str, ...]:
    """The kernels in the message `Layers:` of the verbose log of a build with detailed profiling verbosity."""
    return tuple(_KERNEL.findall(layers))


def count_fused_attention(kernels: Iterable[str]) -> int:
    """How many kernels compute a whole attention: `_gemm_mha...`, or `_gemv_mha...` for a single query."""
    return sum(name.startswith(_FUSED_ATTENTION) for name in kernels)


def trt_logger(trt: ModuleType, log: BuildLog) -> Any:
    """A TensorRT logger that records in `log`; `trt.Logger` would print to stdout."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super().__init__

        def log(self, severity: Any, message: str) -> None:
            log.record(severity.name.lower().replace("_", " "), message)

    return Logger()


def trt_monitor(trt: ModuleType, log: BuildLog) -> Any:
    """A TensorRT progress monitor that stops the build once `log` has something to raise."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return log.raised is None

    return Monitor()
