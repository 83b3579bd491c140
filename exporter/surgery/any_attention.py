"""Where any graph has attention, whoever made it: structure alone, without a word on its meaning or its sizes.

What a site's tensors are (heads, tokens, which axis) is seen when the graph runs; here it is found which tensors they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from exporter.surgery.edit import constant_value, is_constant, is_free, producer
from exporter.surgery.forms import ANY_ATTENTION, CHOICE, CONTEXTS, FUSED, INVERSE_SCALE, MASK, SCALE, FusedForm
from exporter.surgery.pattern import HOLE, AnyOf, Const, Match, Miss, Op, Var, Wrapped, match

_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Identity", "Dropout")
"""Operators that give the numbers of their first input, in another form."""
_PROJECTIONS = ("MatMul", "Gemm", "Conv", "FusedMatMul")


@dataclass(frozen=True)
class Scaling:
    """A factor on queries, keys, values or logits: a tensor, and whether it divides."""

    tensor: gs.Tensor
    divides: bool


@dataclass(frozen=True)
class Site:
    """One attention of any graph, as far as its structure says."""

    form: str
    """In words, for people."""
    query: gs.Tensor
    """The tensor that the product of queries and keys reads, scaled: (B, H, N, d) or (B·H, N, d)."""
    key: gs.Tensor
    value: gs.Tensor
    context: gs.Node
    """The node that ends it."""
    qk: gs.Node | None
    """The product of queries and keys; None if it is hidden in a fused operator."""
    softmax: gs.Node | None
    fused: FusedForm | None
    query_scales: tuple[Scaling, ...]
    """Factors that are in `query` already; `key_scales` alike."""
    key_scales: tuple[Scaling, ...]
    logit_scales: tuple[Scaling, ...]
    masks: tuple[gs.Tensor, ...]
    """Tensors that are added to the logits: masks, biases of positions."""
    choices: tuple[gs.Node, ...]
    """Where nodes between the product and the softmax."""
    sources: tuple[gs.Tensor, ...]
    """The tensors that queries, keys and values are projected from, in this order."""
    packed: bool
    """Whether one projection gives all three."""

    @property
    def name(self) -> str:
        """The name that people find in a viewer of graphs."""
        node = self.softmax or self.context
        return str(node.name or node.outputs[0].name)

    @property
    def logits(self) -> gs.Tensor:
        """The tensor that the softmax reads."""
        assert self.softmax is not None
        return self.softmax.inputs[0]

    @property
    def is_self_attention(self) -> bool:
        """Whether queries, keys and values come from the same tokens."""
        origins = [_origin(one) for one in self.sources]
        return len(origins) == 3 and all(one is origins[0] for one in origins)


@dataclass(frozen=True)
class NearMiss:
    """A place that begins as attention does and goes on otherwise."""

    node: str
    depth: int
    """Number of nodes that match."""
    reason: str


@dataclass(frozen=True)
class Found:
    """The attentions of a graph."""

    sites: tuple[Site, ...]
    """In the order of the graph."""
    near_misses: tuple[NearMiss, ...]
    """The deepest first."""


def find_any_attention(graph: gs.Graph) -> Found:
    """All attentions of a topologically sorted graph, and what comes near to one."""
    sites: list[Site] = []
    misses: list[tuple[gs.Node, Miss]] = []
    inside: set[int] = set()
    for node in graph.nodes:
        form = next((one for one in FUSED if (one.op, one.domain) == (node.op, node.domain or "")), None)
        if form is not None:
            sites.append(_fused_site(node, form))
        elif node.op in CONTEXTS and len(node.inputs) == 2 and not any(map(is_constant, node.inputs)):
            found = match(ANY_ATTENTION, node.outputs[0])
            if isinstance(found, Match):
                if not is_free(found.nodes["qk"].inputs[1]):  # else a pooling by learned weights
                    sites.append(_site(found))
                inside.update(map(id, found.inside))
            elif isinstance(found, Miss):
                misses.append((node, found))
    near = [
        NearMiss(f"{node.op} {node.name or node.outputs[0].name!r}", miss.depth, miss.reason)
        for node, miss in misses
        if miss.depth > 1 and id(node) not in inside
    ]
    near += [
        NearMiss(f"Softmax {node.name!r}", 1, f"looked for a product with values behind it, found {_behind(node)}")
        for node in graph.nodes
        if node.op == "Softmax" and id(node) not in inside and not near
    ]
    return Found(tuple(sites), tuple(sorted(near, key=lambda one: -one.depth)))


def _behind(softmax: gs.Node) -> str:
    """The operator behind a softmax that computes something, in words."""
    node = softmax
    while len(readers := node.outputs[0].outputs) == 1:
        (node,) = readers
        if node.op not in _MOVES:
            is_mixed = _is_projection(node) or (node.op == "Einsum" and any(map(is_free, node.inputs)))
            mixed = ", which mixes heads by weights (talking heads)" if is_mixed else ""
            return f"{node.op} {node.name or node.outputs[0].name!r}{mixed}"
    return "none" if not readers else f"{len(readers)} readers of {node.outputs[0].name!r}"


def _site(found: Match) -> Site:
    nodes = found.nodes
    query, key = nodes["qk"].inputs[:2]
    context = nodes["context"]
    ends = [found.tensors[name] for name in ("query", "key", "value")]
    projections = [projection_of(end) for end in ends]
    return Site(
        form=_in_words(found, projections),
        query=query,
        key=key,
        value=context.inputs[1],
        context=context,
        qk=nodes["qk"],
        softmax=nodes["softmax"],
        fused=None,
        query_scales=_scales(found, "query "),
        key_scales=_scales(found, "key "),
        logit_scales=_scales(found, ""),
        masks=tuple(
            next(tensor for tensor in node.inputs if not any(producer(tensor) is one for one in found.inside))
            for kind, node in found.steps
            if kind == MASK
        ),
        choices=tuple(node for kind, node in found.steps if kind == CHOICE),
        sources=tuple(one.inputs[_data_input(one)] for one in projections if one is not None),
        packed=projections[0] is not None and all(one is projections[0] for one in projections),
    )


def _fused_site(node: gs.Node, form: FusedForm) -> Site:
    packed = form.op in ("Attention", "QAttention") and form.domain != ""
    ends = [node.inputs[0]] * 3 if packed else [*node.inputs[:3], *node.inputs[:1] * 3][:3]
    projections = [None if packed or end.is_empty() else projection_of(end) for end in ends]
    sources = tuple(one.inputs[_data_input(one)] for one in projections if one is not None)
    is_masked = form.domain == "" and len(node.inputs) > 3 and not node.inputs[3].is_empty()
    return Site(
        form=form.what, query=ends[0], key=ends[1], value=ends[2], context=node, qk=None, softmax=None, fused=form,
        query_scales=(), key_scales=(), logit_scales=(), masks=(node.inputs[3],) if is_masked else (), choices=(),
        sources=(ends[0],) * 3 if packed else sources, packed=packed,
    )  # fmt: skip


def _scales(found: Match, prefix: str) -> tuple[Scaling, ...]:
    scales = []
    for kind, node in found.steps:
        if kind in (f"{prefix}{SCALE}", f"{prefix}{INVERSE_SCALE}"):
            factor = next(tensor for tensor in reversed(node.inputs) if is_free(tensor))
            scales.append(Scaling(factor, kind.endswith(INVERSE_SCALE)))
    return tuple(scales)


def projection_of(tensor: gs.Tensor) -> gs.Node | None:
    """The one node that multiplies with weights and that `tensor` comes from; None if there are none or several."""
    found: list[gs.Node] = []
    for node in upstream(tensor, _is_projection):
        if _is_projection(node) and not any(node is one for one in found):
            found.append(node)
    return found[0] if len(found) == 1 else None


def upstream(tensor: gs.Tensor, stops: Callable[[gs.Node], bool] | None = None) -> Iterator[gs.Node]:
    """The nodes that `tensor` is computed from, shapes left out; behind a node where `stops` holds it looks no further.

    Args:
        tensor: where to begin.
        stops: a function of a node, or None.
    """
    waiting, seen = [tensor], set()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node.op not in ("Shape", "Size") and not (stops is not None and stops(node)):
            waiting.extend(node.inputs)


def _origin(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that `tensor` is a moved form of: of two projections one may be a Gemm, which reads two dimensions."""
    while (node := producer(tensor)) is not None and node.op in _MOVES:
        tensor = node.inputs[0]
    return tensor


def _is_projection(node: gs.Node) -> bool:
    """Whether `node` multiplies tokens with weights; a transposed or cast weight is one too."""
    return node.op in _PROJECTIONS and [is_free(tensor) for tensor in node.inputs[:2]] in ([False, True], [True, False])


def _data_input(node: gs.Node) -> int:
    return 0 if is_free(node.inputs[1]) else 1


def _in_words(found: Match, projections: list[gs.Node | None]) -> str:
    if any(one is None for one in projections):
        split = "q, k, v of no single projection"
    elif all(one is projections[0] for one in projections):
        producers = [producer(found.tensors[name]) for name in ("query", "key", "value")]
        ops = {node.op for node in producers if node is not None}
        split = f"packed q, k, v by {', '.join(sorted(ops))}"
    else:
        split = "three projections"
    kinds = {kind for kind, _ in found.steps}
    places = {
        "Q": {f"query {SCALE}", f"query {INVERSE_SCALE}"},
        "K": {f"key {SCALE}", f"key {INVERSE_SCALE}"},
        "the product": {SCALE, INVERSE_SCALE},
    }
    scaled = [place for place, names in places.items() if names & kinds]
    computed = any(
        constant_value(one.tensor) is None for prefix in ("query ", "key ", "") for one in _scales(found, prefix)
    )
    scale = f"scale on {' and '.join(scaled) or 'nothing'}{', computed from shapes' if computed else ''}"
    more = [name for name, has in (("a mask", MASK in kinds), ("a choice of logits", CHOICE in kinds)) if has]
    guarded = any(node.op == "IsNaN" for node in found.inside)
    product = found.nodes["qk"].op
    said = [product, split, scale, *(f"{one} before the softmax" for one in more)]
    return "; ".join([*said, *(["a guard against NaN"] if guarded else [])])


_NORM_OF = AnyOf(
    (
        Op("LayerNormalization", (Var("tokens"),)),
        Op("SimplifiedLayerNormalization", (Var("tokens"),)),
        Op("RMSNormalization", (Var("tokens"),)),
        *(Op(op, (Op("Sub", (Var("tokens"), Op("ReduceMean", (Var("tokens"),)))), Var())) for op in ("Div", "Mul")),
    )
)
"""A normalisation of tokens, whole or written out."""
_NORMALISED = Wrapped(
    (
        Op("Mul", (HOLE, Const())), Op("Add", (HOLE, Const())), Op("Cast", (HOLE,)), Op("Identity", (HOLE,)),
        Op("Transpose", (HOLE,)), Op("Reshape", (HOLE, Var())),
    ),
    _NORM_OF,
)  # fmt: skip


def tokens_before(site: Site) -> gs.Tensor | Miss:
    """The tokens that enter the block of `site`: what the normalisation before its keys reads."""
    if len(site.sources) < 2:
        return Miss(0, "looked for one projection of the keys, found none or several")
    source = _unrounded(site.sources[1])
    node = producer(source)
    if node is not None and node.op == "SkipLayerNormalization":
        if len(node.outputs) > 3 and not node.outputs[3].is_empty():
            return node.outputs[3]
        return Miss(1, f"looked for the sum as an output of SkipLayerNormalization {node.name!r}, found none")
    found = match(_NORMALISED, source)
    return found if isinstance(found, Miss) else found.tensors["tokens"]


def _unrounded(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that a pair of QuantizeLinear and DequantizeLinear rounds; `tensor` itself if no pair gives it."""
    dequantise = producer(tensor)
    if dequantise is None or dequantise.op != "DequantizeLinear":
        return tensor
    quantise = producer(dequantise.inputs[0])
    return quantise.inputs[0] if quantise is not None and quantise.op == "QuantizeLinear" else tensor
