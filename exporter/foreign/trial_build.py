"""`inspect --build`: whether TensorRT takes a foreign graph, and how many attentions become one kernel.

TensorRT-RTX builds it, which needs no GPU. The engine is thrown away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporter.build.engine import EngineRequest, build
from exporter.build.fusion import Reason, read_fusion
from exporter.foreign.operation import save
from exporter.foreign.survey import Survey
from runtime.contract.errors import BuildError
from runtime.contract.manifest import Fusion
from runtime.contract.tensorrt import import_library

BATCH = (1, 8, 64)
"""min, opt, max of a dynamic batch, as in our own engines."""
HALF = ("float16", "bfloat16")


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
    names = {output: node.name for node in model.graph.node for output in node.output}
    onnx_path = folder / "trial.onnx"
    save(model, found.file, onnx_path, "trial.onnx.data")
    fixed = found.picture.shape[0] if found.picture is not None else None
    request = EngineRequest("tensorrt-rtx", (fixed, fixed, fixed) if isinstance(fixed, int) else BATCH)
    start = time.perf_counter()
    try:
        result = build(onnx_path, folder / "trial.engine", request)
    except BuildError as error:
        return TrialBuild(builder, str(error).removeprefix(f"{onnx_path}: "), 0, 0.0, None)
    seconds = time.perf_counter() - start
    sites, attentions = [], found.backbone or found.sites
    for one in attentions:
        nodes = [one.site.qk, one.site.softmax, one.site.context]
        site = frozenset(names[node.outputs[0].name] for node in nodes if node is not None)
        # Kernels around an operator have a part of it, so it is one kernel where one alone computes nothing else.
        if len(site) == 1 and sum(kernel.nodes == site for kernel in result.kernels) != 1:
            site |= {""}  # which no kernel computes
        sites.append(site)
    unfusable: dict[int, Reason] = {
        layer: "precision" for layer, one in enumerate(attentions) if one.precision not in HALF
    }
    return TrialBuild(builder, None, result.plan_bytes, seconds, read_fusion(sites, result.kernels, unfusable))


def _ready(found: Survey) -> onnx.ModelProto:
    """The graph with a name of its own for each node, to know it again among the kernels, and a fixed picture size."""
    model = onnx.ModelProto()
    model.CopyFrom(found.file.model)
    taken = {""}
    for node in model.graph.node:
        if node.name in taken:
            node.name = f"node of {next((name for name in node.output if name), 'nothing')}"
        taken.add(node.name)
    for value in model.graph.input:
        if found.picture is not None and value.name == found.picture.name and found.image_size is not None:
            for size, number in zip(value.type.tensor_type.shape.dim[2:], found.image_size, strict=True):
                size.dim_value = number
    return model
