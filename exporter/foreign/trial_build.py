"""`inspect --build`: whether TensorRT takes a foreign graph, and how many attentions become one kernel.

TensorRT-RTX builds it, which needs no GPU. The engine is thrown away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporter.build.engine import EngineRequest, build
from exporter.foreign.as_engine import fusion_of, name_nodes, with_fixed_size
from exporter.foreign.operation import save
from exporter.foreign.survey import Survey
from runtime.contract.errors import BuildError
from runtime.contract.manifest import Fusion
from runtime.contract.tensorrt import import_library

BATCH = (1, 8, 64)
"""min, opt, max of a dynamic batch, as in our own engines."""


@dataclass(frozen=True)
class TrialBuild:
    """One build of a graph as it is."""

    builder: str
    """The library and its version."""
    refused: str | None
    """The reason why there is no engine, in the builder's words; None if there is one."""
    plan_bytes: int
    """0 if there is no engine, as `seconds` is."""
    seconds: float
    fusion: Fusion | None
    """By layer, or by attention if the graph has no layers that ITAE works in; None if there is no engine, or the
    builder names no kernels."""


def require_builder() -> str:
    """The builder and its version.

    Raises:
        BackendError: it is not here; the message says what to install.
    """
    return f"TensorRT-RTX {import_library('tensorrt-rtx', 'inspect --build').__version__}"


def try_build(found: Survey, folder: Path) -> TrialBuild:
    """Build the graph in `folder`, at the size of the run, and look for its attentions among the kernels.

    Raises:
        BackendError: the builder is not here, or does not start.
    """
    builder = require_builder()
    if found.trouble is not None:
        return TrialBuild(builder, "not tried, since ONNX Runtime can't run the graph", 0, 0.0, None)
    model = _ready(found)
    onnx_path = folder / "trial.onnx"
    save(model, found.file, onnx_path, "trial.onnx.data")
    fixed = found.fixed_batch
    request = EngineRequest("tensorrt-rtx", (fixed, fixed, fixed) if isinstance(fixed, int) else BATCH)
    start = time.perf_counter()
    try:
        result = build(onnx_path, folder / "trial.engine", request)
    except BuildError as error:
        return TrialBuild(builder, str(error).removeprefix(f"{onnx_path}: "), 0, 0.0, None)
    seconds = time.perf_counter() - start
    fusion = fusion_of(found.backbone or found.sites, model, result.kernels)
    return TrialBuild(builder, None, result.plan_bytes, seconds, fusion)


def _ready(found: Survey) -> onnx.ModelProto:
    """The graph with a name of its own for each node, and a fixed picture size."""
    assert found.picture is not None
    assert found.image_size is not None
    model = with_fixed_size(found.file, found.picture, found.image_size)
    name_nodes(model)
    return model
