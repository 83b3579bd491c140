"""The outputs of a foreign graph that the runtime uses, and the output `embedding` where a tensor becomes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.foreign.probe import Arrays, Probe
from exporter.foreign.request import ForeignSpec
from exporter.foreign.survey import Survey, feeds_for
from runtime.contract.errors import UsageError
from runtime.contract.manifest import OUTPUTS

EMBEDDING = "embedding"
NOT_EMBEDDINGS = ("logits", "scores", "probs", "probabilities")
"""Parts of names of outputs (B, C) that are no embeddings."""


def outputs_of(found: Survey, *, with_all: bool = False) -> dict[str, str]:
    """The outputs that the runtime uses, the names of the file by its own names for them.

    That is the embedding, (B, C) in float32; where there is none or `with_all`, all outputs (B, ...) in float32 under
    their own names; empty where the runtime can't run the model.
    """
    if len(found.inputs) > 1 or found.picture is None or not found.picture.is_usual:
        return {}
    by_image = [
        one.name for one in found.outputs
        if one.dtype == "float32" and found.output_shapes[one.name][:1] == (found.batch,)
    ]  # fmt: skip
    vectors = [
        name for name in by_image
        if len(found.output_shapes[name]) == 2 and not any(word in name.lower() for word in NOT_EMBEDDINGS)
    ]  # fmt: skip
    # A name that readers know means what they know: it gets another.
    own = {f"own/{name}" if name in OUTPUTS else name: name for name in by_image}
    if vectors:
        embedding = EMBEDDING if EMBEDDING in vectors else vectors[0]
        others = {name: in_file for name, in_file in own.items() if in_file != EMBEDDING or embedding != EMBEDDING}
        return {EMBEDDING: embedding, **(others if with_all else {})}
    return own


def why_not(found: Survey) -> str:
    """The reason why the runtime can't use the file."""
    assert found.picture is not None
    if len(found.inputs) > 1:
        others = ", ".join(one.name for one in found.inputs if one is not found.picture)
        return f"`embed` runs models with one input, and this one takes {others} too (--fix-input NAME=VALUE fixes one)"
    if not (picture := found.picture).is_usual:
        taken = f"{picture.dtype} ({', '.join(map(str, picture.shape))})"
        return f"`embed` gives pictures in float32 (B, 3, H, W), and this model takes {taken}"
    return "none of the outputs is in float32, finite and by image (--embedding NAME adds one that is)"


def finite(outputs: dict[str, str], found: Arrays) -> dict[str, str]:
    """Those of the outputs that hold no NaN or infinity, which can't be compared."""
    return {name: in_file for name, in_file in outputs.items() if np.isfinite(found[in_file]).all()}


def with_embedding(found: Survey, probe: Probe, spec: ForeignSpec, prefix: int) -> onnx.ModelProto:
    """The model with the output `embedding` behind its own.

    Raises:
        UsageError: there is no such tensor, it has another shape, or there is an output of that name already.
    """
    name, graph = spec.embedding or "", found.file.model.graph
    known = {one for node in graph.node for one in node.output if one}
    if name == EMBEDDING and any(one.name == EMBEDDING for one in found.outputs):
        return found.file.model
    if name not in known:
        near = [one.name for one in found.outputs]
        raise UsageError(f"--embedding {name}: no node of the graph gives it; its outputs are {', '.join(near)}")
    if EMBEDDING in known or any(one.name == EMBEDDING for one in found.inputs):
        raise UsageError(f"--embedding {name}: the graph has a tensor `embedding` already: name that")
    assert found.image_size is not None
    shape = probe.shapes(feeds_for(found, found.image_size, found.batch), [name])[name]
    dtype = probe.dtypes([name])[name]
    if len(shape) not in (2, 3) or shape[0] != found.batch or dtype.kind != "f":
        raise UsageError(
            f"--embedding {name}: is {dtype} {list(shape)}, where (B, C) or tokens (B, N, C) in floating point are "
            "needed"
        )
    if len(shape) == 3 and spec.pooling != "mean" and prefix == 0:
        raise UsageError(f"--embedding {name}: the model has no CLS token: say --pooling mean")
    model = onnx.ModelProto()
    model.CopyFrom(found.file.model)
    own = "itae/embedding"
    parts, constants = [], {f"{own}/first": np.array(0, np.int64), f"{own}/prefix": np.array([prefix], np.int64),
        f"{own}/end": np.array([2**62], np.int64), f"{own}/one": np.array([1], np.int64)}  # fmt: skip
    nodes = []
    if len(shape) == 2:
        parts = [name]
    if len(shape) == 3 and spec.pooling != "mean":
        nodes.append(helper.make_node("Gather", [name, f"{own}/first"], [f"{own}/cls"], axis=1))
        parts.append(f"{own}/cls")
    if len(shape) == 3 and spec.pooling != "cls":
        ends = [f"{own}/{part}" for part in ("prefix", "end", "one")]
        nodes.append(helper.make_node("Slice", [name, *ends], [f"{own}/patches"]))
        axes: dict[str, Any] = {"axes": [1]} if found.file.opset < 18 else {}
        inputs = [f"{own}/patches", *([f"{own}/one"] if not axes else [])]
        nodes.append(helper.make_node("ReduceMean", inputs, [f"{own}/mean"], keepdims=0, **axes))
        parts.append(f"{own}/mean")
    if len(parts) == 2:
        nodes.append(helper.make_node("Concat", parts, [f"{own}/both"], axis=1))
        parts = [f"{own}/both"]
    nodes.append(helper.make_node("Cast", parts, [EMBEDDING], to=TensorProto.FLOAT))
    for node in nodes:
        node.name = node.output[0] if node.output[0] != EMBEDDING else own
    model.graph.node.extend(nodes)
    used = {one for node in nodes for one in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, key) for key, value in constants.items() if key in used
    )
    width = shape[-1] * (2 if len(shape) == 3 and spec.pooling == "cls+mean" else 1)
    batch = found.picture.shape[0] if found.picture is not None else "batch"
    model.graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [batch, width]))
    return model


def is_pooled(spec: ForeignSpec, found: Survey) -> bool:
    """Whether the embedding was made of tokens, by `--pooling`."""
    return any(node.name.startswith("itae/embedding/") for node in found.file.model.graph.node) and bool(spec.embedding)
