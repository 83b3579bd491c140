"""ONNX Runtime: the reference on any machine's CPU; CUDA when asked for by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.backends.session import Array, Arrays, check_batch, check_names, check_outputs, check_path
from runtime.errors import BackendError, ItaeError, UsageError, one_line
from runtime.manifest import Manifest

_ERRORS_ONLY = 3
_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "auto": ("CPUExecutionProvider", {}),
    "cpu": ("CPUExecutionProvider", {}),
    # TF32 is on by default, and misses the 1e-4 that an fp32 model is held to.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


class OrtSession:
    """A `Session` on ONNX Runtime."""

    def __init__(self, model: Path, manifest: Manifest, provider: str = "auto") -> None:
        """Load `model`, which must have been checked against `manifest`, as `open_session` does.

        Raises:
            InputError: the path of `model` is not UTF-8.
            BackendError: ONNX Runtime is not installed, has no such provider here, or can't load the model.
        """
        self._manifest = manifest
        check_path(model, "ONNX Runtime")
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"{model} needs ONNX Runtime: pip install 'itae[cpu]' ({error})") from error
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        name, options = _PROVIDERS[provider]
        if manifest.options.precision == "bf16" and name == "CPUExecutionProvider":
            raise BackendError(
                f"{model} is bf16, for which ONNX Runtime's CPU has no kernels: build an engine from it, "
                "export it with --precision fp32 or fp16, or take --provider openvino, slow on a CPU without bf16"
            )
        if name not in onnxruntime.get_available_providers():
            raise BackendError(
                f"this onnxruntime has no {name}: pip uninstall onnxruntime, then pip install 'itae[gpu]'"
            )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        with _translated(f"ONNX Runtime can't load {model}"):
            # A path, not bytes: from bytes it looks for external weights in the current folder.
            session = onnxruntime.InferenceSession(str(model), settings, providers=[(name, options)])
        if name not in session.get_providers():  # a provider that fails to start is only warned of
            raise BackendError(f"{name} does not start here; ONNX Runtime offers {session.get_providers()}")
        self._session: Any = session
        self._name = f"ONNX Runtime {onnxruntime.__version__} ({name.removesuffix('ExecutionProvider')})"

    @property
    def manifest(self) -> Manifest:
        """The model's manifest."""
        return self._manifest

    @property
    def name(self) -> str:
        """`ONNX Runtime 1.32.0 (CPU)`."""
        return self._name

    def run(self, batch: Array, outputs: Sequence[str] | None = None) -> Arrays:
        """Run a batch; see `Session.run`."""
        return self._run(batch, outputs, finite=True)

    def stream(self, batches: Iterable[Array], outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Run batches one by one; see `Session.stream`."""
        for batch in batches:
            yield self._run(batch, outputs, finite=False)

    def _run(self, batch: Array, outputs: Sequence[str] | None, *, finite: bool) -> Arrays:
        if self._session is None:
            raise UsageError("the session is closed")
        names = check_names(self._manifest, outputs)
        check_batch(self._manifest, batch)
        with _translated(f"ONNX Runtime failed on {len(batch)} images (a smaller --batch takes less memory)"):
            arrays = self._session.run(list(names), {self._manifest.input.name: batch})
        results = dict(zip(names, arrays, strict=True))
        check_outputs(self._manifest, len(batch), results, finite=finite)
        return results

    def close(self) -> None:
        """Release the model."""
        self._session = None


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """ONNX Runtime's errors as ours: its many classes have nothing but `Exception` in common."""
    try:
        yield
    except ItaeError:
        raise
    except Exception as error:
        raise BackendError(f"{what}: {one_line(error)}") from error
