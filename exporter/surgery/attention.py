"""Where one of our own traces has attention, and what a pass may do to it.

Anchored on structure, never on names: torch's exporter merges equal constants, so that in a freshly initialised model
every zero bias is called `layer.0.norm1.bias`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.edit import constant_value, dtype_of, import_graph, is_constant, is_ours, producer, shape_of
from exporter.surgery.forms import BARRIER, CHOICE, MASK, SCALE, attention
from exporter.surgery.pattern import AnyOf, Const, Match, Miss, Op, Scalar, Var, match, maybe
from runtime.contract.errors import SurgeryError


def _perm(*order: int) -> MappingProxyType[str, list[int]]:
    return MappingProxyType({"perm": list(order)})


def _by_token(name: str) -> Op:
    """The projection `name` (B, N, C), seen as (B, N, H, d)."""
    return Op("Reshape", (Var(name, rank=3), Const()), bind=f"{name}_reshape")


def _by_head(name: str) -> Op:
    """The projection `name` (B, N, C), seen as (B, H, N, d)."""
    return Op("Transpose", (_by_token(name),), attrs=_perm(0, 2, 1, 3))


QUERY = maybe("Mul", _by_head("query"), Scalar("early_scale"))
KEY_T = AnyOf(
    (
        Op("Transpose", (_by_token("key"),), attrs=_perm(0, 2, 3, 1)),  # torch merges two transposes into this
        Op("Transpose", (_by_head("key"),), attrs=_perm(0, 1, 3, 2)),
    )
)
OWN = attention(QUERY, KEY_T, _by_head("value"))
"""Attention as our own traces have it, whose projections the passes may cut and rewrite."""
ORDER = ((BARRIER,), (MASK, CHOICE), (SCALE,))
"""Steps of our own graphs from the softmax back to the product, each at most once: `barrier`, `attenuation`, `late`."""


@dataclass(frozen=True)
class AttentionSite:
    """One self-attention; sites are counted along the graph, so that `layer` is the block's number."""

    layer: int
    query: gs.Tensor
    """(B, N, C), the projection with its bias, unscaled; `key` and `value` alike. (B, 1, C) where `cls_only` cut it."""
    key: gs.Tensor
    value: gs.Tensor
    heads: int
    head_dim: int
    query_reshape: gs.Node
    """The Reshape that cuts the query into heads; `key_reshape` alike."""
    key_reshape: gs.Node
    qk: gs.Node
    late: gs.Node | None
    """The Mul after the first MatMul; None if the scale is not there."""
    scale: float
    softmax: gs.Node
    attenuation: gs.Node | None
    """The node that a method put before the softmax."""
    barrier: gs.Node | None
    """The node by which `unfuse_attention` keeps the attention from being one kernel."""
    context: gs.Node
    """The second MatMul, which ends it."""

    @property
    def scope(self) -> str:
        """Prefix of the names of nodes and tensors that are added here."""
        return scope_of(self.layer)

    @property
    def rows(self) -> int:
        """Rows of the logits: N, or 1 if only the CLS token's row is computed."""
        return int(shape_of(self.query_reshape.outputs[0])[1])


def scope_of(layer: int) -> str:
    """Prefix of names for what is added at the attention of `layer`."""
    return f"layer{layer}"


def find_attention(graph: gs.Graph, facts: GraphFacts) -> list[AttentionSite]:
    """All self-attention sites, in the order of the graph, one for each block.

    Args:
        graph: topologically sorted.
        facts: how many sites there must be, and of what measures.

    Raises:
        SurgeryError: there are more or fewer sites, and the message gives what came nearest to one; or a site has
            other measures, or its shapes or types are not known.
    """
    found = _candidates(graph)
    matches = [one for one in found.values() if isinstance(one, Match)]
    if len(matches) != facts.depth:
        inside = {id(node) for one in matches for node in one.inside}
        misses = [one for key, one in found.items() if isinstance(one, Miss) and key not in inside]
        raise SurgeryError(_describe(graph, len(matches), facts.depth, misses))
    sites = [_site(one, layer) for layer, one in enumerate(matches)]
    for site in sites:
        _check_measures(site, facts)
    return sites


def count_attention(graph: gs.Graph) -> int:
    """Number of self-attention sites of a topologically sorted graph."""
    return sum(isinstance(one, Match) for one in _candidates(graph).values())


def attention_nodes(path: Path) -> list[frozenset[str]]:
    """Names of the MatMul, Softmax and MatMul of each attention in an ONNX file, from the first layer on."""
    graph = import_graph(onnx.load(path, load_external_data=False))
    matches = [one for one in _candidates(graph).values() if isinstance(one, Match)]
    return [frozenset(one.nodes[name].name for name in ("qk", "softmax", "context")) for one in matches]


def _candidates(graph: gs.Graph) -> dict[int, Match | Miss]:
    """For each MatMul of two variables, by its identity: whether attention ends in it."""
    outputs = {id(tensor) for tensor in graph.outputs}
    return {
        id(node): _whole(_own(match(OWN, node.outputs[0])), outputs)
        for node in graph.nodes
        if node.op == "MatMul" and not any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    }


def _own(found: Match | Miss) -> Match | Miss:
    """Refuse a match whose steps are not those that our own passes leave, in their order."""
    if isinstance(found, Miss):
        return found
    for name in ("qk", "softmax", "context"):
        if found.nodes[name].op not in ("MatMul", "Softmax"):
            return Miss(1, f"looked for MatMul, found {_named(found.nodes[name])}")
    place = -1
    for kind, node in found.steps:
        here = next((index for index, kinds in enumerate(ORDER) if kind in kinds), -1)
        late = [tensor for tensor in node.inputs if (value := constant_value(tensor)) is not None and value.size == 1]
        if here <= place or (kind == SCALE and not late):
            return Miss(len(found.inside), f"looked for the steps of our own graphs, found {_named(node)} among them")
        place = here
    return found


def _step(found: Match, *kinds: str) -> gs.Node | None:
    return next((node for kind, node in found.steps if kind in kinds), None)


def _whole(found: Match | Miss, outputs: Collection[int]) -> Match | Miss:
    """Refuse a match one of whose inner tensors is used elsewhere too: a rewrite would change that use.

    Args:
        found: what the matcher gave.
        outputs: the identities of the graph's outputs, which are a use too.
    """
    if isinstance(found, Miss):
        return found
    inside = {id(node) for node in found.inside}
    for node in found.inside:
        if node is found.nodes["context"]:
            continue
        looked_for = f"looked for {node.op} {node.name!r} used by the attention alone"
        if id(node.outputs[0]) in outputs:
            return Miss(len(inside), f"{looked_for}, found that {node.outputs[0].name!r} is an output of the graph too")
        for consumer in node.outputs[0].outputs:
            if id(consumer) not in inside and not is_ours(consumer):
                return Miss(len(inside), f"{looked_for}, found it used by {consumer.op} {consumer.name!r} too")
    return found


def _check_measures(site: AttentionSite, facts: GraphFacts) -> None:
    """Refuse a site that is not of this model, or whose shapes are not known, before anything is rewritten."""
    tokens = (facts.tokens, facts.width)
    by_head = (facts.heads, facts.width // facts.heads)
    rows = site.rows
    expected: list[tuple[gs.Tensor, tuple[tuple[int, ...], ...]]] = [
        (site.query, ((rows, facts.width), tokens)),
        (site.key, (tokens,)),
        (site.value, (tokens,)),
        (site.query_reshape.outputs[0], ((rows, *by_head),)),
        (site.key_reshape.outputs[0], ((facts.tokens, *by_head),)),
        (site.qk.inputs[0], ((facts.heads, rows, by_head[1]),)),
        (site.qk.outputs[0], ((facts.heads, rows, facts.tokens),)),
        (logits_of(site), ((facts.heads, rows, facts.tokens),)),
        (site.context.outputs[0], ((facts.heads, rows, by_head[1]),)),
    ]
    for tensor, allowed in expected:
        dtype_of(tensor)
        found = shape_of(tensor)
        if rows not in (1, facts.tokens) or found[1:] not in allowed:
            raise SurgeryError(
                f"{site.scope}: looked for {tensor.name!r} of shape {['batch', *allowed[0]]}, as a model with "
                f"{facts.tokens} tokens of {facts.width} channels in {facts.heads} heads has it, found {list(found)}"
            )


def _site(found: Match, layer: int) -> AttentionSite:
    by_head = shape_of(found.nodes["query_reshape"].outputs[0], 4)
    late = _step(found, SCALE)
    scale = found.tensors.get("early_scale")
    if late is not None:
        scale = next(tensor for tensor in late.inputs if constant_value(tensor) is not None)
    return AttentionSite(
        layer=layer,
        query=_before_the_cut(found.tensors["query"]),
        key=found.tensors["key"],
        value=found.tensors["value"],
        heads=int(by_head[2]),
        head_dim=int(by_head[3]),
        query_reshape=found.nodes["query_reshape"],
        key_reshape=found.nodes["key_reshape"],
        qk=found.nodes["qk"],
        late=late,
        scale=float(scale.values.item()) if scale is not None else 1.0,
        softmax=found.nodes["softmax"],
        attenuation=_step(found, MASK, CHOICE),
        barrier=_step(found, BARRIER),
        context=found.nodes["context"],
    )


def _before_the_cut(query: gs.Tensor) -> gs.Tensor:
    """The query of all tokens, where `cls_only` cut it after the projection."""
    node = producer(query)
    return node.inputs[0] if node is not None and node.op == "Slice" and is_ours(node) else query


def _describe(graph: gs.Graph, found: int, expected: int, misses: list[Miss]) -> str:
    text = f"looked for {expected} attention sites (MatMul, Mul, Softmax, MatMul over q, k, v by head), found {found}"
    if not misses:
        softmax = sum(node.op == "Softmax" for node in graph.nodes)
        return f"{text}; the graph has no other MatMul of two variables, and {softmax} Softmax nodes: is it a DINOv2?"
    nearest = max(reversed(misses), key=lambda miss: miss.depth)  # of equals the last: the context follows the logits
    return f"{text}; the nearest miss, after {nearest.depth} matching nodes: {nearest.reason}"


def logits_of(site: AttentionSite) -> gs.Tensor:
    """The tensor (B, H, N, N) that goes into the softmax."""
    return site.softmax.inputs[0]


def block_input(site: AttentionSite) -> gs.Tensor:
    """The tokens (B, N, C) that enter the block of this attention: what its first LayerNorm reads.

    Raises:
        SurgeryError: the keys are no projection of a LayerNormalization's output.
    """
    node = producer(site.key)
    for op in ("Add", "MatMul"):
        if node is None or node.op != op:
            raise SurgeryError(f"{site.scope}: looked for {op} before {site.key.name!r}, found {_named(node)}")
        node = next((producer(tensor) for tensor in node.inputs if not is_constant(tensor)), None)
    if node is not None and node.op == "Cast":
        node = producer(node.inputs[0])
    if node is None or node.op != "LayerNormalization":
        raise SurgeryError(f"{site.scope}: looked for LayerNormalization before the keys, found {_named(node)}")
    tokens: gs.Tensor = node.inputs[0]
    return tokens


def _named(node: gs.Node | None) -> str:
    return "nothing" if node is None else f"{node.op} {node.name!r}"
