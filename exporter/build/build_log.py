"""The log of a TensorRT build: its errors, and the kernels that it chose.

No call names the kernels of a plan without a GPU; the verbose log does, in one last message.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType, ModuleType

from runtime.contract.errors import BuildError
from runtime.contract.tensorrt import LibraryLog, Record, TrtObject

_KERNEL = re.compile(r"^Name: (.+?), LayerType: (\w*),(.*)$", re.MULTILINE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_DATATYPE = "Datatype: "
_NO_WORK = ("shape_call", "signal", "wait")
"""Types of layers that only synchronise streams or compute shapes: no kernel runs."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine."""

    name: str
    """As the builder calls it, such as `_gemm_mha_v2_myl0_15`."""
    nodes: frozenset[str]
    """Names of the ONNX nodes that it computes, wholly or in part."""
    takes_int8: bool | None = field(default=None, compare=False)
    """Whether it takes int8 numbers and int8 weights; None if the builder doesn't say."""


class BuildLog(LibraryLog):
    """Keeps the errors and the kernels of one build, and hands every message on.

    TensorRT swallows what is raised in a callback and goes on. So it is kept in `raised`, which ends the
    build (`trt_monitor`) and is raised again after it (`stopped_by_callbacks`).
    """

    def __init__(self, forward: Record | None = None) -> None:
        """Make a log that passes every message on to `forward`, unless this is None."""
        super().__init__()
        self._forward = forward
        self._lock = threading.Lock()  # the builder may log from several threads
        self.kernels: tuple[Kernel, ...] = ()
        """In the order of execution."""
        self.complaints = 0
        """Warnings and errors so far."""
        self.raised: BaseException | None = None

    def record(self, severity: str, message: str) -> None:
        """Take one message; never raises."""
        try:
            with self._lock:
                if message.startswith("Layers:"):
                    self.kernels = logged_kernels(message)
                if severity == "warning" or severity.endswith("error"):
                    self.complaints += 1
                super().record(severity, message)
                if self._forward is not None and self.raised is None:
                    self._forward(severity, message)
        except BaseException as error:  # Ctrl-C too: see the class
            self.raised = error


def logged_kernels(layers: str) -> tuple[Kernel, ...]:
    """The kernels in the message `Layers:` of a verbose log with detailed profiling verbosity."""
    found = _KERNEL.findall(layers)
    return _kernels([(name, kind, text, _takes_int8(text)) for name, kind, text in found])


def _takes_int8(text: str) -> bool | None:
    """Whether inputs and constants of a logged layer are int8."""
    taken = text.partition("Outputs: ")[0]
    return taken.count(f"{_DATATYPE}Int8") >= 2 if _DATATYPE in taken else None


def inspected_kernels(text: str) -> tuple[Kernel, ...]:
    """The kernels in the JSON of an engine inspector; empty if it doesn't have the expected form."""
    try:
        layers = json.loads(text)["Layers"]
        return _kernels([(one["Name"], one["LayerType"], one.get("Metadata", ""), None) for one in layers])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def _kernels(layers: list[tuple[str, str, str, bool | None]]) -> tuple[Kernel, ...]:
    """Name, type, text and `takes_int8` of each layer; the text has its nodes, as `[ONNX Layer: node_matmul]`."""
    return tuple(
        Kernel(name, frozenset(_ONNX_NODE.findall(text)), takes_int8)
        for name, kind, text, takes_int8 in layers
        if kind not in _NO_WORK
    )


@contextlib.contextmanager
def stopped_by_callbacks(log: BuildLog) -> Iterator[None]:
    """A block that runs the builder and then raises what `log` kept, a Ctrl-C included.

    Python raises a Ctrl-C in whatever it runs next, during a build a callback, where it would be lost.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        log.raised = KeyboardInterrupt()

    # Only the main thread may set handlers; one that does not raise Ctrl-C stays, "ignore" too.
    ours = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.default_int_handler
    ]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    except BuildError:  # there is no engine because it was stopped
        if log.raised is None:
            raise
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
    if log.raised is not None:
        raise log.raised


def trt_monitor(trt: ModuleType, log: BuildLog) -> TrtObject:
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
