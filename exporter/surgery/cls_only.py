"""Pass: in the last block compute the CLS token's row alone, where nothing else is asked for.

Keys and values of all tokens stay. What goes is the other tokens' queries, logits, softmax, projection, MLP and final
norm: dead work that no output reads. Runs before `inject_itae`, which then works on the one row that is left.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.options import ExportSpec
from exporter.surgery.attention import AttentionSite, find_attention
from exporter.surgery.edit import Editor, cut, is_constant, producer, shape_of
from exporter.surgery.pass_report import PassReport
from runtime.contract.errors import SurgeryError

ROW_WISE = ("Add", "Cast", "Gelu", "Identity", "LayerNormalization", "MatMul", "Mul", "Sigmoid")
"""What a block does after its attention; none of it lets one token see another."""


def cls_only(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Cut the last block down to the CLS row: `tokens` (B, N, C) becomes (B, 1, C), if `spec` reads no other row.

    Raises:
        SurgeryError: there are not `spec.backbone.depth` attention sites, or after the last one something mixes tokens.
    """
    report = PassReport("cls_only")
    if not spec.computes_cls_only:
        return report
    site = find_attention(graph, expected=spec.backbone.depth)[-1]
    if site.rows == 1:  # a second run changes nothing
        return report
    edit = Editor(graph, site.scope)
    keeps_query = spec.itae is not None and spec.itae.source == "query" and site.layer in spec.layers
    _cut_query(edit, site, keep_all=keeps_query)
    merge = _cut_attention(site)
    _cut_rest(edit, merge)
    report.changed.append(site.scope)
    graph.cleanup().toposort()
    return report


def _cut_query(edit: Editor, site: AttentionSite, *, keep_all: bool) -> None:
    """Feed the attention with the query's first row: cut before its projection, or behind it where ITAE needs all."""
    reshape = site.query_reshape
    add = producer(reshape.inputs[0])
    matmul = next((node for node in map(producer, add.inputs) if node and node.op == "MatMul"), None) if add else None
    alone = matmul is not None and len(matmul.outputs[0].outputs) == len(reshape.inputs[0].outputs) == 1
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
        (node,) = node.outputs[0].outputs
        _one_row(node.outputs[0], axis=2)
    transpose = _only_reader(node, "Transpose")
    merge = _only_reader(transpose, "Reshape")
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
    rows: dict[int, gs.Tensor] = {}
    for node in inside:
        if not _treats_tokens_apart(node):
            raise SurgeryError(f"{node.op} {node.name!r} after the last attention may mix tokens: use --no-cls-only")
        for index, tensor in enumerate(node.inputs):
            if is_constant(tensor) or producer(tensor) is merge or any(producer(tensor) is one for one in inside):
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
    if node.op not in ROW_WISE or len(shape_of(node.outputs[0])) != 3:
        return False
    constants = [tensor for tensor in node.inputs if is_constant(tensor)]
    if node.op == "MatMul":
        return len(constants) == 1 and constants[0] is node.inputs[1]
    if node.op == "LayerNormalization":
        return node.attrs.get("axis", -1) in (-1, 2)
    return all(len(shape_of(tensor)) < 2 or shape_of(tensor)[-2] == 1 for tensor in constants)


def _only_reader(node: gs.Node, op: str) -> gs.Node:
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != op:
        found = ", ".join(f"{reader.op} {reader.name!r}" for reader in readers) or "nothing"
        raise SurgeryError(f"looked for one {op} after {node.op} {node.name!r}, found {found}: use --no-cls-only")
    return readers[0]


def _reshape_to(node: gs.Node, shape: tuple[int, ...]) -> None:
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/cls_shape", np.array(shape, np.int64))


def _one_row(tensor: gs.Tensor, axis: int) -> None:
    shape = list(shape_of(tensor))
    shape[axis] = 1
    tensor.shape = shape
