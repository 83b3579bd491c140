"""OpenVINO: an ONNX model on the CPU, when asked for by name."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from runtime.backends.checked_model import CheckedModel
from runtime.backends.compute import least_precise
from runtime.backends.cpu_session import CpuSession
from runtime.backends.session import Array, translated
from runtime.contract.errors import BackendError, UsageError

SETTINGS = {
    # By default it computes an fp32 model in bf16 where the CPU has instructions for that (AMX, AVX512_BF16) and says
    # nothing of it: three decimal digits where the model is held to 1e-4. What is bf16 in the graph stays bf16.
    "INFERENCE_PRECISION_HINT": "f32",
    # One batch at a time on all cores: the caller waits for each. The number of threads is OpenVINO's own choice.
    "PERFORMANCE_HINT": "LATENCY",
}
BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
"""The setting that computes in bf16 what is float32 in the file."""
_PRODUCTS = ("FullyConnected", "MatMul", "ScaledDotProductAttention", "MHA")
"""Operators of a compiled model that are matrix products; a convolution is one, unless there is one of these."""
_COMPUTES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_TELEMETRY = "openvino_telemetry"
_importing = threading.Lock()


class OpenVinoSession(CpuSession):
    """A `Session` on OpenVINO's CPU plugin. Threads that call at the same time wait for each other."""

    def __init__(self, model: CheckedModel, compute: str, threads: int | None = None) -> None:
        """Load `model`, to compute in `compute`: the precision of its file, or bf16.

        Raises:
            BackendError: OpenVINO is not installed, can't load the model, or computes in another type here.
            ManifestError, InputError: as `CheckedModel.take_onnx`.
        """
        openvino = import_openvino()
        own = model.manifest.options.precision
        settings = SETTINGS if compute == own else {**SETTINGS, **BF16}
        if threads is not None:
            settings = {**settings, "INFERENCE_NUM_THREADS": str(threads)}
        with translated(f"OpenVINO can't load {model.path}"):
            core = openvino.Core()
            if compute == "bf16":
                _require_bf16(core, f"{model.path}{'' if own == compute else ' --compute bf16'}")
            compiled = core.compile_model(core.read_model(model.take_onnx("OpenVINO")), "CPU", settings)
            self._request: Any = compiled.create_infer_request()
            computes, others = compute_of(compiled), compute_of(compiled, besides="int8")
        # No setting changes products in int8; the others show whether it had its effect.
        if (others == "bf16") != (compute == "bf16"):
            raise BackendError(f"{model.path}: OpenVINO computes it in {others} here, not in {compute}")
        # A request holds one batch at a time, and a second would only share the cores with the first.
        self._running = threading.Lock()
        shown = "".join(f", {one}" for one in dict.fromkeys((computes, others)) if one != "fp32")
        details = f"{openvino.get_version().partition('-')[0]} (CPU{shown})"
        super().__init__(model.manifest, "OpenVINO", details, others if compute == "bf16" else computes)

    def _computed(self, batch: Array, names: list[str]) -> list[Array]:
        with self._running:
            if self._request is None:
                raise UsageError("the session is closed")
            self._request.infer({self.manifest.input.name: batch}, share_outputs=True)
            # Copies: the request's own memory is overwritten by the next batch.
            return [np.array(self._request.get_tensor(name).data) for name in names]

    def close(self) -> None:
        """Release the model."""
        with self._running:
            self._request = None


def compute_of(compiled: Any, *, besides: str | None = None) -> str:  # noqa: ANN401
    """The compute type of a compiled model: the least precise one among its matrix products, `besides` left out."""
    types: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        found = node.get_rt_info()
        kind, precision = (found[name].astype(str) for name in ("layerType", "runtimePrecision"))
        types.setdefault(kind, set()).add(_COMPUTES.get(precision, precision))
    products = set().union(*(types.get(kind, set()) for kind in _PRODUCTS)) or types.get("Convolution", set())
    return least_precise(products - {besides} or {"fp32"})


def _require_bf16(core: Any, what: str) -> None:  # noqa: ANN401
    """Raise BackendError on a CPU without bf16: OpenVINO would compute in float32 there and say nothing of it."""
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME").strip()
        raise BackendError(
            f"{what}: this CPU ({cpu}) has no bf16 (AVX512-BF16 or AMX), and OpenVINO would convert it to float32, "
            "slower than an fp32 file: take a file of --precision fp32"
        )


def import_openvino() -> Any:  # noqa: ANN401  # a module without types
    """The package `openvino`, without its telemetry.

    `import openvino` sends an event to Google Analytics, without asking, and leaves a client ID in `~/intel`. If the
    package `openvino_telemetry` can't be imported, it uses a stub of its own. So this function makes that import fail.

    Raises:
        BackendError: OpenVINO is not installed.
    """
    with _importing:
        known = {name: sys.modules[name] for name in (_TELEMETRY,) if name in sys.modules}
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what import takes for "not there"
        try:
            import openvino
        except ImportError as error:
            raise BackendError(f"OpenVINO is not installed: pip install 'itae[openvino]' ({error})") from error
        finally:
            del sys.modules[_TELEMETRY]
            sys.modules.update(known)
    return openvino
