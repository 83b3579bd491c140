"""The matcher: it goes back where a way ends, holds names to one thing, and looks at which output it stands."""

import onnx
import onnx.parser

from exporter.surgery.edit import import_graph
from exporter.surgery.pattern import HOLE, AnyOf, Free, Match, Miss, Op, Var, Wrapped, match


def tensor(body: str, name: str = "y"):
    text = f'<ir_version: 9, opset_import: ["" : 17]> g (float[2,2] a, float[2,2] b) => (float[2,2] y) {{ {body} }}'
    return import_graph(onnx.parser.parse_model(text)).toposort().tensors()[name]


def test_siblings_are_tried_again_where_a_later_one_does_not_match():
    # The first way to take the sum binds x to a, which the second input contradicts.
    pattern = Op("Mul", (Op("Add", (Var("x"), Var())), Op("Neg", (Var("x"),))))
    found = match(pattern, tensor("s = Add(a, b) n = Neg(b) y = Mul(s, n)"))
    assert isinstance(found, Match)
    assert found.tensors["x"].name == "b"


def test_a_name_bound_twice_must_be_one_tensor():
    pattern = Op("Div", (Op("Sub", (Var("x"), Op("ReduceMean", (Var("x"),)))), Var()))
    same = match(pattern, tensor("m = ReduceMean<axes=[1]>(a) s = Sub(a, m) y = Div(s, b)"))
    assert isinstance(same, Match)
    other = match(pattern, tensor("m = ReduceMean<axes=[1]>(b) s = Sub(a, m) y = Div(s, b)"))
    assert isinstance(other, Miss)
    assert "`x` to be 'a' here too" in other.reason


def test_a_second_output_is_not_the_first():
    pattern = Op("Neg", (Op("Split", (Var(),)),))
    assert isinstance(match(pattern, tensor("p, q = Split<axis=0>(a) y = Neg(p)")), Match)
    found = match(pattern, tensor("p, q = Split<axis=0>(a) y = Neg(q)"))
    assert isinstance(found, Miss)
    assert "the first output of Split" in found.reason


def test_wraps_come_in_any_order_and_number_and_their_nodes_are_listed():
    wraps = (
        Op("Mul", (HOLE, Free()), step="scale"),
        Op("Cast", (HOLE,)),
        Op("Where", (Op("IsNaN", (HOLE,)), Free(), HOLE)),
    )
    pattern = Wrapped(wraps, Op("Softmax", (Var("x"),), bind="softmax"))
    body = """p = Softmax(a) c = Constant<value = float {2.0}>() s = Mul(c, p) i = IsNaN(s) w = Where(i, c, s)
    t = Mul(w, c) y = Cast<to=1>(t)"""
    found = match(pattern, tensor(body))
    assert isinstance(found, Match)
    assert [step.node.outputs[0].name for step in found.steps] == ["t", "s"]
    assert found.nodes["softmax"].op == "Softmax"
    assert len(found.inside) == 6


def test_what_is_computed_from_shapes_alone_is_free_of_the_picture():
    pattern = Op("Mul", (Var("x"), Free()))
    shape = "s = Shape(a) f = Cast<to=1>(s) n = ReduceProd<keepdims=0>(f)"
    assert isinstance(match(pattern, tensor(f"{shape} y = Mul(b, n)")), Match)
    found = match(pattern, tensor("y = Mul(a, b)"))
    assert isinstance(found, Miss)
    assert "does not depend on the picture" in found.reason


def test_of_several_misses_the_deepest_is_reported():
    pattern = AnyOf((Op("Neg", (Op("Abs", (Op("Exp", (Var(),)),)),)), Op("Neg", (Op("Log", (Var(),)),))))
    found = match(pattern, tensor("s = Sqrt(a) t = Abs(s) y = Neg(t)"))
    assert isinstance(found, Miss)
    assert (found.depth, "looked for Exp, found Sqrt" in found.reason) == (2, True)
