"""Passes that only make a foreign graph faster: scale on the queries, fewer rows in the last layer, half precision.

They change rounding, so they are done for engines and where `--faster` or `--precision` asks for it. Where a condition
does not hold, they say so and leave the graph as it is, or refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.operation import MOST_BYTES
from exporter.foreign.probe import Probe, number
from exporter.foreign.survey import Survey, feeds_for
from exporter.surgery.edit import Editor, constant_value, import_graph, is_output, load_external_data, replace_uses
from exporter.surgery.half_precision import Half, half_precision
from exporter.surgery.leading_rows import keep_leading_rows, tensors_behind
from runtime.contract.errors import InputError, SurgeryError

SCOPE = "itae/half/"
"""The names of the Casts of half precision begin so."""
_FLOAT16, _BFLOAT16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def make_faster(found: Survey, probe: Probe, precision: Half | None) -> tuple[OnnxFile, list[str]]:
    """The file with the scale of each layer on its queries, and its matrix products in half precision if asked for.

    In bf16 the products are in float16 at first, as ONNX Runtime's CPU runs no bfloat16; `finish` makes them bfloat16.

    Returns:
        The file, its weights inside, and what was done or not, in clauses.

    Raises:
        SurgeryError: the graph can't become half precision; the message says why.
    """
    if found.file.bytes > MOST_BYTES:
        if precision is None:
            return found.file, [f"scales stay where they are: the file has {found.file.bytes} bytes, 2 GiB or more"]
        raise SurgeryError(f"--precision {precision} is for files below 2 GiB, and this has {found.file.bytes} bytes")
    if precision is not None and (half := _half_already(found.file.model)):
        raise SurgeryError(f"--precision {precision}: the weight {half!r} is in half precision already: leave it out")
    model = onnx.ModelProto()
    model.CopyFrom(found.file.model)
    load_external_data(model, found.file.path.parent)
    graph = import_graph(model).toposort()
    _annotate(graph, found, probe)
    notes = [_scale_queries(graph, found)]
    if precision is not None:
        _part_outputs(graph)
        try:
            changed = half_precision(graph, precision, exact_softmax=True)
        except SurgeryError as error:
            raise SurgeryError(f"--precision {precision} can't be applied to this graph: {error}") from error
        notes.append(f"{len(changed)} operators compute in {precision}; softmax, norms, sums of layers in float32")
    operated = _exported(graph, model)
    if precision == "bf16":
        _swap(operated, _BFLOAT16, _FLOAT16)
    return replace(found.file, model=operated, data=()), notes


def keep_rows(model: onnx.ModelProto, found: Survey, folder: Path) -> tuple[onnx.ModelProto, str]:
    """The operated model that computes those tokens of the last layer that its outputs need, and a clause that says so.

    Keys and values of all tokens stay, and the queries whose norms are compared. Where an output needs all tokens, or
    it can't be seen which it needs, the model is as it was.

    Args:
        model: the file of `found` with the method in it, its weights inside.
        found: the survey without the method.
        folder: a work folder that is made for it.
    """
    last = found.backbone[-1]
    if found.file.bytes > MOST_BYTES or last.site.qk is None:
        return model, "all tokens of the last layer are computed: its attention is one operator, or the file too large"
    assert found.image_size is not None
    graph = import_graph(model).toposort()
    name = last.site.qk.outputs[0].name
    product = next(node for node in graph.nodes if any(one.name == name for one in node.outputs))
    folder.mkdir()
    try:
        probe = Probe(replace(found.file, model=model, data=()), folder)
        shapes = probe.shapes(feeds_for(found, found.image_size, found.batch), tensors_behind(graph, product))
        kept = keep_leading_rows(graph, product, last.heads, found.batch, shapes)
    except (InputError, SurgeryError) as error:
        return model, f"all tokens of the last layer are computed: {error}"
    return _exported(
        graph, model
    ), f"the last layer computes {kept} of its {last.tokens} tokens, as no output needs more"


def finish(model: onnx.ModelProto, precision: Half | None) -> None:
    """Turn the Casts of weights into weights, in place, and float16 into bfloat16 for bf16.

    Raises:
        SurgeryError: a weight is too large for float16.
    """
    if precision is None:
        return
    if precision == "bf16":
        _swap(model, _FLOAT16, _BFLOAT16)
    weights = {one.name: one for one in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        source = weights.get(node.input[0]) if node.op_type == "Cast" and node.name.startswith(SCOPE) else None
        if source is None:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(node.attribute[0].i))
        with np.errstate(over="ignore"):
            narrow = numpy_helper.to_array(source).astype(dtype)
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise SurgeryError(
                f"the weight {source.name!r} is larger than {dtype} can be: use --precision bf16 or fp32"
            )
        model.graph.initializer.append(numpy_helper.from_array(narrow, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {one.name for one in model.graph.output}
    used |= {name for node in kept for name in _inner_names(node)}
    left = [one for one in model.graph.initializer if one.name in used]
    if len(left) < len(model.graph.initializer):
        left = [onnx.TensorProto.FromString(one.SerializeToString()) for one in left]
        del model.graph.initializer[:]
        model.graph.initializer.extend(left)


def _inner_names(node: onnx.NodeProto) -> Sequence[str]:
    """Names that the graphs inside a node read."""
    names: list[str] = []
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for one in inner.node:
                names += [*one.input, *_inner_names(one)]
    return names


def _half_already(model: onnx.ModelProto) -> str | None:
    return next((one.name for one in model.graph.initializer if one.data_type in (_FLOAT16, _BFLOAT16)), None)


def _annotate(graph: gs.Graph, found: Survey, probe: Probe) -> None:
    """Give the tensors of floating point their data types and shapes, as a run shows them."""
    assert found.picture is not None
    assert found.image_size is not None
    computed = {one.name: one for node in graph.nodes for one in node.outputs if one.name}
    types = probe.types([*computed])
    floats = [name for name, dtype in types.items() if dtype == np.float32]
    shapes = probe.shapes(feeds_for(found, found.image_size, found.batch), floats)
    fixed = found.fixed_batch is not None
    for name, dtype in types.items():
        computed[name].dtype = dtype
        computed[name].shape = None
    for name, shape in shapes.items():
        sizes: list[int | str] = list(shape)
        if sizes and sizes[0] == found.batch and not fixed:
            sizes[0] = "batch"
        computed[name].shape = sizes


def _scale_queries(graph: gs.Graph, found: Survey) -> str:
    """Scale the queries in place of the logits, where one constant number does; says how many layers that changed."""
    made = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    changed, late = 0, 0
    for layer, one in enumerate(found.backbone):
        site = one.site
        if not site.logit_scales or site.qk is None:
            continue
        late += 1
        product = made[site.qk.outputs[0].name]
        readers = product.outputs[0].outputs
        if len(site.logit_scales) > 1 or len(readers) != 1 or is_output(graph, product.outputs[0]):
            continue
        (node,) = readers
        scale = next((tensor for tensor in node.inputs if tensor is not product.outputs[0]), None)
        value = None if scale is None else constant_value(scale)
        query = product.inputs[0]
        if node.op not in ("Mul", "Div") or value is None or number(value) in (None, 0) or query.dtype != value.dtype:
            continue
        if is_output(graph, node.outputs[0]) or product.op != "MatMul" or query.shape is None:
            continue
        factor = np.asarray(1 / value if node.op == "Div" else value, value.dtype).reshape(())
        early = Editor(graph, f"scaled/layer{layer}").node(
            "Mul", [query, factor], "query", dtype=query.dtype, shape=tuple(query.shape)
        )
        product.inputs[0] = early
        replace_uses(graph, node.outputs[0], product.outputs[0])
        changed += 1
    graph.cleanup().toposort()
    if not late:
        return (
            f"queries are scaled before their product already, or by the operator, in all {len(found.backbone)} layers"
        )
    return f"the scale went from the logits to the queries in {changed} of the {late} layers that had it there"


def _part_outputs(graph: gs.Graph) -> None:
    """Put an Identity before each output, so that the operator that gives it may compute in half precision."""
    for index, output in enumerate(graph.outputs):
        if not isinstance(output, gs.Variable) or not output.inputs:
            continue
        (node,) = output.inputs
        inner = gs.Variable(f"{output.name}/before", dtype=output.dtype, shape=output.shape)
        for reader in [*output.outputs]:
            reader.inputs = [inner if one is output else one for one in reader.inputs]
        node.outputs = [inner if one is output else one for one in node.outputs]
        graph.nodes.append(gs.Node("Identity", f"itae/output{index}", inputs=[inner], outputs=[output]))
    graph.toposort()


def _exported(graph: gs.Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as a model whose inputs, outputs and opsets are those of `model`."""
    try:
        made: onnx.ModelProto = gs.export_onnx(graph)
    except Exception as error:  # of a library that raises what it likes
        raise SurgeryError(f"the graph can't be rewritten: {error}") from error
    del made.graph.value_info[:]  # sizes of one run
    for mine, theirs in ((made.graph.input, model.graph.input), (made.graph.output, model.graph.output)):
        del mine[:]
        mine.extend(theirs)
    del made.opset_import[:]
    made.opset_import.extend(model.opset_import)
    made.ir_version = model.ir_version
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    return made


def _swap(model: onnx.ModelProto, old: int, new: int) -> None:
    """Turn one half-precision type into another: the targets of Casts, and constants."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                attribute.i = new
            if attribute.HasField("t") and attribute.t.data_type == old:
                attribute.t.CopyFrom(_converted(attribute.t, new))
    for tensor in model.graph.initializer:
        if tensor.data_type == old:
            tensor.CopyFrom(_converted(tensor, new))


def _converted(tensor: onnx.TensorProto, new: int) -> onnx.TensorProto:
    target: Any = np.dtype(np.float16) if new == _FLOAT16 else np.dtype(ml_dtypes.bfloat16)
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32).astype(target), tensor.name)
