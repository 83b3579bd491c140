"""The weights of a DINOv2 in an ONNX file, for where the checkpoint is lost: found by structure, then proven.

Exporters and optimisers rename, transpose, cut and join weights, so no name counts. The residual stream is followed
from the picture on: what is added to it is the end of an attention or of an MLP, and says what its weights are. The
proof runs the file beside the model that was found.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from exporter.models import position
from exporter.models.architecture import ARCHITECTURES, Architecture, PosEmbed
from exporter.models.plain_graph import Linear, Node, Norm, PlainGraph, read_model
from runtime.contract.errors import WeightsError, one_line

Array = npt.NDArray[np.float32]
LIMIT = 1e-3
"""Largest difference of the file's tokens to those of the model that was found, as a share of the largest number."""
HALF_LIMIT = 3e-2
"""The same where the file's weights are in half precision."""
SAME = 1e-4
"""Largest difference of a stored token to the one that the file computes, as a share of the largest number above 1."""
MAX_MESSAGE = 1 << 30
"""Bytes of weights that are given to ONNX Runtime without a file."""
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum")
_ATTENTIONS = ("Attention", "MultiHeadAttention")


@dataclass(frozen=True)
class OnnxWeights:
    """The tensors of an ONNX file under Meta's names."""

    path: Path
    entries: dict[str, torch.Tensor]
    picture: str
    """The tensor that the patches are cut from, (B, 3, H, W): the input, or what the file makes of it."""
    tokens: str
    """The tensor behind the final norm."""
    is_half: bool
    grid: int
    """Side, in patches, of the grid that the position embedding is of."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Half:
    """Half a block: a norm, the layers that read it, and the layer whose result is added to the residual stream."""

    norm: Norm
    first: tuple[Linear, ...]
    last: Linear
    scale: Array | None
    """LayerScale, if there is one."""
    end: str
    """The residual stream behind it."""


def read(path: Path, arch: Architecture) -> OnnxWeights:
    """The weights in an ONNX file, as its structure shows them.

    Raises:
        WeightsError: it can't be read or run, or is no DINOv2 of this architecture.
    """
    model = read_model(path)
    is_half = any(one.data_type in _HALVES and math.prod(one.dims) > arch.width for one in model.graph.initializer)
    graph = PlainGraph(model)
    patches = _patches(graph, path)
    start, halves = _blocks(graph, patches, path)
    kernel = graph.constant(patches.inputs[1])
    _check_form(path, arch, len(halves) // 2, kernel.shape)
    entries: dict[str, Array] = {"patch_embed.proj.weight": kernel.astype(np.float32)}
    bias = graph.vector(patches.inputs[2], arch.width) if len(patches.inputs) > 2 else None
    entries["patch_embed.proj.bias"] = np.zeros(arch.width, np.float32) if bias is None else bias
    for layer, (attention, mlp) in enumerate(zip(halves[::2], halves[1::2], strict=True)):
        for number, half in enumerate((attention, mlp), start=1):
            block = f"blocks.{layer}."
            entries |= _affine(f"{block}norm{number}", half.norm.weight, half.norm.bias)
            entries[f"{block}ls{number}.gamma"] = np.ones(arch.width, "f4") if half.scale is None else half.scale
        entries |= _packed(f"{block}attn.qkv", _query_key_value(graph, attention, path, layer))
        entries |= _packed(f"{block}attn.proj", [attention.last])
        entries |= _packed(f"{block}mlp.{'w12' if arch.swiglu else 'fc1'}", _gate_first(graph, mlp))
        entries |= _packed(f"{block}mlp.{'w3' if arch.swiglu else 'fc2'}", [mlp.last])
    final = next((one for one in graph.norms if graph.root(one.source) == graph.root(halves[-1].end)), None)
    if final is None:
        raise WeightsError(f"{path} has no final norm behind its {arch.depth} layers: it was cut off, and is lost")
    entries |= _affine("norm", final.weight, final.bias)
    stored = _stored_tokens(graph, start, patches, arch.width)
    tables = _positions(stored, arch)
    sides = [side * arch.patch for side in dict.fromkeys((arch.trained_grid, *tables))]
    tokens, grid = _tokens(tables, stored, *_first_tokens(model, start, patches.outputs[0], sides, path), arch, path)
    entries |= tokens
    notes = []
    if is_half:
        notes.append(f"{path}: its weights are in half precision: the lost digits stay lost")
    if all(half.scale is None for half in halves):
        notes.append(f"{path}: it has no LayerScale, which is taken as 1: folded into the layers before it")
    if grid != arch.trained_grid:
        notes.append(
            f"{path}: its position embedding is of {grid}x{grid} patches, resized already: it is exact at --image-size "
            f"{grid * arch.patch} alone"
        )
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in entries.items()}
    return OnnxWeights(path, tensors, patches.inputs[0], final.end, is_half, grid, tuple(notes))


def check(found: OnnxWeights, model: torch.nn.Module, arch: Architecture) -> None:
    """Run the file beside the model that was made of its weights, on seeded pictures.

    Raises:
        WeightsError: the tokens behind the final norm differ, or the file can't be run.
    """
    side = found.grid * arch.patch
    pictures, have = _run(read_model(found.path), [found.picture, found.tokens], side, found.path, noise=True)
    height, width = pictures.shape[2:]
    limit = HALF_LIMIT if found.is_half else LIMIT
    best = math.inf
    for variant in get_args(PosEmbed):
        position.bake_position_embedding(model, (height // arch.patch, width // arch.patch), arch, variant)
        with torch.inference_mode():
            tokens = model(torch.from_numpy(pictures)).last_hidden_state.numpy()
        want = tokens if have.ndim == 3 else tokens[:, 0]
        want = want[:, : have.shape[1]] if have.ndim == 3 else want  # the last block may compute the CLS token alone
        if want.shape == have.shape:
            best = min(best, float(np.abs(want - have).max() / max(1.0, np.abs(want).max())))
    if not best <= limit:
        raise WeightsError(
            f"{found.path}: a {arch.name} of its weights gives other tokens than the file itself, off by {best:.3g} of "
            f"the largest number, limit {limit:g}: is it of another --size, or has it ITAE in it?"
        )


def _patches(graph: PlainGraph, path: Path) -> Node:
    """The convolution that cuts pictures into patches."""
    for node in graph.nodes:
        if node.op in ("Conv", "FusedConv") and len(node.inputs) > 1 and graph.is_constant(node.inputs[1]):
            kernel = graph.constant(node.inputs[1])
            if kernel.ndim == 4 and kernel.shape[1] == 3 and node.options.get("strides") == list(kernel.shape[2:]):
                return node
    raise WeightsError(f"{path} is not a DINOv2: it has no convolution that cuts pictures into patches")


def _blocks(graph: PlainGraph, patches: Node, path: Path) -> tuple[str, list[_Half]]:
    """The residual stream where the first block reads it, and the halves of all blocks, in their order."""
    behind = {patches.outputs[0]}
    for node in graph.nodes:
        if any(name in behind for name in node.inputs):
            behind.update(node.outputs)
    norm = next((one for one in graph.norms if one.source in behind), None)
    if norm is None:
        raise WeightsError(f"{path} is not a DINOv2: no layer norm follows its patches")
    halves: list[_Half] = []
    at = norm.source
    while (half := _half_at(graph, at)) is not None:
        halves.append(half)
        at = half.end
    if not halves or len(halves) % 2:
        raise WeightsError(
            f"{path} is not a DINOv2 that is known: the residual stream was followed through {len(halves) // 2} whole "
            f"layers, as far as {graph.root(at)}: a layer is norm, attention, sum, norm, MLP, sum"
        )
    return norm.source, halves


def _half_at(graph: PlainGraph, stream: str) -> _Half | None:
    """The half of a block that reads and continues the residual stream; None if the stream ends here."""
    root = graph.root(stream)
    norms = {one.end: one for one in graph.norms if graph.root(one.source) == root}
    for node in graph.adds if norms else ():
        for own, other in (node.inputs, node.inputs[::-1]):
            if graph.root(own) != root:
                continue
            last = graph.nearest(other)
            if len(last) != 1:
                continue
            (layer,) = last
            first = tuple(one for one in graph.in_order(graph.nearest(layer.source)) if graph.root(one.source) in norms)
            if first:
                norm = norms[graph.root(first[0].source)]
                return _Half(norm, first, layer, _scale(graph, other, layer), node.outputs[0])
    return None


def _scale(graph: PlainGraph, end: str, layer: Linear) -> Array | None:
    """The vector that a layer's result is multiplied with on its way to a sum."""
    for node in graph.behind(end, ("Mul",)):
        for name in node.inputs:
            if (found := graph.vector(name, len(layer.weight))) is not None:
                return found
    return None


def _query_key_value(graph: PlainGraph, half: _Half, path: Path, layer: int) -> list[Linear]:
    """The projections of an attention: query, key and value, or one for all of them."""
    if len(half.first) == 1:
        return list(half.first)
    own = frozenset(half.first)
    for node in graph.behind(half.last.source, (*_PRODUCTS, *_ATTENTIONS)):
        if node.op in _ATTENTIONS:
            roles = [graph.nearest(name) & own for name in node.inputs[:3]]
        elif len(node.inputs) < 2 or not any(True for _ in graph.behind(node.inputs[0], ("Softmax",))):
            continue
        else:
            value = graph.nearest(node.inputs[1]) & own
            softmax = next(graph.behind(node.inputs[0], ("Softmax",)))
            pairs = {
                tuple(graph.nearest(name) & own for name in product.inputs[:2])
                for product in graph.behind(softmax.inputs[0], _PRODUCTS)
            }
            pairs = {one for one in pairs if len(one) == 2 and all(len(role) == 1 for role in one)}
            roles = [*pairs.pop(), value] if len(pairs) == 1 else []
        if len(roles) == 3 and all(len(one) == 1 for one in roles) and len({*roles}) == 3:
            return [next(iter(one)) for one in roles]
    raise WeightsError(
        f"{path}: which of the {len(half.first)} projections of attention {layer} are query, key and value is not "
        "clear: has it ITAE in it?"
    )


def _gate_first(graph: PlainGraph, half: _Half) -> list[Linear]:
    """The layers that an MLP begins with; of two the gate first, which goes through the sigmoid."""
    if len(half.first) != 2:
        return list(half.first)
    gates = {
        one
        for node in graph.behind(half.last.source, ("Sigmoid", "Swish", "QuickGelu"))
        for one in graph.nearest(node.inputs[0])
    }
    return sorted(half.first, key=lambda one: one not in gates)


def _affine(name: str, weight: Array, bias: Array) -> dict[str, Array]:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _packed(name: str, layers: list[Linear]) -> dict[str, Array]:
    """The weights of layers that read the same, as one; a bias that is not there is 0: optimisers take such away."""
    biases = [np.zeros(len(one.weight), np.float32) if one.bias is None else one.bias for one in layers]
    return _affine(name, np.concatenate([one.weight for one in layers]), np.concatenate(biases))


def _check_form(path: Path, arch: Architecture, depth: int, kernel: tuple[int, ...]) -> None:
    """Refuse another architecture, and say which it is.

    Raises:
        WeightsError: depth, width or patch are another's.
    """
    have = {"layers": depth, "channels": kernel[0], "pixels a patch": kernel[-1]}
    want = {"layers": arch.depth, "channels": arch.width, "pixels a patch": arch.patch}
    if have == want:
        return
    like = [one.name for one in ARCHITECTURES.values() if [one.depth, one.width, one.patch] == [*have.values()]]
    hint = f": give --size {' or '.join(like)}" if like else ""
    wrong = ", ".join(f"{have[name]} {name} (expected {want[name]})" for name in have if have[name] != want[name])
    raise WeightsError(f"{path} is not a {arch.name}: it has {wrong}{hint}")


def _stored_tokens(graph: PlainGraph, start: str, patches: Node, width: int) -> list[Array]:
    """The tables of tokens that are stored between the patches and the first block, each as (n, C).

    Those that are put beside patches come first, before those that are added.
    """
    waiting, seen = [start], {patches.outputs[0], ""}
    tables: dict[str, Array] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.maker.get(name)
        if node is not None and node.op not in ("Shape", "Where"):  # Where: tokens that hide patches in training
            waiting += node.inputs
        if graph.is_constant(name):
            table = graph.constant(name)
            is_float = table.dtype.kind == "f" or table.dtype.name == "bfloat16"
            tokens = _as_tokens(table.astype(np.float32), width) if is_float else None
            tables |= {} if tokens is None else {name: tokens}
    flows, beside = {patches.outputs[0]}, set()
    for node in graph.nodes:
        if any(name in flows for name in graph.data(node)):
            flows.update(node.outputs)
            beside |= {graph.root(name) for name in node.inputs} if node.op == "Concat" else set()
    return [tables[name] for name in sorted(tables, key=lambda one: one not in beside)]


def _as_tokens(table: Array, width: int) -> Array | None:
    """A stored array as tokens (n, C), if it can be such: (1, n, C), a batch of equal ones, (1, C, s, s) too."""
    if table.ndim == 4 and table.shape[:2] == (1, width) and table.shape[2] == table.shape[3]:
        table = table[0].reshape(width, -1).T
    if table.ndim < 2 or table.shape[-1] != width:
        return None
    if table.ndim >= 3 and len(table) > 1 and (table == table[:1]).all():
        table = table[:1]
    tokens: Array = table.reshape(-1, width)
    return tokens


def _positions(stored: list[Array], arch: Architecture) -> dict[int, Array]:
    """By the side of its grid, each stored table that may be a position embedding, as (1 + P, C)."""
    found: dict[int, Array] = {}
    for table in stored:
        for before in (1, 0, arch.prefix):
            side = math.isqrt(max(0, len(table) - before))
            if side > 1 and side * side == len(table) - before:
                first = table[:1] if before else np.zeros((1, arch.width), np.float32)
                found.setdefault(side, np.concatenate([first, table[before:]]))
                break
    return found


def _first_tokens(model: onnx.ModelProto, start: str, conv: str, sides: list[int], path: Path) -> tuple[Array, Array]:
    """For a black picture, what the first block reads (N, C), and the patches (P, C) before anything is added."""
    for side in sides:
        try:
            tokens, patches = _run(model, [start, conv], side, path, noise=False)
            break
        except WeightsError:
            if side == sides[-1]:
                raise
    if tokens.ndim != 3 or patches.ndim != 4:
        raise WeightsError(f"{path} is not a DINOv2 that is known: {start} is not of the form (B, N, C)")
    return tokens[0], patches[0].reshape(len(patches[0]), -1).T


def _tokens(
    tables: dict[int, Array], stored: list[Array], first: Array, conv: Array, arch: Architecture, path: Path
) -> tuple[dict[str, Array], int]:
    """CLS token, registers and position embedding; and the side of its grid.

    Stored tables are taken where they give what the file computes; else the tokens are those of a run, which are exact
    but for the rounding of a sum.
    """
    if (before := len(first) - len(conv)) != arch.prefix:
        raise WeightsError(
            f"{path} is not a {arch.name}: it has {before} tokens before the patches, expected {arch.prefix}"
        )
    added = first[before:] - conv
    tables = {side: one for side, one in tables.items() if side**2 != len(conv) or _is_near(one[1:], added)}
    side = arch.trained_grid if arch.trained_grid in tables else math.isqrt(len(conv))
    if side not in tables and side**2 != len(conv):
        raise WeightsError(
            f"{path}: its position embedding is of {len(conv)} patches that are no square, resized already: take the "
            "file as it is, with --onnx"
        )
    table = tables.get(side)
    if table is None:
        table = np.concatenate([np.zeros((1, arch.width), np.float32), added])
    if not table[0].any():
        singles = [one for one in stored if len(one) == 1]
        pair = next(((a, b) for a in singles for b in singles if a is not b and _is_near(a + b, first[:1])), None)
        table = table if pair is None else np.concatenate([pair[1], table[1:]])
    entries = {"cls_token": _nearest(stored, first[:1] - table[:1])[None], "pos_embed": table[None]}
    if arch.registers:
        entries["register_tokens"] = _nearest(stored, first[1:before])[None]
    return entries, side


def _is_near(one: Array, other: Array) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).max()) <= SAME * max(1.0, float(np.abs(other).max()))


def _nearest(stored: list[Array], wanted: Array) -> Array:
    """The stored tokens that are the wanted ones but for rounding; the wanted ones if none are."""
    return next((one for one in stored if _is_near(one, wanted)), wanted)


def _run(model: onnx.ModelProto, outputs: list[str], side: int, path: Path, *, noise: bool) -> list[Array]:
    """Tensors of the graph, in float32, for pictures of its own size, or of this many pixels a side.

    Raises:
        WeightsError: it can't be run.
    """
    try:
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
        with _session(model) as session:
            stored = {one.name for one in model.graph.initializer}
            feeds = {one.name: _fed(one, side, noise=noise) for one in session.get_inputs() if one.name not in stored}
            return [one.astype(np.float32) for one in session.run(outputs, feeds)]
    except Exception as error:  # ONNX Runtime's exceptions share no base class; a picture of another form
        raise WeightsError(f"{path} can't be run, to prove its weights: {one_line(error)}") from error


@contextlib.contextmanager
def _session(model: onnx.ModelProto) -> Iterator[Any]:
    """ONNX Runtime with a model; what is too large for one message goes through a file of its own."""
    size = sum(len(one.raw_data) for one in model.graph.initializer)
    with contextlib.ExitStack() as stack:
        held: Any
        if size < MAX_MESSAGE:
            held = model.SerializeToString()
        else:
            held = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.onnx"
            whole = onnx.ModelProto()
            whole.CopyFrom(model)
            onnx.save(whole, held, save_as_external_data=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong, the exception says
        yield onnxruntime.InferenceSession(held, options, providers=["CPUExecutionProvider"])


def _fed(given: Any, side: int, *, noise: bool) -> Array:  # noqa: ANN401  # ONNX Runtime ships no types
    """Something to feed an input with: pictures, black or of noise; of another form, zeros."""
    shape = [given.shape[0] if isinstance(given.shape[0], int) else 2, *given.shape[1:]]
    is_picture = len(shape) == 4 and 3 in (shape[1], shape[3])
    shape = [size if isinstance(size, int) else side if is_picture else (side // 14) ** 2 for size in shape]
    dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}
    kind = dtype.get(given.type, np.float32)
    if not (noise and is_picture):
        return np.zeros(shape, kind)
    rng = np.random.default_rng(20_261_130)
    if kind is np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(np.float32).astype(kind)
