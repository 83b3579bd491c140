"""TensorRT 10, 11 and TensorRT-RTX: engines on the GPU that they were built for. One interface, one code path.

`trt` is the library that the engine needs, whichever of the two. Nothing of it may be touched before `require_gpu`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from runtime.backends.checked_model import CheckedModel
from runtime.backends.gpu import Gpu, open_gpu
from runtime.backends.gpu_session import GpuSession
from runtime.backends.kernel_cache import KernelCache
from runtime.backends.session import image_shape
from runtime.contract.driver import GpuInfo, read_driver
from runtime.contract.errors import BackendError, ManifestError, one_line
from runtime.contract.manifest import Manifest
from runtime.contract.tensorrt import (
    AMPERE,
    LIBRARIES,
    RTX_CAPABILITIES,
    TrtObject,
    import_library,
    known_faults,
    numpy_name,
    shared_logger,
    version_pair,
)

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
    _check_gpu(model, read_driver().gpus[device])
    try:
        trt = import_library(builder, str(model.path))
    except BackendError as error:
        raise BackendError(f"{error}; {_TWIN}") from error
    _check_version(model, str(trt.__version__))
    return GpuSession(model.manifest, gpu, lambda _: TrtProgram(trt, model, gpu))


def _check_gpu(model: CheckedModel, gpu: GpuInfo) -> None:
    """Check that an engine is for a GPU, before any library sees the engine; warn of public reports about the two.

    Raises:
        BackendError: TensorRT-RTX does not support the GPU, or TensorRT built the engine for other GPUs.
    """
    built_by = model.manifest.builder
    if not _is_for(model.manifest, gpu):
        raise BackendError(
            f"{model.path} was built for {_gpus_of(model.manifest)}, here is {gpu}: build it again here, or for both "
            f"with --hardware-compatibility, {_TWIN}"
        )
    if built_by.name == "tensorrt-rtx" and gpu.compute_capability not in RTX_CAPABILITIES:
        raise BackendError(
            f"{model.path} is TensorRT-RTX's and can't run on {gpu}, which is not one of "
            f"{', '.join(RTX_CAPABILITIES)}: build it again with --backend tensorrt, {_TWIN}"
        )
    if model.manifest.replay is None:
        _log.warning("%s was never run by its exporter; check it on this GPU by `verify`", model.path)
    precision = model.manifest.options.precision
    for warning in known_faults(built_by.name, built_by.version, gpu.compute_capability, precision):
        _log.warning("%s: %s", model.path, warning)


def _is_for(manifest: Manifest, gpu: GpuInfo) -> bool:
    """Whether an engine runs on a GPU, by what it was built for; True if its manifest doesn't say that."""
    built_by, level = manifest.builder, manifest.options.hardware_compatibility
    if built_by.compute_capability is None:
        return True
    if level == "ampere-plus":
        return version_pair(gpu.compute_capability) >= AMPERE
    same = gpu.compute_capability == built_by.compute_capability
    return same and (level == "same-compute-capability" or gpu.name == built_by.gpu)


def _gpus_of(manifest: Manifest) -> str:
    """The GPUs that an engine was built for, in words."""
    built_by = manifest.builder
    return {
        "ampere-plus": f"GPUs from compute capability {'.'.join(map(str, AMPERE))} on",
        "same-compute-capability": f"GPUs of compute capability {built_by.compute_capability}",
    }.get(
        manifest.options.hardware_compatibility or "",
        f"{built_by.gpu} (compute capability {built_by.compute_capability})",
    )


def _check_version(model: CheckedModel, version: str) -> None:
    """Check that the library here runs an engine of another version of itself.

    Raises:
        BackendError: it doesn't: an engine runs with the version that built it, or with later ones if it was built so.
    """
    built_by = model.manifest.builder
    if built_by.version == version:
        return
    if model.manifest.options.version_compatible:
        if _numbers(version) > _numbers(built_by.version):
            return
        cure = f"install {built_by.version} or later, or build it again here"
    else:
        cure = f"install that, or build it again here, or with --version-compatible for later versions too, {_TWIN}"
    title = LIBRARIES[built_by.name].title
    raise BackendError(f"{model.path} was built by {title} {built_by.version}, here is {version}: {cure}")


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as `10.14.1.48.post1`."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


class TrtProgram:
    """A `Program` by TensorRT. Never run yet on a GPU: its calls are held to the real bindings' signatures."""

    def __init__(self, trt: ModuleType, model: CheckedModel, gpu: Gpu) -> None:
        """Deserialize an engine and make its execution context, on the GPU that is current.

        Raises:
            BackendError: the library refuses it.
            ManifestError: its tensors are not the manifest's.
        """
        manifest = self._manifest = model.manifest
        shared = shared_logger(trt)
        self._log = shared.log
        self.name = f"{LIBRARIES[manifest.builder.name].title} {trt.__version__}"
        self._log.forget()
        try:
            runtime = trt.Runtime(shared.logger)
        except (TypeError, RuntimeError) as error:  # a null pointer from C++
            raise self._refused("does not start here", error) from error
        if manifest.options.version_compatible:
            runtime.engine_host_code_allowed = True  # the plan, which was hashed, holds the library of its own version
        engine = runtime.deserialize_cuda_engine(model.take())
        if engine is None:
            raise self._refused(f"can't load {model.path}", cure=_rebuild(manifest, gpu))
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


def _is_jit(manifest: Manifest) -> bool:
    """Whether the library compiles the engine's kernels where it is loaded, and so can keep them."""
    return manifest.builder.name == "tensorrt-rtx"


def _rebuild(manifest: Manifest, gpu: Gpu) -> str:
    """Advice for an engine that does not load."""
    built_by = manifest.builder
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
        found = (mode.name == "INPUT", numpy_name(dtype), tuple(engine.get_tensor_shape(name))[1:])
        wanted = (tensor is manifest.input, tensor.dtype, image_shape(tensor))
        if found != wanted:
            raise ManifestError(f"{model} has {_described(name, found)}, its manifest says {_described(name, wanted)}")
    shapes = engine.get_tensor_profile_shape(manifest.input.name, 0)
    profile = tuple(next(iter(shape)) for shape in shapes)
    if manifest.options.batch is not None and profile != manifest.options.batch:
        raise ManifestError(f"{model} takes batches {profile}, its manifest says {manifest.options.batch}")


def _described(name: str, tensor: tuple[bool, str, tuple[int, ...]]) -> str:
    is_input, dtype, shape = tensor
    return f"{'input' if is_input else 'output'} `{name}` as {dtype} {shape} per image"
