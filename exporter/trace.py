"""nn.Module -> ONNX, by torch.onnx's dynamo exporter, weights in a file of their own beside the graph."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import torch
from onnxscript import ir
from transformers import AttentionInterface

from exporter.graph_facts import GraphFacts

ATTENTION = "itae_traced"
OPSET = 20
"""The first with Gelu. LayerNormalization is one node since 17."""
TOKENS = "tokens"
"""The traced graph's only output: all tokens after the final norm, (B, N, C)."""
OUTPUT = "output/"
"""Before the name of an output while torch traces."""
SMALL = 4096
"""Bytes; constants up to this size (scales, shapes, indices) lie in the graph, for the surgery to read."""


def attend(
    _: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **__: object,
) -> tuple[torch.Tensor, None]:
    """Plain attention: q, k, v (B, H, N, d) -> (B, N, H, d), as MatMul, Mul, Softmax, MatMul and nothing else.

    transformers' own eager attention adds an all-zero mask; its SDPA export wraps the softmax in IsNaN and Where.
    """
    assert attention_mask is None
    weights = torch.softmax(query @ key.transpose(2, 3) * scaling, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


class _Tokens(torch.nn.Module):
    """The model with one input and one output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.model(pixel_values).last_hidden_state
        return tokens


def to_onnx(model: Any, facts: GraphFacts, folder: Path) -> Path:  # noqa: ANN401  # transformers' class has no useful type
    """Trace a DINOv2 of transformers, its position embedding baked, to `traced.onnx` (+ `.data`) in `folder`.

    Input `pixel_values` (B, 3, H, W), output `tokens` (B, N, C), both float32; B is dynamic.
    """
    model.set_attn_implementation(ATTENTION)
    return export_module(_Tokens(model).eval(), facts.image_size, [TOKENS], folder)


def export_module(module: torch.nn.Module, image_size: tuple[int, int], outputs: Sequence[str], folder: Path) -> Path:
    """Trace a module that takes `pixel_values` (B, 3, H, W) float32 alone, to `traced.onnx` (+ `.data`) in `folder`.

    Its results are called `outputs`; B is dynamic.
    """
    example = torch.zeros(2, 3, *image_size)
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=[f"{OUTPUT}{name}" for name in outputs],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None
        path = folder / "traced.onnx"
        _copy_as_written(program.model)
        program.save(path, external_data=True)
    _forget_graphs()
    _clean(path, outputs)
    return path


def _copy_as_written(model: ir.Model) -> None:
    """Have each transposed weight copied into its new order as it is written, one at a time.

    They are views of PyTorch's own weights, which numpy writes number by number, in five times the time.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray) and not tensor.raw.flags.c_contiguous:
            value.const_value = ir.LazyTensor(
                functools.partial(_in_order, tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
            )


def _in_order(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(torch.from_numpy(tensor.numpy()).contiguous().numpy(), name=tensor.name)  # faster than numpy's


def _forget_graphs() -> None:
    """Let go of the traced graph: onnxscript's rewrite rules are global, and keep the last graph that they matched.

    Without this every weight stays in memory for as long as the process runs. A test watches it, since these
    attributes are onnxscript's own affair.
    """
    for matcher in gc.get_objects():
        # By the type's name: other objects answer isinstance with a warning, and the module is not onnxscript's API.
        if type(matcher).__name__ == "SimplePatternMatcher":
            for name in ("_graph", "_current_node", "_match"):
                if hasattr(matcher, name):
                    setattr(matcher, name, None)


def _name_weights(graph: onnx.GraphProto) -> None:
    """Give weights that torch transposed (`val_47`) their module's name, by which an error can speak of them."""
    taken = {tensor.name for tensor in graph.initializer}
    transposed = {tensor.name: tensor for tensor in graph.initializer if tensor.name.startswith("val_")}
    for node in graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        if node.op_type != "MatMul" or node.input[1] not in transposed or not scopes:
            continue
        name = f"{ast.literal_eval(scopes[0])[-2]}.weight"
        if name not in taken:
            old = node.input[1]
            transposed.pop(old).name = name
            taken.add(name)
            for reader in graph.node:
                reader.input[:] = [name if given == old else given for given in reader.input]


def _name_outputs(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Give the outputs their names; torch itself gives a tensor inside the name of an output a second time."""
    names = {name: f"{name}/inside" for name in outputs} | {f"{OUTPUT}{name}": name for name in outputs}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for holder in (*graph.initializer, *graph.value_info, *graph.output):
        holder.name = names.get(holder.name, holder.name)


def _clean(path: Path, outputs: Sequence[str]) -> None:
    """Strip what torch says of the exporting machine (stack traces with paths), and bring small constants inside."""
    model = onnx.load(path, load_external_data=False)
    _name_outputs(model.graph, outputs)
    _name_weights(model.graph)
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for holder in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for holder in (*model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for tensor in model.graph.initializer:
        if tensor.external_data and 4 * math.prod(tensor.dims) <= SMALL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx warns of its own deprecated calls and of torchvision, which we don't use; failures still raise."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
