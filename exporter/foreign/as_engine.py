"""A foreign graph as an engine: its sizes fixed, its outputs those that the runtime uses, built and looked through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.build.build_log import Kernel
from exporter.build.engine import EngineRequest, build
from exporter.build.fusion import FUSES, Reason, read_fusion
from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.operation import save
from exporter.foreign.survey import Measured, Survey, Tensor
from runtime.contract.errors import BuildError
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


def with_fixed_size(file: OnnxFile, picture: Tensor, size: tuple[int, int]) -> onnx.ModelProto:
    """The model with pictures of this size alone."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    for value in model.graph.input:
        if value.name == picture.name:
            for axis, number in zip(picture.size_axes, size, strict=True):
                value.type.tensor_type.shape.dim[axis].dim_value = number
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


def without_sequences(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with pieces that SplitToSequence cuts and SequenceAt takes, by constant numbers, as Slices.

    TensorRT has no operators of sequences; where a number is computed, they stay, and TensorRT refuses them.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    numbers = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if np.prod(one.dims) == 1}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            numbers[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    cuts = {node.output[0]: node for node in model.graph.node if node.op_type == "SplitToSequence"}
    for node in made.graph.node:
        cut = cuts.get(node.input[0]) if node.op_type == "SequenceAt" else None
        if cut is None or len(cut.input) < 2 or not {cut.input[1], node.input[1]} <= numbers.keys():
            continue
        size, place = (int(numbers[name].reshape(-1)[0]) for name in (cut.input[1], node.input[1]))
        if place < 0 or numbers[cut.input[1]].ndim > 0:
            continue
        axis = next((one.i for one in cut.attribute if one.name == "axis"), 0)
        bounds = {"start": place * size, "end": (place + 1) * size, "axis": axis}
        names = [f"{node.output[0]}/{name}" for name in bounds]
        made.graph.initializer.extend(
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in zip(names, bounds.values(), strict=True)
        )
        node.CopyFrom(helper.make_node("Slice", [cut.input[0], *names], [node.output[0]], node.name))
    still = {name for node in made.graph.node for name in node.input}
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in made.graph.node
        if node.op_type != "SplitToSequence" or node.output[0] in still
    ]
    del made.graph.node[:]
    made.graph.node.extend(kept)
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
    model = without_sequences(model)
    name_nodes(model)
    source, plan = folder / "engine.onnx", folder / "model.plan"
    save(model, found.file, source, "engine.onnx.data")
    try:
        built = build(source, plan, EngineRequest(library, batch))
    except BuildError as error:
        raise BuildError(str(error).replace(str(source), f"the graph of {found.file.path}")) from error
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
