"""ONNX Runtime on the CPU: the reference on any machine."""

from __future__ import annotations

import os
from typing import Any

from runtime.backends.checked_model import CheckedModel
from runtime.backends.cpu_session import CpuSession
from runtime.backends.session import Array, check_batch, check_names, check_outputs, failed, names_in_file, translated
from runtime.contract.atomic import uninterrupted
from runtime.contract.errors import BackendError, UsageError

_ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OrtSession(CpuSession):
    """A `Session` on ONNX Runtime's CPU provider. ONNX Runtime lets threads run one session at the same time."""

    def __init__(self, model: CheckedModel, threads: int | None = None) -> None:
        """Load `model`.

        Raises:
            BackendError: ONNX Runtime is not installed, or can't load the model.
            ManifestError, InputError: as `CheckedModel.take_onnx`.
        """
        onnxruntime = import_onnxruntime(str(model.path))
        precision = model.manifest.options.precision
        if precision == "bf16":
            raise BackendError(
                f"{model.path} is bf16, for which ONNX Runtime's CPU has no kernels: take --provider openvino on a CPU "
                "with AVX512-BF16 or AMX, build an engine from it, or export it with --precision fp32 or fp16"
            )
        self._session: Any = load_model(onnxruntime, model, _CPU, {}, threads)
        super().__init__(model.manifest, "ONNX Runtime", f"{onnxruntime.__version__} (CPU)", precision)

    def _computed(self, batch: Array, names: list[str]) -> list[Array]:
        return list(self._opened().run(names, {self.manifest.input.name: batch}))

    def run_into(self, batch: Array, output: str, target: Array) -> None:
        """Run a batch from where it lies into where its result shall lie, nothing copied.

        Args:
            batch: as for `run`, and contiguous.
            output: the one that is wanted.
            target: contiguous, of the output's dtype and shape; written.

        Raises:
            InputError, UsageError, CheckError, BackendError: as `run`.
        """
        session = self._opened()
        check_names(self.manifest, [output])
        check_batch(self.manifest, batch)
        with translated(failed("ONNX Runtime", len(batch))):
            binding = session.io_binding()
            (in_file,) = names_in_file(self.manifest, [output])
            for bind, name, array in (
                (binding.bind_input, self.manifest.input.name, batch),
                (binding.bind_output, in_file, target),
            ):
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
        check_outputs(self.manifest, len(batch), {output: target})

    def _opened(self) -> Any:  # noqa: ANN401  # onnxruntime ships no types
        if self._session is None:
            raise UsageError("the session is closed")
        return self._session

    def close(self) -> None:
        """Release the model."""
        self._session = None


def import_onnxruntime(what: str) -> Any:  # noqa: ANN401  # a module without types
    """The package `onnxruntime`, without its telemetry; `what` needs it and begins the message.

    `import onnxruntime` (1.32) writes `~/.cache/Microsoft/DeveloperTools` and sends events unless an environment
    variable forbids it. A user's own value of that variable is kept.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    try:
        with uninterrupted():  # its C++ would make "not installed" of Ctrl-C
            import onnxruntime
    except ImportError as error:
        raise BackendError(f"{what} needs ONNX Runtime: pip install 'itae[cpu]' ({error})") from error
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    return onnxruntime


def load_model(
    onnxruntime: Any,  # noqa: ANN401
    model: CheckedModel,
    provider: str,
    options: dict[str, str],
    threads: int | None = None,
) -> Any:  # noqa: ANN401
    """ONNX Runtime's own session of `model` on `provider`, which really is the one that runs it.

    Raises:
        BackendError: the provider doesn't start here, or the model can't be loaded.
        ManifestError, InputError: as `CheckedModel.take_onnx`.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        settings.intra_op_num_threads = threads
    with translated(f"ONNX Runtime can't load {model.path}"):
        source = model.take_onnx("ONNX Runtime")
        session = onnxruntime.InferenceSession(source, settings, providers=[(provider, options)])
        session._model_bytes = None  # it would keep them as long as it lives, to load the model again elsewhere
    if provider not in session.get_providers():  # one that fails to start is only warned of
        raise BackendError(f"{provider} does not start here; ONNX Runtime offers {session.get_providers()}")
    return session
