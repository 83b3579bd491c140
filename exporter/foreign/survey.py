"""The contents of a foreign graph: structure and a run of it together, as facts in sizes and words.

Letters of layouts: b batch, h heads, x both in one (B·H), n tokens, d channels of a head, c all channels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.probe import Array, Arrays, Probe, number
from exporter.foreign.training import RANDOM
from exporter.surgery.any_attention import Found, Scaling, Site, find_any_attention, tokens_before, upstream
from exporter.surgery.edit import PREFIX, import_graph, is_free
from exporter.surgery.pattern import Miss
from runtime.contract.errors import InputError, SurgeryError

BATCH = 3
"""Images of a run where the batch is dynamic: another number than most others."""
CHANNELS = (3, 1, 4)
"""Numbers of channels that pictures have, the usual one first."""
MOST_NUMBERS = 1 << 28
"""Numbers of an input that is run here, as far as its sizes are fixed."""
TRACED = (1, 2)
"""Numbers of images that graphs are traced with, which may be all that they take."""
USUAL = 224
"""Height and width of the pictures of most models."""
HIDDEN = -1e4
"""A mask at or below this hides a token."""
FLOATS = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.DOUBLE: "float64"}
_MAPS = ("Conv", "MaxPool", "AveragePool")
"""Operators whose results lie over the picture, (B, C, rows, columns); the last before the tokens shows the patches."""
_EQUATION = re.compile(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """A size is a number, or the name of a dynamic one; `?` if it has no name."""

    @property
    def has_channels_last(self) -> bool:
        """Whether these are pictures (B, H, W, C), not (B, C, H, W)."""
        return self.shape[-1] in CHANNELS and self.shape[1] not in CHANNELS

    @property
    def size(self) -> tuple[int | str, int | str]:
        """Height and width of pictures."""
        height, width = self.size_axes
        return self.shape[height], self.shape[width]

    @property
    def size_axes(self) -> tuple[int, int]:
        """The axes of height and width of pictures."""
        return (1, 2) if self.has_channels_last else (2, 3)

    @property
    def channels(self) -> int:
        """Number of channels of pictures; 3 where it is open."""
        size = self.shape[-1 if self.has_channels_last else 1]
        return size if isinstance(size, int) else 3

    @property
    def is_usual(self) -> bool:
        """Whether pictures are as the runtime gives them: (B, 3, H, W) in float32."""
        return self.dtype == "float32" and self.channels == 3 and not self.has_channels_last


@dataclass(frozen=True)
class Measured:
    """One attention with its sizes."""

    site: Site
    kind: str
    """`self`, or why no patch can be attenuated here: `cross`, `windowed`, `causal`,
    `channels`, `masked`, `other`."""
    heads: int
    head_dim: int
    queries: int
    """Number of tokens that ask; `tokens` alike, of those that are asked."""
    tokens: int
    scale: float | None
    """The factor of the product of queries and keys in all; None if it is not one number."""
    key_scale: float
    """The part of it that is in the keys; `query_scale` alike."""
    query_scale: float
    mask: str
    """`none`, `hides nothing`, `bias`, `causal`, `hides tokens`, or `of the picture`."""
    layouts: tuple[str, str, str]
    """The layouts of query, key and value."""
    precision: str
    residual: str | None
    """The tensor that enters the block; None if it was not found."""
    residual_miss: str | None
    residual_layout: str
    """`bnc` or `nbc`; empty if the tensor was not found, or has another layout."""
    width: int
    """Channels of all heads."""
    logits_rank: int = 4
    """3 if batch and heads are one axis of what the softmax reads."""


@dataclass(frozen=True)
class Survey:
    """The known facts of a foreign graph."""

    file: OnnxFile
    graph: gs.Graph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    picture: Tensor | None
    """The input that takes pictures, (B, C, H, W) or (B, H, W, C)."""
    found: Found
    sites: tuple[Measured, ...]
    """The attentions that depend on the picture: not those of a text encoder beside it."""
    backbone: tuple[Measured, ...]
    """The self-attentions over the tokens of the picture, in order."""
    grid: tuple[int, int] | None
    """Rows and columns of patches in the run; None if no convolution shows them."""
    prefix: int | None
    behind: int
    """Number of tokens behind the patches."""
    image_size: tuple[int, int] | None
    """H, W of the run."""
    trouble: str | None
    """The reason why the graph could not be run; None if it ran."""
    output_shapes: dict[str, tuple[int, ...]]
    """In the run."""
    batch: int
    """Number of images in the run: `BATCH`, or what the graph takes alone."""

    @property
    def fixed_batch(self) -> int | None:
        """The number of images that the graph takes alone, whatever it says itself; None if it takes any."""
        assert self.picture is not None
        fixed = self.picture.shape[0]
        return fixed if isinstance(fixed, int) else self.batch if self.batch in TRACED else None

    @property
    def is_dynamic(self) -> bool:
        """Whether height or width may vary."""
        return self.picture is not None and not all(isinstance(size, int) for size in self.picture.size)


def survey(file: OnnxFile, probe: Probe, image_size: tuple[int, int] | None = None, *, usual: bool = False) -> Survey:
    """Look at a graph: its structure, and a run of it.

    Args:
        file: the model.
        probe: of the same file.
        image_size: H, W of the run where they are dynamic; None: found out.
        usual: whether that is a size that pictures usually have, and not a small one.
    """
    graph = import_graph(file.model, file.path.parent)
    try:
        graph.toposort()
    except Exception as error:
        raise InputError(f"{file.path} is damaged: its graph has a circle") from error
    weights = {one.name for one in file.model.graph.initializer}
    inputs = tuple(_tensor(one) for one in file.model.graph.input if one.name not in weights)
    outputs = tuple(_tensor(one) for one in file.model.graph.output)
    picture = _picture(inputs, graph)
    found = find_any_attention(graph)
    start = Survey(
        file, graph, inputs, outputs, picture, found, (), (), None, None, 0, None, None, {}, 0
    )  # fmt: skip
    if picture is None:
        return replace(start, trouble="no input takes pictures (B, 3, H, W)")
    for one in inputs:
        fixed = [size for size in one.shape if isinstance(size, int)]
        if min(fixed, default=1) < 1 or math.prod(fixed) > MOST_NUMBERS:
            return replace(
                start, trouble=f"the input {one.name!r} has the shape {list(one.shape)}: it can't be run here"
            )
    sizes = _sizes(start, image_size, usual=usual)
    return _measured(start, probe, sizes)


def is_quantised(one: Survey) -> bool:
    """Whether the graph holds operators of integers."""
    return any(node.op in QUANTISED for node in one.graph.nodes)


def refusal(one: Survey, prefix: int | None = None) -> str | None:
    """The reason why ITAE can't be put into this graph, in a clause; None if it can.

    Args:
        one: the survey.
        prefix: the number of tokens before the patches, as the user says; None: as found.
    """
    if any(node.name.startswith(f"{PREFIX}/layer") for node in one.graph.nodes):
        return "ITAE is in it already: take the file that it was made from"
    softmax = sum(node.op == "Softmax" for node in one.graph.nodes)
    convolutions = sum(node.op == "Conv" for node in one.graph.nodes)
    integers = Counter(node.op for node in one.graph.nodes if node.op in QUANTISED)
    if integers and not one.backbone:
        found = ", ".join(f"{count} {op}" for op, count in integers.most_common(3))
        return (
            f"the file is quantised ({found}), and no attention can be followed through that: take the file that it "
            "was made from, and quantise the new one"
        )
    if not one.found.sites:
        looked = "looked for softmax(q @ k) @ v or an operator that holds it, found none"
        if one.found.near_misses:
            near = one.found.near_misses[0]
            return f"{looked}; the nearest miss, after {near.depth} matching nodes at {near.node}: {near.reason}"
        is_cnn = " (is it a convolutional network?)" if convolutions > softmax else ""
        return f"{looked} among {len(one.graph.nodes)} nodes with {softmax} Softmax and {convolutions} Conv{is_cnn}"
    if (drawn := next((node for node in one.graph.nodes if node.op in RANDOM), None)) is not None:
        return f"{drawn.op} {drawn.name!r} draws random numbers, as in training: export the model in eval mode"
    if one.picture is None:
        names = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in one.inputs)
        return f"no input takes pictures (B, 3, H, W): it takes {names}; is it a model of text?"
    if one.trouble is not None:
        return one.trouble
    if not one.sites:
        return f"no attention depends on {one.picture.name!r}, the input that takes pictures: is it a model of text?"
    if (bad := next((site for site in one.sites if site.kind == "windowed"), None)) is not None:
        return f"{_NO_KINDS['windowed']}: {_sizes_of(bad)}"
    if not one.backbone:
        bad = min(one.sites, key=lambda site: [*_NO_KINDS].index(site.kind))
        nearest = one.found.near_misses[:1]
        missed = [f"; near to one of its own tokens: {miss.node}, {miss.reason}" for miss in nearest]
        return f"{_NO_KINDS[bad.kind]}: {_sizes_of(bad)}{''.join(missed)}"
    if len(others := _other_sizes(one)) >= len(one.backbone):
        return (
            "layers have several numbers of tokens (a pyramid, such as PVT or PiT), and no number has most of them: "
            f"{_sizes_of(others[0])}, {_sizes_of(one.backbone[0])}"
        )
    if (prefix if prefix is not None else one.prefix) is None:
        return (
            f"it can't be seen how many of the {one.backbone[0].tokens} tokens are no patches, as no convolution makes "
            "the patches: say --prefix-tokens K (1 for a CLS token alone, 0 for none)"
        )
    count = prefix if prefix is not None else one.prefix
    if count is not None and not 0 <= count < one.backbone[0].tokens - one.behind:
        return f"{count} tokens before the patches, of {one.backbone[0].tokens}: say --prefix-tokens K"
    return None


QUANTISED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger",
    "ConvInteger", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits",
})  # fmt: skip
"""Operators of integers, ONNX Runtime's own included."""
_NO_KINDS = {
    "windowed": "windowed attention, in which a token sees its window alone (Swin), has no row over all patches",
    "causal": "a causal mask hides later tokens, as in decoders of text",
    "channels": "attention of channels to channels (cross-covariance, as in XCiT) has no row over the patches",
    "cross": "there is cross attention alone, and no attention of tokens to themselves",
    "masked": "a mask hides tokens, or depends on the picture",
    "other": "attention in a layout that is not known",
}


def _sizes_of(one: Measured) -> str:
    if one.kind == "other":
        return f"{one.site.name!r} ({one.site.form})"
    return f"{one.site.name!r} has {one.queries} queries and {one.tokens} keys, mask {one.mask}"


def _other_sizes(one: Survey) -> list[Measured]:
    """Self-attentions, and whatever comes before the backbone, whose queries are of another number than its tokens."""
    first = next(place for place, site in enumerate(one.sites) if site is one.backbone[0])
    tokens = one.backbone[0].tokens
    return [
        site for place, site in enumerate(one.sites)
        if site.queries != tokens and (site.kind == "self" or place < first)
    ]  # fmt: skip


def feeds_for(one: Survey, size: tuple[int, int], batch: int, pixels: Array | None = None) -> Arrays:
    """Inputs for a run: noise or the given pictures, and zeros or False for what else the model takes."""
    assert one.picture is not None
    batch = one.fixed_batch or batch
    named = dict(zip(map(str, (one.picture.shape[0], *one.picture.size)), (batch, *size), strict=True))
    patch = _patch_of(one.graph) or (size[0], size[1])
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    feeds: Arrays = {}
    for tensor in one.inputs:
        dtype = np.dtype(tensor.dtype)
        if tensor is one.picture:
            noise = np.random.default_rng(8).standard_normal((batch, 3, *size))
            feeds[tensor.name] = _as_input(noise if pixels is None else pixels, tensor)
            continue
        shape = [
            part if isinstance(part, int) else named.get(part, batch if axis == 0 else patches)
            for axis, part in enumerate(tensor.shape)
        ]
        feeds[tensor.name] = np.zeros(shape, dtype)
    return feeds


def _as_input(pixels: Array, picture: Tensor) -> Array:
    """Normalised pictures (B, 3, H, W) in the form that a model takes."""
    found = np.resize(pixels.swapaxes(0, 1), (picture.channels, *pixels[:, 0].shape)).swapaxes(0, 1)
    if picture.has_channels_last:
        found = found.transpose(0, 2, 3, 1)
    if picture.dtype == "uint8":
        found = np.clip(np.rint(found * 60 + 120), 0, 255)
    return found.astype(picture.dtype)


def _measured(start: Survey, probe: Probe, sizes: list[tuple[int, int]]) -> Survey:
    """The survey with what a run shows."""
    assert start.picture is not None
    own = _of_picture(start.graph, start.picture.name, start.found.sites)
    wanted, values = _wanted(start, own)
    outputs = [one.name for one in start.outputs]
    trouble: str | None = None
    # A graph may have the number of images of its trace in a Reshape or Expand, though its input says `batch`.
    batches = (BATCH, *TRACED) if isinstance(start.picture.shape[0], str) else (BATCH,)
    for size, batch in [(size, batch) for batch in batches for size in sizes]:
        try:
            feeds = feeds_for(start, size, batch)
            shapes = probe.shapes(feeds, [*wanted, *outputs])
            known = probe.run(feeds, values) if values else {}
            types = probe.types([one.context.outputs[0].name for one in own])
        except InputError as error:
            trouble = str(error) if trouble is None else trouble
            continue
        batch = len(feeds[start.picture.name])
        sites = tuple(_with_residual(_site(one, batch, shapes, known, types), batch, shapes) for one in own)
        whole = Counter((one.heads, one.tokens, one.width) for one in sites if one.kind == "self")
        usual = max(whole, key=lambda key: whole[key], default=None)
        backbone = tuple(one for one in sites if one.kind == "self" and (one.heads, one.tokens, one.width) == usual)
        grid, prefix, behind = _grid(start.graph, backbone, shapes)
        return replace(
            start, sites=sites, backbone=backbone, grid=grid, prefix=prefix, behind=behind, image_size=size,
            output_shapes={name: shapes[name] for name in outputs}, batch=batch,
        )  # fmt: skip
    return replace(start, trouble=trouble)


def _sizes(one: Survey, image_size: tuple[int, int] | None, *, usual: bool) -> list[tuple[int, int]]:
    """Sizes of images to try, (H, W): the one that the graph says, or some."""
    assert one.picture is not None
    given = one.picture.size
    if image_size is not None:
        tries = [image_size]
    else:
        patch = _patch_of(one.graph) or (16, 16)
        whole = (round(USUAL / patch[0]) * patch[0], round(USUAL / patch[1]) * patch[1])
        tries = [
            *([whole] if usual else []),
            (patch[0] * 4, patch[1] * 5),
            (patch[0] * 4, patch[1] * 4),
            (224, 224),
            (patch[0] * 16, patch[1] * 16),
            (518, 518),
            (384, 384),
        ]
    fixed = [tuple(have if isinstance(have, int) else want for have, want in zip(given, a, strict=True)) for a in tries]
    return [(int(height), int(width)) for height, width in dict.fromkeys(fixed)]


def _patch_of(graph: gs.Graph) -> tuple[int, int] | None:
    """Height and width of a patch: those of the first convolution whose steps are as wide as its kernel."""
    for node in graph.nodes:
        kernel, strides = node.attrs.get("kernel_shape"), node.attrs.get("strides")
        if node.op == "Conv" and kernel and kernel == strides and len(kernel) == 2 and kernel[0] > 1:
            return int(kernel[0]), int(kernel[1])
    return None


def _of_picture(graph: gs.Graph, picture: str, sites: Sequence[Site]) -> list[Site]:
    """The sites whose keys depend on the picture; the graph is sorted."""
    changed = {picture}
    for node in graph.nodes:
        has_graph = any(isinstance(one, gs.Graph) for one in node.attrs.values())
        if node.op not in ("Shape", "Size") and (has_graph or any(one.name in changed for one in node.inputs)):
            changed.update(one.name for one in node.outputs)
    return [one for one in sites if one.key.name in changed]


def _wanted(start: Survey, sites: Sequence[Site]) -> tuple[list[str], list[str]]:
    """Names of the tensors whose shapes, and of those whose values, say what the sites are."""
    shapes: dict[str, None] = {}
    values: dict[str, None] = {}
    for site in sites:
        parts = [site.query, site.key, site.value, site.context.outputs[0]]
        parts += [] if site.softmax is None else [site.logits]
        parts += site.sources[:1]
        residual = tokens_before(site)
        parts += [] if isinstance(residual, Miss) else [residual]
        shapes.update((one.name, None) for one in parts)
        free = [one.tensor for one in (*site.query_scales, *site.key_scales, *site.logit_scales)]
        free += [mask for mask in site.masks if is_free(mask)]
        values.update((one.name, None) for one in free if not isinstance(one, gs.Constant))
    if sites:
        for node in _above(sites):
            if node.op in (*_MAPS, "Reshape", "Concat"):
                shapes.update((one.name, None) for one in node.outputs)
            if node.op == "Concat":
                shapes.update((one.name, None) for one in node.inputs if not isinstance(one, gs.Constant))
    return [*shapes], [*values]


def _above(sites: Sequence[Site]) -> list[gs.Node]:
    """The nodes that the sources of the sites are computed from, once each."""
    found: dict[int, gs.Node] = {}
    for site in sites:
        begin = site.sources[0] if site.sources else site.query
        found.update((id(node), node) for node in [*upstream(begin, lambda node: id(node) in found)])
    return [*found.values()]


def _site(
    site: Site, batch: int, shapes: dict[str, tuple[int, ...]], known: Arrays, types: dict[str, np.dtype[Any]]
) -> Measured:
    """One site with its sizes."""

    def shape(tensor: gs.Tensor) -> tuple[int, ...]:
        return shapes[tensor.name]

    residual = tokens_before(site)
    is_found = not isinstance(residual, Miss)
    found = Measured(
        site=site, kind="other", heads=0, head_dim=0, queries=0, tokens=0, scale=None, key_scale=1.0, query_scale=1.0,
        mask="none", layouts=("", "", ""), precision=str(types.get(site.context.outputs[0].name, np.dtype(np.float32))),
        residual=residual.name if not isinstance(residual, Miss) else None,
        residual_miss=None if is_found else getattr(residual, "reason", None), residual_layout="", width=0,
    )  # fmt: skip
    if site.fused is not None:
        return _fused(found, shape(site.query), shape(site.key), shape(site.value), _mask(site, known))
    layouts = _layouts(site, *(len(shape(one)) for one in (site.query, site.key, site.value)))
    if layouts is None:
        return found
    sizes: dict[str, int] = {}
    for tensor, layout, own in zip((site.query, site.key), layouts, ("q", "k"), strict=False):
        for letter, size in zip(layout, shape(tensor), strict=True):
            sizes[letter if letter != "n" else f"n{own}"] = size
    if "b" in sizes and sizes["b"] != batch and sizes["b"] != 1:
        return replace(found, kind="windowed", queries=sizes["nq"], tokens=sizes["nk"], heads=sizes["h"])
    if "x" in sizes and sizes["x"] % batch:
        return replace(found, kind="windowed", queries=sizes["nq"], tokens=sizes["nk"])
    heads = sizes["h"] if "h" in sizes else sizes["x"] // batch
    value_dim = shape(site.value)[layouts[2].index("d")]
    query_scale, key_scale, late = (
        _product(scales, known) for scales in (site.query_scales, site.key_scales, site.logit_scales)
    )
    whole = None
    if query_scale is not None and key_scale is not None and late is not None:
        whole = query_scale * key_scale * late * _alpha(site)
    mask = _mask(site, known)
    kind = _kind(site, mask, is_square=sizes["nq"] == sizes["nk"])
    if kind == "self" and _is_over_channels(shape(site.sources[0]), batch, sizes["nq"], sizes["d"]):
        kind = "channels"
    return replace(
        found, kind=kind, heads=heads, head_dim=sizes["d"], queries=sizes["nq"], tokens=sizes["nk"], scale=whole,
        key_scale=key_scale or 1.0, query_scale=query_scale or 1.0, mask=mask, layouts=layouts, width=heads * value_dim,
        logits_rank=len(shape(site.logits)),
    )  # fmt: skip


def _is_over_channels(source: tuple[int, ...], batch: int, queries: int, dim: int) -> bool:
    """Whether the tokens that queries are projected from, (B, N, C), (N, B, C) or (B·N, C), lie along d."""
    count = math.prod(source[:-1])
    return len(source) in (2, 3) and count % batch == 0 and count // batch == dim != queries


def _with_residual(one: Measured, batch: int, shapes: dict[str, tuple[int, ...]]) -> Measured:
    """The site with the layout of the tokens that enter its block."""
    if one.residual is None:
        return one
    layouts = {(batch, one.tokens): "bnc", (one.tokens, batch): "nbc"}
    shape = shapes[one.residual]
    layout = layouts.get(shape[:2], "") if len(shape) == 3 else ""
    return replace(one, residual_layout=layout, residual_miss=None if layout else f"it has the shape {list(shape)}")


def _kind(site: Site, mask: str, *, is_square: bool) -> str:
    if mask in ("causal", "hides tokens", "of the picture"):
        return "causal" if mask == "causal" else "masked"
    return "self" if site.is_self_attention and is_square else "cross"


def _alpha(site: Site) -> float:
    return float(site.qk.attrs.get("alpha", 1.0)) if site.qk is not None and site.qk.op == "FusedMatMul" else 1.0


def _layouts(site: Site, *ranks: int) -> tuple[str, str, str] | None:
    """Layouts of query, key and value; None if they are not understood."""
    assert site.qk is not None
    assert site.softmax is not None
    plain = {3: "xnd", 4: "bhnd"}
    query, key = _operands(site.qk, plain.get(ranks[0], ""), plain.get(ranks[1], ""), "d")
    _, value = _operands(site.context, "?" * 4, plain.get(ranks[2], ""), "n")
    return (query, key, value) if query and key and value else None


def _operands(node: gs.Node, left: str, right: str, shared: str) -> tuple[str, str]:
    """Layouts of both operands of a product over `shared`; empty where they are not understood."""
    if not left or not right:
        return "", ""
    if node.op == "MatMul":
        return left, (right[:-2] + right[-1] + right[-2]) if shared == "d" else right
    if node.op == "FusedMatMul":
        if node.attrs.get("transBatchA") or node.attrs.get("transBatchB") or node.attrs.get("transA"):
            return "", ""
        turned = bool(node.attrs.get("transB")) != (shared == "d")
        return left, (right[:-2] + right[-1] + right[-2]) if turned else right
    found = _EQUATION.fullmatch(str(node.attrs.get("equation", "")).replace(" ", ""))
    if found is None:
        return "", ""
    a, b, out = found.groups()
    if len(out) == len(a) == len(b) == 3 and a[0] == b[0] == out[0]:  # bid,bjd->bij, b being B·H
        names = {out[0]: "x", out[1]: "n"}
        keys = {out[0]: "x", out[2]: "n" if shared == "d" else "d"}
        rest = "d" if shared == "d" else "n"
        return "".join(names.get(one, rest) for one in a), "".join(keys.get(one, rest) for one in b)
    if len(out) != 4 or len(a) != 4 or len(b) != 4 or out[:2] != a[:2]:
        return "", ""
    if shared == "d":  # bhid,bhjd->bhij
        names = {out[0]: "b", out[1]: "h", out[2]: "n", **{one: "d" for one in a if one not in out}}
        keys = {out[0]: "b", out[1]: "h", out[3]: "n", **{one: "d" for one in b if one not in out}}
        return "".join(names.get(one, "?") for one in a), "".join(keys.get(one, "?") for one in b)
    keys = {out[0]: "b", out[1]: "h", out[3]: "d", **{one: "n" for one in b if one not in out}}
    return a, "".join(keys.get(one, "?") for one in b)


def _product(scales: Sequence[Scaling], known: Arrays) -> float | None:
    """The product of scales; None if one has several numbers."""
    whole = 1.0
    for one in scales:
        value = number(_value(one.tensor, known))
        if value is None or value == 0:
            return None
        whole = whole / value if one.divides else whole * value
    return whole


def _value(tensor: gs.Tensor, known: Arrays) -> Array:
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else known[tensor.name]


def _mask(site: Site, known: Arrays) -> str:
    kinds = []
    for mask in site.masks:
        if not is_free(mask):
            return "of the picture"
        value = _value(mask, known)
        if value.dtype == np.bool_:  # True lets a token be seen
            value = np.where(value, 0.0, -np.inf)
        if not np.any(value):
            kinds.append("hides nothing")
        elif value.min() <= HIDDEN:
            kinds.append("causal" if _is_causal(value) else "hides tokens")
        else:
            kinds.append("bias")
    for choice in site.choices:
        condition = choice.inputs[0]
        if not is_free(condition):
            return "of the picture"
        kinds.append("hides tokens")
    order = ("causal", "hides tokens", "bias", "hides nothing")
    return next((one for one in order if one in kinds), "none")


def _is_causal(mask: Array) -> bool:
    """Whether it hides just what comes later."""
    rows, columns = mask.shape[-2:] if mask.ndim > 1 else (1, 1)
    later = np.triu(np.ones((rows, columns), np.bool_), 1)
    hidden = mask.reshape(-1, rows, columns)[0] <= HIDDEN if mask.ndim > 1 else np.zeros((1, 1), np.bool_)
    return rows > 1 and bool((hidden == later).all())


def _fused(
    found: Measured, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], mask: str
) -> Measured:
    """The site of an operator that holds a whole attention, as far as its attributes say."""
    attrs: dict[str, Any] = found.site.context.attrs
    heads = int(attrs.get("q_num_heads", attrs.get("num_heads", 0)))
    if len(query) == 4:
        heads, queries, dim, tokens = query[1], query[2], query[3], key[2]
        width = heads * value[3]
    elif len(query) == 3 and heads:
        queries, tokens, width = query[1], key[1], value[2]
        dim = query[2] // heads
    else:
        return found
    mask = "causal" if attrs.get("is_causal", attrs.get("unidirectional", 0)) else mask
    kind = _kind(found.site, mask, is_square=queries == tokens)
    layout = "bhnd" if len(query) == 4 else "bnc"
    return replace(
        found, kind=kind, heads=heads, head_dim=dim, queries=queries, tokens=tokens,
        scale=float(attrs.get("scale", 0)) or dim**-0.5, mask=mask, width=width,
        layouts=(layout,) * 3,
    )  # fmt: skip


def _grid(
    graph: gs.Graph, backbone: Sequence[Measured], shapes: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, int] | None, int | None, int]:
    """Rows and columns of patches, and the number of tokens before and behind them."""
    if not backbone:
        return None, None, 0
    first = backbone[0].site
    begin = first.sources[0] if first.sources else first.query
    above = {id(node) for node in upstream(begin)}
    inside = [node for node in graph.nodes if id(node) in above and node.outputs and node.outputs[0].name in shapes]
    shown = [(node.op, shapes[node.outputs[0].name]) for node in inside if node.op in (*_MAPS, "Reshape")]
    maps = [one[2:] for op, one in shown if op in _MAPS and len(one) == 4]
    maps += [(one[2], one[4]) for op, one in shown if op == "Reshape" and len(one) == 6 and one[1] == 3]
    maps = [one for one in maps if math.prod(one) <= backbone[0].tokens]
    behind = 0
    for node in inside:
        if node.op == "Concat" and len(shapes[node.outputs[0].name]) == 3 and not is_free(node.outputs[0]):
            ends = itertools.takewhile(is_free, reversed(node.inputs))
            behind += sum(_tokens(one, shapes, node) for one in ends)
    if not maps:
        return None, None, behind
    height, width = maps[-1]
    return (height, width), backbone[0].tokens - height * width - behind, behind


def _tokens(tensor: gs.Tensor, shapes: dict[str, tuple[int, ...]], concat: gs.Node) -> int:
    axis = int(concat.attrs.get("axis", 1))
    shape = tuple(tensor.shape) if isinstance(tensor, gs.Constant) else shapes[tensor.name]
    return int(shape[axis]) if len(shape) == 3 and axis in (1, -2) else 0


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, TypeError) as error:
        raise SurgeryError(f"{value.name!r} is no tensor of a known type: it can't be run here") from error
    return Tensor(value.name, dtype, tuple(size.dim_param or (size.dim_value or "?") for size in kind.shape.dim))


def _picture(inputs: Sequence[Tensor], graph: gs.Graph) -> Tensor | None:
    """The input that takes pictures; None if there is none.

    (B, 3, H, W) in floating point is believed. Another number of channels, channels last or bytes may be something
    else, such as a mask: they are pictures where a convolution makes patches.
    """
    maps = [one for one in inputs if len(one.shape) == 4]
    floats = [one for one in maps if one.dtype in FLOATS.values()]
    usual = [one for one in floats if one.shape[1] == CHANNELS[0]]
    open_sizes = [one for one in floats if isinstance(one.shape[1], str) and not one.has_channels_last]
    others = [
        one for one in maps
        if one.dtype in (*FLOATS.values(), "uint8") and (one.shape[1] in CHANNELS or one.has_channels_last)
    ]  # fmt: skip
    return next(iter([*usual, *open_sizes, *(others if _patch_of(graph) else ())]), None)
