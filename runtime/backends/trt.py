"""TensorRT 10, 11 and TensorRT-RTX: engines on the GPU that they were built for. One interface, one code path.

`trt` is the library that the engine needs, whichever of the two. Nothing of it may be touched before `require_gpu`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.backends.checked_model import CheckedModel
from runtime.backends.gpu import Gpu, open_gpu
from runtime.backends.gpu_session import GpuSession
from runtime.backends.kernel_cache import KernelCache
from runtime.backends.session import image_shape
from runtime.contract.errors import BackendError, ManifestError, one_line
from runtime.contract.manifest import Manifest

TrtObject = Any
"""An object of TensorRT's bindings, which ship no types."""

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}
"""Major versions that this code is written for."""
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""TensorRT's data types that numpy calls otherwise."""
_MAX_ERRORS = 3
_MAX_ERROR_CHARS = 600
_TWIN = "or export the .onnx twin to run on the CPU"

_log = logging.getLogger(__name__)


def open_engine(model: CheckedModel, device: int = 0) -> GpuSession:
    """Load an engine on GPU `device`.

    Raises:
        BackendError: there is no driver, GPU or library for it, or the library refuses it.
        ManifestError: the engine's tensors are not the manifest's.
    """
    builder = model.manifest.builder.name
    try:
        gpu = open_gpu(device, f"{model.path} ({builder})")
    except BackendError as error:
        raise BackendError(f"{error}; take it to a machine with one, {_TWIN}") from error
    trt = import_library(builder, f"{model.path} needs {builder}")
    return GpuSession(model.manifest, gpu, lambda _: TrtProgram(trt, model, gpu))


def import_library(builder: str, what: str) -> ModuleType:
    """The bindings that an engine of `builder` needs; `what` begins the message.

    Raises:
        BackendError: they are not installed, don't load, or are too old.
    """
    install = f"pip install 'itae[{EXTRAS[builder]}]'"
    try:
        module = importlib.import_module(MODULES[builder])
    except ModuleNotFoundError as error:
        raise BackendError(f"{what}: {install}; {_TWIN}") from error
    except (ImportError, OSError, RuntimeError) as error:  # a package without its shared libraries
        raise BackendError(f"{what}, which is installed and does not load ({one_line(error)}): {install}") from error
    version = str(module.__version__)
    if int(version.partition(".")[0]) < OLDEST[builder]:
        raise BackendError(f"{what} {OLDEST[builder]} or newer, here is {version}: {install} --upgrade")
    return module


class TrtProgram:
    """A `Program` by TensorRT. Never run yet on a GPU: its calls are held to the real bindings' signatures."""

    def __init__(self, trt: ModuleType, model: CheckedModel, gpu: Gpu) -> None:
        """Deserialize an engine and make its execution context, on the GPU that is current.

        Raises:
            BackendError: the library refuses it.
            ManifestError: its tensors are not the manifest's.
        """
        manifest = self._manifest = model.manifest
        self._log, logger = engine_log(trt)
        self.name = f"{_title(manifest)} {trt.__version__}"
        self._log.forget()
        try:
            runtime = trt.Runtime(logger)
        except (TypeError, RuntimeError) as error:  # a null pointer from C++
            raise self._refused("does not start here", error) from error
        engine = runtime.deserialize_cuda_engine(model.take())
        if engine is None:
            raise self._refused(f"can't load {model.path}", cure=_rebuild(manifest, str(trt.__version__), gpu))
        _check_tensors(model.path, manifest, engine)
        self._cache = KernelCache(model.path, manifest.files.model.sha256) if _is_jit(manifest) else None
        context = self._make_context(engine)
        if context is None:
            raise self._refused(f"can't make an execution context for {model.path}", cure="is there enough GPU memory?")
        self._runtime, self._engine, self._context = runtime, engine, context

    def _make_context(self, engine: TrtObject) -> TrtObject:
        if self._cache is None:
            return engine.create_execution_context()
        runtime_config = engine.create_runtime_config()  # TensorRT-RTX's own, as is the cache
        self._cache.attach(runtime_config)
        return engine.create_execution_context(runtime_config)

    def enqueue(self, samples: int, addresses: Mapping[str, int], stream: int) -> None:
        """Put a run on a stream; see `Program`."""
        context, source = self._context, self._manifest.input
        self._log.forget()
        if not context.set_input_shape(source.name, (samples, *image_shape(source))):
            raise self._refused(f"takes no batch of {samples}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._refused(f"takes no address {address:#x} for `{name}`")
        if not context.execute_async_v3(stream):
            raise self._refused(f"failed on {samples} images", cure="a smaller --batch takes less memory")

    def close(self) -> None:
        """Release everything, what was made last first; keep what TensorRT-RTX compiled."""
        if self._cache is not None:
            self._cache.save()
        self._context = None
        self._cache = None
        self._engine = None
        self._runtime = None

    def _refused(self, what: str, error: Exception | None = None, cure: str = "") -> BackendError:
        words = self._log.last_errors() or (one_line(error) if error else "it gave no reason")
        return BackendError(f"{self.name} {what}: {words}{cure and f'; {cure}'}")


def _title(manifest: Manifest) -> str:
    return {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[manifest.builder.name]


def _is_jit(manifest: Manifest) -> bool:
    """Whether the library compiles the engine's kernels where it is loaded, and so can keep them."""
    return manifest.builder.name == "tensorrt-rtx"


def _rebuild(manifest: Manifest, version: str, gpu: Gpu) -> str:
    """What to do with an engine that does not load."""
    built_by = manifest.builder
    if built_by.version != version:
        return f"{built_by.name} {built_by.version} built it, here is {version}: install that, or build it again here"
    return f"it is for {built_by.platform} and the GPU that it was built for, here is {gpu.name}: build it again here"


def _check_tensors(model: Path, manifest: Manifest, engine: TrtObject) -> None:
    """Check that an engine reads and writes what its manifest says: its memory is laid out by that.

    Raises:
        ManifestError: it doesn't.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    declared = {one.name: one for one in (manifest.input, *manifest.outputs)}
    if sorted(names) != sorted(declared):
        raise ManifestError(f"{model} has the tensors {names}, its manifest says {list(declared)}: build it again")
    for name, tensor in declared.items():
        mode, dtype = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
        numpy_dtype = _DTYPES.get(dtype.name, dtype.name.lower())
        found = (mode.name == "INPUT", numpy_dtype, tuple(engine.get_tensor_shape(name))[1:])
        wanted = (tensor is manifest.input, tensor.dtype, image_shape(tensor))
        if found != wanted:
            raise ManifestError(f"{model} has {_told(name, found)}, its manifest says {_told(name, wanted)}")
    shapes = engine.get_tensor_profile_shape(manifest.input.name, 0)
    profile = tuple(next(iter(shape)) for shape in shapes)
    if manifest.options.batch is not None and profile != manifest.options.batch:
        raise ManifestError(f"{model} takes batches {profile}, its manifest says {manifest.options.batch}")


def _told(name: str, tensor: tuple[bool, str, tuple[int, ...]]) -> str:
    is_input, dtype, shape = tensor
    return f"{'input' if is_input else 'output'} `{name}` as {dtype} {shape} per image"


class EngineLog:
    """What the library said last: it fails without a reason, and tells it here."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_MAX_ERRORS)

    def forget(self) -> None:
        """Forget what was said so far, of something else."""
        self._errors.clear()

    def record(self, severity: str, message: str) -> None:
        """Take one message."""
        line = " ".join(message.split())[:_MAX_ERROR_CHARS]
        if severity.endswith("ERROR"):
            self._errors.append(line)
        _log.debug("%s: %s", severity, line)

    def last_errors(self) -> str:
        """The last words on one line, the same only once."""
        return "; ".join(dict.fromkeys(self._errors))


@functools.cache
def engine_log(trt: ModuleType) -> tuple[EngineLog, TrtObject]:
    """The log of a library, and the logger of its own that fills it.

    One for the whole process: the library keeps the first that it gets, and uses it as long as it lives. Its own
    `Logger` would print to stdout.
    """
    log = EngineLog()

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super().__init__

        def log(self, severity: TrtObject, message: str) -> None:
            log.record(severity.name, message)

    return log, Logger()
