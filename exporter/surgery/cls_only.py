"""Pass: in the last block compute the CLS token's row alone, where nothing else is asked for.

Keys and values of all tokens stay. What goes is the other tokens' queries, logits, softmax, projection, MLP and final
norm: dead work that no output reads. Runs before a method's pass, which then works on the one row that is left.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.attention import AttentionSite, find_attention
from exporter.surgery.edit import Editor, cut, is_constant, is_output, producer, rank_of, shape_of
from runtime.contract.errors import SurgeryError

ROW_WISE = ("Add", "Cast", "Gelu", "Identity", "LayerNormalization", "MatMul", "Mul", "Sigmoid")
"""Operators of a block after its attention; all of them treat tokens separately."""


def cls_only(graph: gs.Graph, facts: GraphFacts, *, keep_query: bool) -> list[str]:
    """Cut the last block down to the CLS row: the output, all tokens (B, N, C), becomes (B, 1, C).

    Args:
        graph: changed in place.
        facts: depth and measures.
        keep_query: whether the queries of all tokens are still computed, for a method that looks at them.

    Raises:
        SurgeryError: the graph does not have the attention sites of `facts`, something mixes tokens after the last
            one, or the graph has another output than all tokens.
    """
    site = find_attention(graph, facts)[-1]
    if site.rows == 1:  # a second run changes nothing
        return []
    if len(graph.outputs) != 1:
        found = ", ".join(tensor.name for tensor in graph.outputs) or "none"
        raise SurgeryError(f"looked for one output, all tokens, found {found}: use --no-cls-only")
    edit = Editor(graph, site.scope)
    _cut_query(edit, site, keep_all=keep_query)
    merge = _cut_attention(site)
    _cut_rest(edit, merge)
    graph.cleanup().toposort()
    return [site.scope]


def _cut_query(edit: Editor, site: AttentionSite, *, keep_all: bool) -> None:
    """Feed the attention with the query's first row: cut before its projection, or behind it to keep all rows."""
    reshape = site.query_reshape
    add = producer(reshape.inputs[0])
    matmul = next((node for node in map(producer, add.inputs) if node and node.op == "MatMul"), None) if add else None
    alone = matmul is not None and len(matmul.outputs[0].outputs) == len(reshape.inputs[0].outputs) == 1
    if matmul is not None and add is not None:
        alone = alone and not any(is_output(edit.graph, node.outputs[0]) for node in (matmul, add))
    if keep_all or not alone or add is None or add.op != "Add":
        reshape.inputs[0] = cut(edit, reshape.inputs[0], "cls_query", axis=1, start=0, stop=1)
        return
    assert matmul is not None
    matmul.inputs[0] = cut(edit, matmul.inputs[0], "cls_row", axis=1, start=0, stop=1)
    for node in (matmul, add):
        _one_row(node.outputs[0], axis=1)


def _cut_attention(site: AttentionSite) -> gs.Node:
    """Correct the shapes from the query's to the context's; gives the Reshape that joins the heads.

    Raises:
        SurgeryError: the context goes elsewhere than into Transpose and Reshape.
    """
    H, d = site.heads, site.head_dim
    _reshape_to(site.query_reshape, (-1, 1, H, d))
    _one_row(site.query_reshape.outputs[0], axis=1)
    node = site.query_reshape
    while node is not site.context:
        node = _only_reader(node)
        _one_row(node.outputs[0], axis=2)
    transpose = _only_reader(node, "Transpose")
    merge = _only_reader(transpose, "Reshape")
    if transpose.attrs.get("perm") != [0, 2, 1, 3] or shape_of(merge.outputs[0])[1:] != shape_of(site.key)[1:]:
        raise SurgeryError(f"{merge.op} {merge.name!r} does not join the heads of each token: use --no-cls-only")
    _reshape_to(merge, (-1, 1, H * d))
    for tensor in (transpose.outputs[0], merge.outputs[0]):
        _one_row(tensor, axis=1)
    return merge


def _cut_rest(edit: Editor, merge: gs.Node) -> None:
    """Correct the shapes of all that comes after the attention, and cut what enters it from before: the residual.

    Raises:
        SurgeryError: an operation is not known to treat tokens apart.
    """
    inside = _downstream(merge)
    (output,) = edit.graph.outputs
    if not any(producer(output) is node for node in (merge, *inside)):
        raise SurgeryError(f"the output {output.name!r} is not made after the last attention: use --no-cls-only")
    rows: dict[int, gs.Tensor] = {}
    for node in inside:
        if not _treats_tokens_apart(node):
            raise SurgeryError(f"{node.op} {node.name!r} after the last attention may mix tokens: use --no-cls-only")
        for index, tensor in enumerate(node.inputs):
            if tensor.is_empty() or is_constant(tensor) or any(producer(tensor) is one for one in (merge, *inside)):
                continue
            if id(tensor) not in rows:
                rows[id(tensor)] = cut(edit, tensor, f"cls_residual{len(rows) or ''}", axis=1, start=0, stop=1)
            node.inputs[index] = rows[id(tensor)]
        _one_row(node.outputs[0], axis=1)


def _downstream(start: gs.Node) -> list[gs.Node]:
    """All nodes that read `start`'s output, directly or through others."""
    found: list[gs.Node] = []
    waiting = list(start.outputs[0].outputs)
    while waiting:
        node = waiting.pop()
        if not any(node is one for one in found):
            found.append(node)
            waiting.extend(reader for tensor in node.outputs for reader in tensor.outputs)
    return found


def _treats_tokens_apart(node: gs.Node) -> bool:
    if node.op not in ROW_WISE or rank_of(node.outputs[0]) != 3:
        return False
    constants = [tensor for tensor in node.inputs if is_constant(tensor)]
    if node.op == "MatMul":
        return len(constants) == 1 and constants[0] is node.inputs[1]
    if node.op == "LayerNormalization":
        return node.attrs.get("axis", -1) in (-1, 2)
    shapes = [shape_of(tensor) for tensor in constants]
    return all(len(shape) < 2 or shape[-2] == 1 for shape in shapes)


def _only_reader(node: gs.Node, op: str | None = None) -> gs.Node:
    """The one node that reads what `node` gives, of type `op` if that is given.

    Raises:
        SurgeryError: there are none or several, or the node is of another type.
    """
    readers = node.outputs[0].outputs
    if len(readers) != 1 or op not in (None, readers[0].op):
        found = ", ".join(f"{reader.op} {reader.name!r}" for reader in readers) or "nothing"
        looked_for = op or "node"
        raise SurgeryError(
            f"looked for one {looked_for} after {node.op} {node.name!r}, found {found}: use --no-cls-only"
        )
    return readers[0]


def _reshape_to(node: gs.Node, shape: tuple[int, ...]) -> None:
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/cls_shape", np.array(shape, np.int64))


def _one_row(tensor: gs.Tensor, axis: int) -> None:
    shape = list(shape_of(tensor))
    if len(shape) <= axis:
        raise SurgeryError(f"looked for more than {axis} dimensions in {tensor.name!r}, found {shape}")
    shape[axis] = 1
    tensor.shape = shape
