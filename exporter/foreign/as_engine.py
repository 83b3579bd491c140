"""A foreign graph as an engine: its sizes fixed, its outputs those that the runtime uses, built and looked through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from exporter.build.build_log import Kernel
from exporter.build.engine import EngineRequest, build
from exporter.build.fusion import FUSES, Reason, read_fusion
from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.operation import save
from exporter.foreign.survey import Measured, Survey
from runtime.contract.manifest import Builder, Fusion
from runtime.contract.tensorrt import LibraryName

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Engine:
    """A built engine."""

    plan: Path
    builder: Builder
    fusion: Fusion | None
    """None if the builder names no kernels."""


def with_fixed_size(file: OnnxFile, picture: str, size: tuple[int, int]) -> onnx.ModelProto:
    """The model with pictures of this size alone."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    for value in model.graph.input:
        if value.name == picture:
            for one, number in zip(value.type.tensor_type.shape.dim[2:], size, strict=True):
                one.dim_value = number
    return model


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own, in place, to know it again among the kernels."""
    taken = {""}
    for node in model.graph.node:
        if node.name in taken:
            node.name = f"node of {next((name for name in node.output if name), 'nothing')}"
        taken.add(node.name)


def with_outputs(model: onnx.ModelProto, outputs: Mapping[str, str]) -> onnx.ModelProto:
    """The model with these outputs alone, the names of the graph by their own; a second name is an Identity."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    declared = {one.name: one for one in model.graph.output}
    del made.graph.output[:]
    for name, in_graph in outputs.items():
        if name != in_graph:
            made.graph.node.append(helper.make_node("Identity", [in_graph], [name], f"itae/output/{name}"))
        value = made.graph.output.add()
        value.CopyFrom(declared[in_graph])
        value.name = name
    return made


def build_engine(
    model: onnx.ModelProto,
    found: Survey,
    folder: Path,
    library: LibraryName,
    batch: tuple[int, int, int],
    precision: str,
) -> Engine:
    """Build the engine of an operated model, whose attentions are those of `found`.

    Raises:
        BackendError: the library is not here, or does not start.
        BuildError: it refuses the graph.
    """
    name_nodes(model)
    source, plan = folder / "engine.onnx", folder / "model.plan"
    save(model, found.file, source, "engine.onnx.data")
    built = build(source, plan, EngineRequest(library, batch))
    return Engine(plan, built.builder, fusion_of(found.backbone, model, built.kernels, precision))


def fusion_of(
    attentions: Sequence[Measured], model: onnx.ModelProto, kernels: Sequence[Kernel], precision: str | None = None
) -> Fusion | None:
    """The kernels of each attention; None if the builder names no kernels.

    Args:
        attentions: of the graph that `model` was made of, whose tensors have their names still.
        model: the graph that was built, each node with a name of its own.
        kernels: of the engine.
        precision: of the matrix products; None: each attention's own.
    """
    names = {output: node.name for node in model.graph.node for output in node.output}
    sites = []
    for one in attentions:
        nodes = [one.site.qk, one.site.softmax, one.site.context]
        site = frozenset(names[node.outputs[0].name] for node in nodes if node is not None)
        # Kernels around an operator have a part of it, so it is one kernel where one alone computes nothing else.
        if len(site) == 1 and sum(kernel.nodes == site for kernel in kernels) != 1:
            site |= {""}  # which no kernel computes
        sites.append(site)
    unfusable: dict[int, Reason] = {
        layer: "precision"
        for layer, one in enumerate(attentions)
        if (precision not in FUSES if precision is not None else one.precision not in HALF)
    }
    return read_fusion(sites, kernels, unfusable)
