"""ONNX to a TensorRT plan: one code path for TensorRT 10, 11 and TensorRT-RTX.

All three share one Python interface. TensorRT needs a GPU to build, and without one it crashes the process
instead of saying so; TensorRT-RTX builds on any machine and compiles for the GPU where the engine is loaded.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from exporter.build import timing_cache
from exporter.build.build_log import (
    BuildLog,
    Kernel,
    inspected_kernels,
    stopped_by_callbacks,
    trt_monitor,
)
from runtime.contract.atomic import cannot_write
from runtime.contract.driver import read_driver, require_gpu
from runtime.contract.errors import BackendError, BuildError, UsageError
from runtime.contract.manifest import Builder, HardwareCompatibility
from runtime.contract.tensorrt import (
    AMPERE,
    RTX_CAPABILITIES,
    LibraryName,
    Record,
    TrtObject,
    import_library,
    known_faults,
    numpy_name,
    shared_logger,
    shortened,
    version_pair,
)

if TYPE_CHECKING:
    from onnx import ValueInfoProto

Tensors = tuple[tuple[str, str], ...]
"""Name and data type (`float32`, `float16`, `uint8`, `bool` ...) of each tensor."""


@dataclass(frozen=True)
class Choice:
    """The library that builds an engine."""

    backend: LibraryName
    reason: str | None
    """The reason for the choice; None if it was asked for by name."""


@dataclass(frozen=True)
class EngineRequest:
    """The options of a build; names and shapes of inputs are those of the ONNX file."""

    backend: LibraryName
    """The library that `choose_backend` chose."""
    batch: tuple[int, int, int]
    """min, opt, max of dimension 0 of every input; three equal numbers are a fixed batch."""
    workspace_mib: int | None = None
    """Scratch memory that a kernel may use; None for all of the GPU's memory."""
    timing_cache: bytes | None = field(default=None, repr=False)
    """Timings of earlier builds, empty at first; None if no cache is kept."""
    hardware_compatibility: HardwareCompatibility = "none"
    """The GPUs that the engine must run on, beside the one here."""
    version_compatible: bool = False
    """Whether later versions of the library must run it."""


@dataclass(frozen=True)
class EngineResult:
    """A built engine."""

    builder: Builder
    """Name and version of the library, and the platform that the plan is for, such as `linux-x86_64`."""
    inputs: Tensors
    outputs: Tensors
    kernels: tuple[Kernel, ...]
    """Every kernel of the engine in the order of execution; empty if the library names none."""
    plan_bytes: int
    timing_cache: bytes | None = field(default=None, repr=False)
    """The timings with those of this build added; None if no cache is kept."""


@dataclass(frozen=True)
class _Built:
    """TensorRT's result, in its own memory."""

    plan: TrtObject
    tensors: tuple[Tensors, Tensors]
    kernels: tuple[Kernel, ...]
    timing_cache: bytes | None


def choose_backend(requested: Literal["auto", "tensorrt", "tensorrt-rtx"]) -> Choice:
    """Choose the library to build with, and check that it is here.

    `auto` is TensorRT if there is a GPU. It is TensorRT-RTX if there is none, or if TensorRT is not installed and
    TensorRT-RTX supports the GPU.

    Raises:
        BackendError: what was asked for is not here, or nothing here builds for this GPU; the message says what to
            install.
    """
    if requested == "tensorrt-rtx":
        import_library(requested, "--backend tensorrt-rtx")
        return Choice(requested, None)
    try:
        require_gpu("--backend tensorrt")
    except BackendError as error:
        if requested == "tensorrt":
            raise BackendError(f"{error}; --backend tensorrt-rtx builds without one") from error
        import_library("tensorrt-rtx", "without a GPU, --backend auto")
        return Choice("tensorrt-rtx", "there is no usable GPU here; it compiles for the RTX GPU that loads the engine")
    try:
        import_library("tensorrt", f"--backend {requested}")
    except BackendError as error:
        if requested == "tensorrt":
            raise
        return _rtx_for_this_gpu(error)
    return Choice("tensorrt", "it is installed, and there is a GPU" if requested == "auto" else None)


def _rtx_for_this_gpu(no_tensorrt: BackendError) -> Choice:
    """Choose TensorRT-RTX where it supports a GPU of this machine.

    Raises:
        BackendError: it supports none of them, or is not here either.
    """
    gpus = read_driver().gpus
    supported = [gpu for gpu in gpus if gpu.compute_capability in RTX_CAPABILITIES]
    if not supported:
        raise BackendError(
            f"{no_tensorrt}; TensorRT-RTX would not run on this machine: {gpus[0]} is not one of "
            f"{', '.join(RTX_CAPABILITIES)}; to build for another machine say --backend tensorrt-rtx"
        ) from no_tensorrt
    try:
        import_library("tensorrt-rtx", "in its place, --backend auto")
    except BackendError as error:
        raise BackendError(f"{no_tensorrt}; or {error}") from error
    return Choice("tensorrt-rtx", f"it supports {supported[0]}; TensorRT does not load here")


def check_portability(backend: LibraryName, hardware: HardwareCompatibility, *, version_compatible: bool) -> None:
    """Check before the work that an engine which travels can be built here.

    Raises:
        UsageError: TensorRT-RTX is asked for one.
        BackendError: the GPU here is older than those that the engine must run on.
    """
    asked = ["--version-compatible"] if version_compatible else []
    if hardware != "none":
        asked.insert(0, f"--hardware-compatibility {hardware}")
    if not asked:
        return
    if backend != "tensorrt":
        raise UsageError(
            f"{asked[0]} is for TensorRT, and {backend} would build this engine: its engines run on every GPU that it "
            "supports, with the version that built them; drop the option, or say --backend tensorrt"
        )
    gpu = read_driver().gpus[0]
    if hardware == "ampere-plus" and version_pair(gpu.compute_capability) < AMPERE:
        raise BackendError(f"{asked[0]}: TensorRT builds such engines on GPUs from Ampere on, and here is {gpu}")


def known_faults_here(backend: LibraryName, precision: str) -> list[str]:
    """Return a warning for each public report about engines of this library, precision and the GPU that builds."""
    if backend != "tensorrt":
        return []
    version = str(import_library(backend, "--backend tensorrt").__version__)
    return known_faults(backend, version, read_driver().gpus[0].compute_capability, precision)


def build(onnx: Path, plan: Path, request: EngineRequest, log: Record | None = None) -> EngineResult:
    """Build the engine of `onnx` and write it to `plan`, a file in a work folder: not atomically.

    Precision is the graph's own (strong typing), float32 is never rounded to TF32, and external weights are
    found beside `onnx`. TensorRT-RTX gives the same bytes again for the same file; TensorRT times kernels.

    Args:
        onnx: a model that passed the checker, dimension 0 of every input dynamic or of the asked-for size.
        plan: where to write.
        request: library, batch sizes and memory.
        log: gets the builder's own log, message by message.

    Raises:
        BackendError: the library isn't here or can't start.
        BuildError: the file is broken, or the library refuses it; the message has its own last words.
        InputError: the library refuses the timing cache.
        OutputFileError: `plan` can't be written.
    """
    inputs, outputs = _onnx_tensors(onnx)
    trt = import_library(request.backend, f"--backend {request.backend}")
    build_log = BuildLog(log)
    with stopped_by_callbacks(build_log), shared_logger(trt).heard_by(build_log.record):
        built = _serialize(trt, onnx, request, build_log)
    if built.tensors != (inputs, outputs):
        raise BuildError(f"{onnx}: TensorRT read inputs and outputs {built.tensors}, the file has {(inputs, outputs)}")
    serialized = built.plan
    try:
        with plan.open("wb") as file:
            file.write(serialized)
    except OSError as error:
        raise cannot_write(plan, error) from error
    gpu = read_driver().gpus[0] if request.backend == "tensorrt" else None
    return EngineResult(
        builder=Builder(
            name=request.backend,
            version=trt.__version__,
            platform=f"{sys.platform}-{platform.machine().lower()}",
            gpu=gpu.name if gpu is not None else None,
            compute_capability=gpu.compute_capability if gpu is not None else None,
        ),
        inputs=inputs,
        outputs=outputs,
        kernels=built.kernels,
        plan_bytes=serialized.nbytes,
        timing_cache=built.timing_cache,
    )


def _serialize(trt: ModuleType, onnx: Path, request: EngineRequest, log: BuildLog) -> _Built:
    """Parse and build."""
    logger = shared_logger(trt).logger
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # a null pointer from C++, where CUDA does not start
        raise BackendError(f"{request.backend} does not start: {log.last_errors() or error}") from error
    # TensorRT 10 needs the flag, 11 and RTX know it and are always so.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise BuildError(f"{request.backend} can't read {onnx}: {_parser_errors(parser) or log.last_errors()}")
    monitor = trt_monitor(trt, log)  # must outlive the config
    config = _config(trt, builder, request, monitor)
    config.add_optimization_profile(_profile(builder, network, request, onnx))
    cache = timing_cache.attach(config, request.timing_cache, log)  # must outlive the build
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        words = log.last_errors() or "it gave no reason; see --verbose"
        raise BuildError(f"{request.backend} {trt.__version__} gave no engine: {words}")
    timings = bytes(cache.serialize()) if cache is not None else None
    kernels = log.kernels or _inspect(trt, logger, serialized, version_compatible=request.version_compatible)
    return _Built(serialized, _network_tensors(network), kernels, timings)


def _parser_errors(parser: TrtObject) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(shortened(f"{error.node_operator()}: {error.desc()}") for error in errors)


def _config(trt: ModuleType, builder: TrtObject, request: EngineRequest, monitor: TrtObject) -> TrtObject:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: ten bits of mantissa under the name of float32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the log has no kernels
    config.progress_monitor = monitor
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    if request.hardware_compatibility == "same-compute-capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    elif request.hardware_compatibility == "ampere-plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def _inspect(
    trt: ModuleType, logger: TrtObject, serialized: TrtObject, *, version_compatible: bool
) -> tuple[Kernel, ...]:
    """The kernels that the engine itself names, if the log has none; this needs the GPU that the engine is for."""
    try:
        require_gpu("the engine inspector")
    except BackendError:
        return ()
    runtime = trt.Runtime(logger)
    if version_compatible:
        runtime.engine_host_code_allowed = True  # the plan holds the library of its own version
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return inspected_kernels(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _profile(builder: TrtObject, network: TrtObject, request: EngineRequest, onnx: Path) -> TrtObject:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        sizes = {-1, request.batch[0]} if len(set(request.batch)) == 1 else {-1}
        if not shape or shape[0] not in sizes or min(shape[1:], default=1) < 1:
            raise BuildError(
                f"{onnx}: input {tensor.name} has shape {shape}; dimension 0 must be dynamic "
                f"(or the fixed batch) and the others fixed, for batch {request.batch}"
            )
        profile.set_shape(tensor.name, *((size, *shape[1:]) for size in request.batch))
    return profile


def _network_tensors(network: TrtObject) -> tuple[Tensors, Tensors]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]

    def describe(tensors: list[TrtObject]) -> Tensors:
        return tuple((tensor.name, numpy_name(tensor.dtype)) for tensor in tensors)

    return describe(inputs), describe(outputs)


def _onnx_tensors(path: Path) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of an ONNX file; TensorRT's own parser takes an empty file for a model."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise BuildError(f"can't read the ONNX file {path}: {error}") from error

    def describe(values: Iterable[ValueInfoProto]) -> Tensors:
        return tuple((v.name, onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name) for v in values)

    if not graph.input or not graph.output:
        raise BuildError(f"the ONNX file {path} has no inputs or no outputs: it is empty or truncated")
    return describe(graph.input), describe(graph.output)
