"""The weights of a DINOv2 in an ONNX file, for where the checkpoint is lost: found by names and structure, then proven.

Exporters keep the names of biases, norms and tokens. They transpose the weight of a linear layer and lose its name: it
is known again by the bias that is added to its product. The proof runs the file beside the model that was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from exporter.models import naming, position
from exporter.models.architecture import Architecture, PosEmbed
from runtime.contract.errors import WeightsError, one_line

Array = npt.NDArray[np.float32]
LIMIT = 1e-3
"""Largest difference of the file's tokens to those of the model that was found, as a share of the largest number."""
HALF_LIMIT = 3e-2
"""The same where the file's weights are in half precision."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_POSITIONS = ("pos_embed", "position_embeddings")
_SCALES = (".gamma", ".lambda1")
_LAST_NORM = ("layernorm.bias", "norm.bias")


@dataclass(frozen=True)
class OnnxWeights:
    """The tensors of an ONNX file under the names of a checkpoint."""

    path: Path
    entries: dict[str, object]
    tokens: str
    """The tensor behind the final norm."""
    is_half: bool
    notes: tuple[str, ...]


def read(path: Path, arch: Architecture) -> OnnxWeights:
    """The weights in an ONNX file, by the names that its exporter kept, or as its structure shows.

    Raises:
        WeightsError: it can't be read, or has no tensors of a DINOv2.
    """
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise WeightsError(f"can't read the ONNX file {path}: {one_line(error)}") from error
    graph = model.graph
    _forget_our_passes(graph)
    stored = {one.name: one for one in graph.initializer if one.data_type in _FLOATS}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].t.data_type in _FLOATS:
            stored[node.output[0]] = node.attribute[0].t
    stored |= {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type in ("Identity", "Cast") and node.input[0] in stored
    }
    half = any(
        one.data_type == onnx.TensorProto.FLOAT16 and math.prod(one.dims) > arch.width for one in stored.values()
    )
    arrays = {name: numpy_helper.to_array(one).astype(np.float32) for name, one in stored.items()}
    words = naming.vocabulary(arch)
    entries: dict[str, Array] = {name: array for name, array in arrays.items() if _is_known(name, words)}
    entries |= dict(_by_bias(graph, arrays, words))
    notes = []
    if not any(name.endswith(_POSITIONS) for name in entries):
        entries |= _position(graph, arrays, words, arch)
    if half:
        notes.append(f"{path}: its weights are in half precision: the lost digits stay lost")
    found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in entries.items()}
    norm = next((name for name in found if naming.generalise(name)[1] is None and name.endswith(_LAST_NORM)), None)
    tokens = next((node.output[0] for node in graph.node if norm is not None and norm in node.input), None)
    if norm is None or tokens is None:
        raise WeightsError(
            f"{path} is not a DINOv2 that is known: {len(found)} of its tensors have names of one, none of them is the "
            "final norm's bias"
        )
    prefix = norm.removesuffix("layernorm.bias").removesuffix("norm.bias")
    if "pos_embed" in found and norm.endswith("layernorm.bias"):
        found[f"{prefix}{naming.POSITION}"] = found.pop("pos_embed")
    elif "pos_embed" in found and prefix:
        found[f"{prefix}pos_embed"] = found.pop("pos_embed")
    if not any(name.endswith(_SCALES) for name in found):
        entry_of = naming.module_entries if norm.endswith("layernorm.bias") else naming.meta_entries
        found |= {prefix + name: torch.ones(arch.width) for name in entry_of(arch) if name.endswith(_SCALES)}
        notes.append(f"{path}: it has no LayerScale, which is taken as 1: folded into the layers before it")
    table = next((one for name, one in found.items() if name.endswith(_POSITIONS)), None)
    if table is not None and table.ndim == 3 and (side := math.isqrt(table.shape[1] - 1)) != arch.trained_grid:
        pixels = side * arch.patch
        notes.append(
            f"{path}: its position embedding is of {side}x{side} patches, resized already: it is exact at --image-size "
            f"{pixels} alone"
        )
    return OnnxWeights(path, dict(found), tokens, half, tuple(notes))


def _forget_our_passes(graph: onnx.GraphProto) -> None:
    """Give weights that our own surgery rounded to half precision the names that they had before, in place."""
    names = {}
    for tensor in graph.initializer:
        before = tensor.name.removeprefix("itae/half/").removesuffix("/float16").removesuffix("/bfloat16")
        if before != tensor.name:
            names[tensor.name] = before
            tensor.name = before
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def check(found: OnnxWeights, model: torch.nn.Module, arch: Architecture) -> None:
    """Run the file beside the model that was made of its weights, on seeded pictures.

    Raises:
        WeightsError: the tokens behind the final norm differ, or the file can't be run.
    """
    try:
        file = onnx.load(found.path)
        del file.graph.output[:]
        file.graph.output.append(onnx.ValueInfoProto(name=found.tokens))
        session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        del file
        picture = session.get_inputs()[0]
        side = math.isqrt(model.get_parameter(naming.POSITION).shape[1] - 1) * arch.patch
        height, width = (size if isinstance(size, int) else side for size in picture.shape[2:])
        batch = picture.shape[0] if isinstance(picture.shape[0], int) else 2
        noise = np.random.default_rng(20_261_130).standard_normal((batch, 3, height, width)).astype(np.float32)
        dtype = np.float16 if picture.type == "tensor(float16)" else np.float32
        (have,) = session.run(None, {picture.name: noise.astype(dtype)})
    except Exception as error:  # ONNX Runtime's exceptions share no base class; a picture of another form
        raise WeightsError(f"{found.path} can't be run, to prove its weights: {one_line(error)}") from error
    limit = HALF_LIMIT if found.is_half else LIMIT
    best = math.inf
    for variant in get_args(PosEmbed):
        position.bake_position_embedding(model, (height // arch.patch, width // arch.patch), arch, variant)
        with torch.inference_mode():
            tokens = model(torch.from_numpy(noise)).last_hidden_state.numpy()
        want = tokens if have.ndim == 3 else tokens[:, 0]
        want = want[:, : have.shape[1]] if have.ndim == 3 else want  # the last block may compute the CLS token alone
        if want.shape == have.shape:
            best = min(best, float(np.abs(want - have.astype(np.float32)).max() / max(1.0, np.abs(want).max())))
    if not best <= limit:
        raise WeightsError(
            f"{found.path}: a {arch.name} of its weights gives other tokens than the file itself, off by {best:.3g} of "
            f"the largest number, limit {limit:g}: is it of another --size, or has it ITAE in it?"
        )


def _is_known(name: str, words: Mapping[str, object]) -> bool:
    parts = name.split(".")
    return any(naming.generalise(".".join(parts[start:]))[0] in words for start in range(len(parts)))


def _by_bias(
    graph: onnx.GraphProto, arrays: Mapping[str, Array], words: Mapping[str, object]
) -> Iterator[tuple[str, Array]]:
    """The weights of linear layers, by the bias that is added to their product."""
    products = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays
    }
    products |= {
        node.output[0]: products[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in products
    }
    for node in graph.node:
        pairs = (tuple(node.input), tuple(reversed(node.input))) if node.op_type == "Add" else ()
        for product, bias in pairs:
            weight = products.get(product)
            if weight is None:
                continue
            if bias.endswith(".bias") and _is_known(bias, words):
                yield f"{bias.removesuffix('bias')}weight", arrays[weight].T
            elif weight.endswith(".weight") and _is_known(weight, words) and bias in arrays:
                yield weight, arrays[weight].T
                yield f"{weight.removesuffix('weight')}bias", arrays[bias].reshape(-1)
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[1] in arrays:
            bias = node.input[2]
            if bias.endswith(".bias") and _is_known(bias, words):
                is_turned = any(one.name == "transB" and one.i for one in node.attribute)
                array = arrays[node.input[1]]
                yield f"{bias.removesuffix('bias')}weight", array if is_turned else array.T


def _position(
    graph: onnx.GraphProto, arrays: Mapping[str, Array], words: Mapping[str, object], arch: Architecture
) -> dict[str, Array]:
    """A position embedding without a name: (1, 1 + P, C) that is added to the tokens, or CLS and patches apart."""
    tables = {
        name: array
        for name, array in arrays.items()
        if array.ndim == 3 and array.shape[::2] == (1, arch.width) and not _is_known(name, words)
    }
    for node in graph.node:
        whole = next((tables[name] for name in node.input if name in tables and tables[name].shape[1] > 1), None)
        if node.op_type == "Add" and whole is not None:
            return {"pos_embed": whole}
    joined = {name for node in graph.node if node.op_type == "Concat" for name in node.input}
    first = [array for name, array in tables.items() if array.shape[1] == 1 and name in joined]
    patches = [array for array in tables.values() if array.shape[1] > 1]
    if len(first) == len(patches) == 1:
        return {"pos_embed": np.concatenate([first[0], patches[0]], axis=1)}
    return {}
