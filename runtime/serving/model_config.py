"""The configuration of a model for Triton, as the official `ModelConfig` message of package `tritonclient`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.contract.errors import BackendError, ManifestError
from runtime.contract.manifest import Manifest, TensorInfo

BACKENDS = ("python", "onnxruntime", "tensorrt")
"""Backends of Triton that run a model: ours around ONNX Runtime on the CPU, and two of Triton itself, on GPUs."""
IMAGE, CLUSTER, DISTANCE, EMBEDDING = "image", "cluster", "distance", "embedding"
"""Input and outputs of an images model."""
MARK = "itae"
"""The parameter of a configuration that shows that we wrote it; its value is the kind of model: tensor or images."""
PROVIDER, COMPUTE, THREADS = "provider", "compute", "threads"
"""Further parameters of a model of backend python: the arguments of `runtime.load`."""
MAX_QUEUE = 1024
"""Number of requests that may wait for a model; further ones are refused at once."""
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}


@dataclass(frozen=True)
class ServingOptions:
    """The options with which Triton runs a model."""

    backend: str
    """One of `BACKENDS`."""
    max_batch: int
    """Most images in a request, and in a batch that Triton makes of several requests."""
    queue_delay: float
    """Milliseconds that a request may wait for others to share a batch with it."""
    instances: int
    """Number of copies of the model, on the CPU or on each GPU."""
    gpus: tuple[int, ...]
    """Numbers of the GPUs to use; empty for all that Triton sees."""
    versions: int
    """Number of newest versions that are served."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """`PROVIDER`, `COMPUTE` and `THREADS` of backend python, in so far as they are not the usual ones."""


def tensor_config(name: str, manifest: Manifest, options: ServingOptions, file: str) -> Any:  # noqa: ANN401
    """Return the `ModelConfig` of a model that takes what the model itself takes.

    Args:
        name: the model's name in Triton.
        manifest: the model's.
        options: how Triton runs it.
        file: name of the model's file in a version's folder.

    Raises:
        BackendError: package tritonclient is missing.
        ManifestError: the shape of an input or output has more than one dynamic dimension.
    """
    messages = import_messages()
    config = _config(name, "tensor", manifest, options)
    config.backend = options.backend
    if options.backend != "python":
        config.default_model_filename = file
    # One more than the images models': while one of these is exchanged, its older version still needs the older model.
    config.version_policy.latest.num_versions = options.versions + 1
    for setting, value in options.settings.items():
        config.parameters[setting].string_value = value
    source = config.input.add()
    source.name, source.data_type, source.dims[:] = manifest.input.name, _type(manifest.input), _dims(manifest.input)
    for one in manifest.outputs:
        output = config.output.add()
        output.name = one.name if options.backend == "python" else one.name_in_file
        output.data_type, output.dims[:] = _type(one), _dims(one)
    group = config.instance_group.add()
    group.count = options.instances
    if options.backend == "python":
        group.kind = messages.ModelInstanceGroup.KIND_CPU
    else:
        group.kind, group.gpus[:] = messages.ModelInstanceGroup.KIND_GPU, options.gpus
    warmup = config.model_warmup.add()
    warmup.name, warmup.batch_size = "golden sample", 1
    given = warmup.inputs[manifest.input.name]
    given.data_type, given.dims[:], given.input_data_file = _type(manifest.input), _dims(manifest.input), WARMUP
    return config


WARMUP = "golden_sample"
"""Name of the file in a model's folder `warmup` with the first input of the golden sample, its bytes alone."""


def images_config(name: str, manifest: Manifest, options: ServingOptions, *, has_clusters: bool) -> Any:  # noqa: ANN401
    """Return the `ModelConfig` of a model that takes encoded images; arguments as `tensor_config`.

    Raises:
        BackendError: package tritonclient is missing.
    """
    messages = import_messages()
    config = _config(name, "images", manifest, options)
    config.backend = "python"
    config.version_policy.latest.num_versions = options.versions
    source = config.input.add()
    source.name, source.data_type, source.dims[:] = IMAGE, messages.TYPE_STRING, [1]
    outputs = [(EMBEDDING, messages.TYPE_FP32, manifest.embedding_width)]
    if has_clusters:
        outputs += [(CLUSTER, messages.TYPE_INT32, 1), (DISTANCE, messages.TYPE_FP32, 1)]
    for output_name, data_type, width in outputs:
        output = config.output.add()
        output.name, output.data_type, output.dims[:] = output_name, data_type, [width]
    group = config.instance_group.add()
    group.kind = messages.ModelInstanceGroup.KIND_CPU
    group.count = max(2, options.instances * len(options.gpus) + 1)  # one decodes while another waits for the model
    return config


def _config(name: str, kind: str, manifest: Manifest, options: ServingOptions) -> Any:  # noqa: ANN401
    """The part that the two kinds have in common."""
    config = import_messages().ModelConfig()
    config.name, config.max_batch_size = name, options.max_batch
    preferred = preferred_batch(manifest)
    batching = config.dynamic_batching
    if options.backend == "tensorrt" and preferred < options.max_batch:
        batching.preferred_batch_size[:] = [preferred, options.max_batch]
    batching.max_queue_delay_microseconds = round(options.queue_delay * 1000)
    batching.default_queue_policy.max_queue_size = MAX_QUEUE
    config.parameters[MARK].string_value = kind
    return config


def preferred_batch(manifest: Manifest) -> int:
    """The batch that an engine was optimised for; 1 if there is none."""
    return manifest.options.batch[1] if manifest.options.batch is not None else 1


def as_text(config: Any) -> bytes:  # noqa: ANN401
    """The content of `config.pbtxt`."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config)).encode()


def parse(text: bytes) -> Any:  # noqa: ANN401
    """The `ModelConfig` of a `config.pbtxt`.

    Raises:
        ValueError: it is no configuration.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text.decode(), import_messages().ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error


def kind_of(config: Any) -> str:  # noqa: ANN401
    """`tensor` or `images`; empty for a configuration that is not ours."""
    return str(config.parameters[MARK].string_value) if MARK in config.parameters else ""


def import_messages() -> Any:  # noqa: ANN401  # a module without types
    """The module of the official messages.

    Raises:
        BackendError: package tritonclient is missing.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise BackendError(f"a model repository needs tritonclient: pip install 'itae[triton]' ({error})") from error
    return model_config_pb2


def _type(tensor: TensorInfo) -> int:
    return int(import_messages().DataType.Value(_TYPES[tensor.dtype]))


def _dims(tensor: TensorInfo) -> Sequence[int]:
    """The shape without the batch dimension.

    Raises:
        ManifestError: another dimension is dynamic.
    """
    dims = [side for side in tensor.shape[1:] if isinstance(side, int)]
    if len(dims) != len(tensor.shape) - 1:
        raise ManifestError(f"`{tensor.name}` has the shape {tensor.shape}: only the first dimension may be dynamic")
    return dims
