"""The forms of attention, as data: what stands between a product of queries and keys, its softmax and its values.

One place for all graphs, our own traces and those of other exporters. A further form is a line here: another wrap of
the logits, of the weights or of the way of the queries and keys, or another operator that hides all of it. Sources:
graphs of torch.onnx (TorchScript and dynamo, opset 11 to 23) made from transformers, timm, open_clip and vit-pytorch,
and what onnxslim and ONNX Runtime make of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.surgery.pattern import HOLE, AnyOf, Free, Op, Pattern, Var, Wrapped

ANYTHING = Var()
CONTEXTS = ("MatMul", "Einsum", "FusedMatMul")
"""Operators that may end an attention."""

SCALE = "scale"
INVERSE_SCALE = "inverse scale"
MASK = "mask"
CHOICE = "choice"
BARRIER = "barrier"

_AS_IT_IS = (Op("Cast", (HOLE,)), Op("Identity", (HOLE,)), Op("Dropout", (HOLE,)))
_MOVED = (
    Op("Reshape", (HOLE, ANYTHING)),
    Op("Transpose", (HOLE,)),
    Op("Squeeze", (HOLE,)),
    Op("Unsqueeze", (HOLE,)),
)
_OF_LOGITS = (
    Op("Mul", (HOLE, Free()), step=SCALE),
    Op("Div", (HOLE, Free()), step=INVERSE_SCALE),
    Op("Add", (HOLE, ANYTHING), step=MASK),  # an additive mask, or a bias of positions
    Op("Where", (ANYTHING, ANYTHING, HOLE), step=CHOICE),
    Op("Max", (HOLE, ANYTHING), step=BARRIER),
    *_AS_IT_IS,
    Op("Reshape", (HOLE, ANYTHING)),  # between (B, H, N, N) and (B·H, N, N)
)
_OF_WEIGHTS = (
    Op("Where", (Op("IsNaN", (HOLE,)), Free(), HOLE)),  # torch's fused attention: rows that a mask hides as a whole
    *_AS_IT_IS,
    Op("Reshape", (HOLE, ANYTHING)),
)


def attention(query: Pattern, key: Pattern, value: Pattern) -> Pattern:
    """Attention as one pattern: `softmax(query @ key) @ value`, the keys being transposed already.

    Its nodes are called `qk`, `softmax` and `context`; its steps between the product and the softmax are `SCALE`,
    `INVERSE_SCALE`, `MASK`, `CHOICE` and `BARRIER`, from the softmax on.
    """

    def product(name: str, left: Pattern, right: Pattern) -> Pattern:
        return AnyOf(tuple(Op(op, (left, right), bind=name) for op in reversed(CONTEXTS)))

    logits = Wrapped(_OF_LOGITS, product("qk", query, key))
    softmax = Op("Softmax", (logits,), bind="softmax")
    return product("context", Wrapped(_OF_WEIGHTS, softmax), value)


def _scaled(name: str) -> Pattern:
    """The vectors `name`, behind scales and moves."""
    scales = (
        Op("Mul", (HOLE, Free(one=True)), step=f"{name} {SCALE}"),
        Op("Div", (HOLE, Free(one=True)), step=f"{name} {INVERSE_SCALE}"),
    )
    return Wrapped((*scales, *_MOVED, *_AS_IT_IS), Var(name))


ANY_ATTENTION = attention(_scaled("query"), _scaled("key"), _scaled("value"))
"""Attention of any graph; `query`, `key` and `value` are as they were before they were scaled or moved."""


@dataclass(frozen=True)
class FusedForm:
    """An operator that holds a whole attention."""

    op: str
    domain: str
    what: str
    """The operator in words."""


FUSED = (
    FusedForm("Attention", "", "the operator Attention of opset 23"),
    FusedForm("Attention", "com.microsoft", "ONNX Runtime's fused operator Attention"),
    FusedForm("MultiHeadAttention", "com.microsoft", "ONNX Runtime's fused operator MultiHeadAttention"),
    FusedForm("GroupQueryAttention", "com.microsoft", "ONNX Runtime's fused operator GroupQueryAttention"),
    FusedForm("QAttention", "com.microsoft", "ONNX Runtime's quantized operator QAttention"),
    FusedForm("PackedMultiHeadAttention", "com.microsoft", "ONNX Runtime's fused operator PackedMultiHeadAttention"),
)
