"""Pass: int8 for linear layers, as QuantizeLinear and DequantizeLinear around each product.

TensorRT, ONNX Runtime and OpenVINO make int8 kernels of this form: activations symmetric with one scale, since TensorRT
takes no zero point, weights symmetric with a scale for each output channel. Attention's own products, softmax,
LayerNorm, the residual stream and all of ITAE stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from exporter.surgery.edit import Editor, is_constant, producer, rank_of, shape_of
from runtime.contract.errors import SurgeryError

Float32 = npt.NDArray[np.float32]
LEVELS = 127
"""Largest absolute int8 value that is used: -128 has no counterpart."""


@dataclass(frozen=True)
class Layer:
    """One linear layer: a product with a constant matrix, and a constant bias."""

    weight: str
    """Name of the matrix (C_in, C_out)."""
    bias: str | None
    """Name of the bias; None if there is none."""


@dataclass(frozen=True)
class Group:
    """Linear layers that become int8 together, since they read the output of one norm, or one other tensor."""

    norm: str | None
    """Name of the LayerNormalization's output; None if the layers read something else."""
    gain: str | None
    """Name of its gain (C,); a factor on a channel can be moved from here to the weights. None without a norm, and if
    something besides the layers reads the norm."""
    shift: str | None
    """Name of its shift (C,)."""
    layers: Mapping[str, tuple[Layer, ...]]
    """By the name of the tensor that they read; more than one where some rows are cut out first."""

    @property
    def name(self) -> str:
        """The name of its first matrix."""
        return next(iter(self.layers.values()))[0].weight


@dataclass(frozen=True)
class QuantizedLayer:
    """The int8 form of a layer."""

    weight: npt.NDArray[np.int8]
    """(C_in, C_out)"""
    scales: Float32
    """(C_out,)"""
    bias: Float32 | None
    """(C_out,); None leaves the bias as it is."""


@dataclass(frozen=True)
class QuantizedGroup:
    """The int8 form of a group."""

    inputs: Mapping[str, float]
    """The scale of each tensor that is read."""
    layers: Mapping[str, QuantizedLayer]
    """By the name of the matrix."""
    gain: Float32 | None = None
    """(C,), the norm's gain; None leaves it as it is."""
    shift: Float32 | None = None
    divisors: Float32 | None = None
    """(C,): what each channel is divided by before it is rounded; None leaves them as they are."""


def find_groups(graph: gs.Graph) -> list[Group]:
    """All linear layers of a graph, in its order: each MatMul whose second input is a constant matrix."""
    read: dict[int, tuple[gs.Tensor, dict[str, list[Layer]]]] = {}
    for node in graph.nodes:
        if not _is_linear(node):
            continue
        tensor = node.inputs[0]
        source = _before_cut(tensor)
        _, layers = read.setdefault(id(source), (source, {}))
        bias = _bias(node)
        layers.setdefault(tensor.name, []).append(Layer(node.inputs[1].name, bias[1].name if bias else None))
    return [_group(source, {name: tuple(some) for name, some in layers.items()}) for source, layers in read.values()]


def quantize_linears(graph: gs.Graph, groups: Iterable[QuantizedGroup]) -> list[str]:
    """Put int8 layers in the place of float32 ones.

    Raises:
        SurgeryError: the graph lacks a layer.
    """
    if any(node.op == "QuantizeLinear" for node in graph.nodes):  # a second run changes nothing
        return []
    found = {group.name: group for group in find_groups(graph)}
    nodes = {node.inputs[1].name: node for node in graph.nodes if _is_linear(node)}
    tensors = graph.tensors()
    changed = []
    for number, one in enumerate(groups):
        group = found.get(next(iter(one.layers)))
        if group is None:
            raise SurgeryError(f"there is no linear layer {next(iter(one.layers))!r}")
        edit = Editor(graph, f"int8/{number}")
        for index, (name, scale) in enumerate(one.inputs.items()):
            tensor = tensors[name]
            shape = shape_of(tensor)
            pair = [np.array(scale, np.float32), np.array(0, np.int8)]
            if one.divisors is not None:
                factors = np.asarray(1 / one.divisors, np.float32)
                tensor = edit.node("Mul", [tensor, factors], f"input{index}_divided", dtype=np.float32, shape=shape)
            whole = edit.node("QuantizeLinear", [tensor, *pair], f"input{index}", dtype=np.int8, shape=shape)
            name_of_back = f"input{index}_float32"
            back = edit.node("DequantizeLinear", [whole, *pair], name_of_back, dtype=np.float32, shape=shape)
            for layer in group.layers[name]:
                node = nodes[layer.weight]
                node.inputs[0] = back
                _replace_weight(edit, node, one.layers[layer.weight])
                changed.append(layer.weight)
        if one.gain is not None and one.shift is not None:
            norm = producer(tensors[group.norm])
            assert norm is not None
            norm.inputs[1] = gs.Constant(f"{group.gain}/int8/{number}", one.gain)
            norm.inputs[2] = gs.Constant(f"{group.shift}/int8/{number}", one.shift)
    graph.cleanup().toposort()
    return changed


def int8_products(model: Path) -> list[str]:
    """Names of the MatMul nodes of a file whose inputs were both int8."""
    graph = onnx.load(model, load_external_data=False).graph
    back = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return [node.name for node in graph.node if node.op_type == "MatMul" and back.issuperset(node.input)]


def _replace_weight(edit: Editor, node: gs.Node, layer: QuantizedLayer) -> None:
    name = node.inputs[1].name
    stored = gs.Constant(f"{name}/int8", layer.weight)
    zeros = np.zeros(len(layer.scales), np.int8)
    node.inputs[1] = edit.node(
        "DequantizeLinear",
        [stored, layer.scales, zeros],
        f"{name}/float32",
        dtype=np.float32,
        shape=layer.weight.shape,
        axis=1,
    )
    found = _bias(node)
    if layer.bias is not None and found is not None:
        add, old = found
        value = layer.bias if rank_of(old) == 1 else layer.bias[None]
        add.inputs = [gs.Constant(f"{name}/bias", value) if given is old else given for given in add.inputs]


def _is_linear(node: gs.Node) -> bool:
    """Whether `node` multiplies by a constant matrix of its own."""
    weight = node.inputs[1] if node.op == "MatMul" else None
    return weight is not None and isinstance(weight, gs.Constant) and rank_of(weight) == 2 and len(weight.outputs) == 1


def _before_cut(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that `tensor` is cut out of along its rows; itself if it is not cut."""
    node = producer(tensor)
    return node.inputs[0] if node is not None and node.op == "Slice" else tensor


def _bias(node: gs.Node) -> tuple[gs.Node, gs.Tensor] | None:
    """The Add of a constant that alone reads a product, and the constant."""
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    constants = [tensor for tensor in readers[0].inputs if is_constant(tensor)]
    return (readers[0], constants[0]) if len(constants) == 1 else None


def _group(source: gs.Tensor, layers: Mapping[str, tuple[Layer, ...]]) -> Group:
    node = producer(source)
    if node is None or node.op != "LayerNormalization" or len(node.inputs) != 3:
        return Group(None, None, None, layers)
    readers = [reader for one in source.outputs for reader in (one.outputs[0].outputs if one.op == "Slice" else [one])]
    gain, shift = node.inputs[1:]
    movable = all(map(_is_linear, readers)) and is_constant(gain) and is_constant(shift)
    return Group(source.name, gain.name if movable else None, shift.name if movable else None, layers)
