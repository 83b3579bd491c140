"""Each pass on graphs in ONNX text: changes, refuses, a second run, same numbers, dtypes and shapes set."""

import dataclasses

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from attention_as_text import C, N, attention_text, make_model, make_spec, two_layers

from exporter import surgery
from exporter.methods.itae.graph.inject import inject_itae
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery import PASSES, run_pass
from exporter.surgery.attention import find_attention
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph, is_ours
from exporter.surgery.half_precision import half_precision
from exporter.surgery.pass_report import PassReport
from exporter.surgery.scale_queries import scale_queries
from exporter.surgery.select_outputs import select_outputs
from exporter.surgery.split_bias_gelu import split_bias_gelu
from exporter.surgery.uint8_input import uint8_input
from runtime.contract.errors import SurgeryError

ITAE = ItaeConfig("all", "key", "zscore:0.5", attenuate="mean")
SPEC = make_spec(itae=ITAE, precision="fp16", outputs=("embedding", "patch_tokens", "artifact_mask", "artifact_norm"))
CLS_SPEC = dataclasses.replace(SPEC, outputs=("embedding", "artifact_mask", "artifact_norm"))
TOKENS = np.random.default_rng(1).standard_normal((3, N, C), dtype=np.float32)
ATOL = {"fp32": 1e-6, "fp16": 5e-3}


def graph_of(model: onnx.ModelProto) -> gs.Graph:
    return import_graph(model).toposort()


def exported(graph: gs.Graph) -> onnx.ModelProto:
    model = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = 10
    return model


def run(model: onnx.ModelProto, *, optimize: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: TOKENS})


VARIANTS = [
    pytest.param({"scale": scale, "key": key, "mask": mask}, id=f"{scale}-{key}-{'mask' if mask else 'plain'}")
    for scale in ("late", "early", "none")
    for key in ("merged", "apart")
    for mask in (False, True)
]


@pytest.mark.parametrize("knobs", VARIANTS)
def test_every_way_to_write_attention_is_found(knobs):
    sites = find_attention(graph_of(two_layers(**knobs)), expected=2)
    assert [(site.layer, site.heads, site.head_dim, site.tokens) for site in sites] == [(0, 2, 4, N), (1, 2, 4, N)]
    assert [site.key.name for site in sites] == ["n0_kp", "n1_kp"]
    assert sites[0].scale == (1.0 if knobs["scale"] == "none" else 0.5)


@pytest.mark.parametrize("knobs", VARIANTS)
@pytest.mark.parametrize("optimize", [False, True], ids=["as-is", "optimized"])
def test_scaling_queries_keeps_the_numbers(knobs, optimize):
    model = two_layers(**knobs)
    graph = graph_of(model)
    report = run_pass(scale_queries, graph, SPEC)
    assert report.changed == (["layer0", "layer1"] if knobs["scale"] == "late" else [])
    assert all(site.late is None for site in find_attention(graph, expected=2))
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(run(changed, optimize=optimize)[0], run(model, optimize=optimize)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attenuate", ["min", "mask", "mean", "scale:0.5"])
def test_injection_changes_the_chosen_layer_and_touches_nothing_else(attenuate):
    model = two_layers()
    graph = graph_of(model)
    spec = dataclasses.replace(SPEC, itae=dataclasses.replace(ITAE, layers="1", attenuate=attenuate))
    spec = dataclasses.replace(spec, precision="fp32")
    run_pass(scale_queries, graph, spec)
    before = {node.name or node.outputs[0].name: node.op for node in graph.nodes}
    assert run_pass(inject_itae, graph, spec).changed == ["layer1"]
    after = {node.name or node.outputs[0].name: node.op for node in graph.nodes}
    assert {name: op for name, op in after.items() if name in before} == before
    added = after.keys() - before.keys()
    assert added
    assert all(name.startswith("itae/layer1/") for name in added)
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    moved = np.abs(run(changed, optimize=False)[0] - run(model, optimize=False)[0]).max()
    assert moved > 1e-3
    np.testing.assert_allclose(run(changed, optimize=True)[0], run(changed, optimize=False)[0], rtol=0, atol=1e-6)


def test_min_refuses_logits_that_are_scaled_after_their_product():
    spec = dataclasses.replace(SPEC, itae=dataclasses.replace(ITAE, attenuate="min"))
    with pytest.raises(SurgeryError, match="layer0: logits are scaled after their MatMul: scale the queries first"):
        run_pass(inject_itae, graph_of(two_layers()), spec)


@pytest.mark.parametrize("spec", [SPEC, CLS_SPEC], ids=["all tokens", "CLS only"])
def test_all_passes_leave_checked_graphs_and_typed_tensors_and_a_second_run_changes_nothing(spec):
    model = two_layers()
    graph = graph_of(model)
    for operate in PASSES[:-1]:  # the text model's input is no picture
        report = run_pass(operate, graph, spec)
        idle = operate is split_bias_gelu or (operate is cls_only and spec is SPEC)
        assert bool(report.changed) != idle, operate.__name__
        onnx.checker.check_model(exported(graph), full_check=True)
        for node in filter(is_ours, graph.nodes):
            for tensor in node.outputs:
                assert tensor.dtype is not None
                assert tensor.shape is not None
        names = [node.name for node in graph.nodes if is_ours(node)]
        assert run_pass(operate, graph, spec).changed == []
        assert [node.name for node in graph.nodes if is_ours(node)] == names
    # What we wrote down of dtypes and shapes is what ONNX infers.
    final = exported(graph)
    inferred = onnx.shape_inference.infer_shapes(final, strict_mode=True, data_prop=True)
    assert [output.name for output in inferred.graph.output] == list(spec.outputs)


@pytest.mark.parametrize("source", ["query", "key"])
@pytest.mark.parametrize("knobs", VARIANTS)
@pytest.mark.parametrize("optimize", [False, True], ids=["as-is", "optimized"])
def test_cls_only_gives_the_first_row_of_all_tokens(knobs, source, optimize):
    model = two_layers(**knobs)
    graph = graph_of(model)
    spec = dataclasses.replace(CLS_SPEC, itae=dataclasses.replace(ITAE, source=source))
    assert run_pass(cls_only, graph, spec).changed == ["layer1"]
    assert run_pass(cls_only, graph, spec).changed == []
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    (got,), (want,) = run(changed, optimize=optimize), run(model, optimize=optimize)
    assert got.shape == (3, 1, C)
    np.testing.assert_allclose(got, want[:, :1], rtol=0, atol=1e-6)
    first, last = find_attention(graph, expected=2)
    assert (first.rows, first.tokens, last.rows, last.tokens) == (N, N, 1, N)
    # The norm needs the query of all patches, the logits only that of the CLS token.
    assert tuple(last.query.shape) == ("batch", N if source == "query" else 1, C)


def test_cls_only_computes_no_other_row_of_the_last_block():
    graph = graph_of(two_layers())
    run_pass(cls_only, graph, CLS_SPEC)
    after = False
    for node in graph.nodes:  # in the order of execution
        (tensor,) = node.outputs
        after = after or node.name.endswith("cls_row")
        if after and not any(part in tensor.name for part in ("_k", "_v")):
            assert 1 in tensor.shape[1:3], f"{node.op} {tensor.name} {tensor.shape}"
    assert after


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"outputs": ("embedding",)}, 1),
        ({"outputs": ("artifact_mask", "embedding")}, 1),
        ({"outputs": ("embedding", "patch_tokens")}, N),
        ({"outputs": ("embedding",), "pooling": "cls+mean"}, N),
        ({"outputs": ("embedding",), "cls_only": False}, N),
    ],
    ids=["embedding", "and flags", "and patch tokens", "pooled", "switched off"],
)
def test_cls_only_stands_aside_where_other_tokens_are_read(options, rows):
    graph = graph_of(two_layers())
    run_pass(cls_only, graph, dataclasses.replace(SPEC, **options))
    assert find_attention(graph, expected=2)[-1].rows == rows


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("out2 = Softmax<axis=1>(out1)", "Softmax .* after the last attention may mix tokens: use --no-cls-only"),
        ("out2 = Add(out1, by_token)", "Add .* after the last attention may mix tokens: use --no-cls-only"),
        ("out2 = MatMul(mix, out1)", "MatMul .* after the last attention may mix tokens: use --no-cls-only"),
        (
            "apart = Reshape(n1_t, tokens_shape)\nout2 = Add(out1, apart)",
            "looked for one Reshape after Transpose .* found Reshape .*, Reshape",
        ),
    ],
    ids=["over tokens", "a constant for each token", "a matrix from the left", "the context goes elsewhere too"],
)
def test_cls_only_refuses_what_lets_tokens_see_each_other(tail, reason):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0")
    ones = ", ".join(["1.0"] * N * N)
    body += f"\nby_token = Constant<value = float[{N}, 1] {{{', '.join(['1.0'] * N)}}}>()"
    body += f"\nmix = Constant<value = float[{N}, {N}] {{{ones}}}>()\n{tail}"
    with pytest.raises(SurgeryError, match=reason):
        run_pass(cls_only, graph_of(make_model(body, "out2")), CLS_SPEC)


MLP = """
mlp_m = MatMul(out1, w0)
mlp_b = Add(BIASED)
out2 = Gelu(mlp_b)"""


@pytest.mark.parametrize("biased", ["mlp_m, b0", "b0, mlp_m"])
def test_the_bias_before_a_gelu_stays_out_of_onnx_runtimes_fusion(biased, tmp_path):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0") + MLP.replace("BIASED", biased)
    model = make_model(body, "out2")
    graph = graph_of(model)
    assert len(run_pass(split_bias_gelu, graph, SPEC).changed) == 1
    assert run_pass(split_bias_gelu, graph, SPEC).changed == []
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    fused = {name: optimized_ops(one, tmp_path) for name, one in (("before", model), ("after", changed))}
    assert "BiasGelu" in fused["before"]  # or there would be nothing to do
    assert not {"BiasGelu", "Unsqueeze"} & fused["after"]
    for optimize in (False, True):
        np.testing.assert_allclose(run(changed, optimize=optimize)[0], run(model, optimize=False)[0], rtol=0, atol=1e-6)


def optimized_ops(model: onnx.ModelProto, folder) -> set[str]:
    """What ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize(
    "tail", ["out2 = Gelu(out1)", "sum = Add(out1, out0)\nout2 = Gelu(sum)"], ids=["none", "residual"]
)
def test_a_gelu_without_a_bias_is_left_alone(tail):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0") + "\n" + tail
    assert run_pass(split_bias_gelu, graph_of(make_model(body, "out2")), SPEC).changed == []


def test_half_precision_stays_close_and_casts_at_every_border():
    model = two_layers()
    graph = graph_of(model)
    run_pass(scale_queries, graph, SPEC)
    assert run_pass(half_precision, graph, SPEC).changed
    halved = exported(graph)
    onnx.checker.check_model(halved, full_check=True)  # mixed dtypes would be refused
    types = {node.op: {tensor.dtype for tensor in node.outputs} for node in graph.nodes}
    assert types["MatMul"] == {np.dtype(np.float16)}
    want = run(model, optimize=False)[0]
    got = run(halved, optimize=False)[0]
    assert 0 < np.abs(got - want).max() < ATOL["fp16"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_goes_through_what_only_moves_numbers(precision):
    """As a pass leaves it that computes one row of the last block."""
    body = """
    one = MatMul(tokens_in, w0)
    biased = Add(one, b0)
    row = Slice(biased, first, second, second)
    flat = Squeeze(row, second)
    picked = Gather<axis=1>(biased, which)
    again = Unsqueeze(picked, second)
    deep = Unsqueeze(flat, second)
    both = Concat<axis=1>(again, deep)
    two = MatMul(both, w1)
    kept = Slice(tokens_in, first, third, second)
    out0 = Add(two, kept)
    """
    extra = ("int64[1] first = {0}", "int64[1] second = {1}", "int64[1] third = {2}", "int64 which = {0}")
    model = make_model(body, "out0", constants=extra, tokens=2)
    graph = graph_of(model)
    run_pass(half_precision, graph, dataclasses.replace(SPEC, precision=precision))
    halved = exported(graph)
    onnx.checker.check_model(halved, full_check=True)
    wide = {node.op for node in graph.nodes for tensor in node.outputs if tensor.dtype == np.float32}
    assert wide == {"Cast", "Slice", "Add", "Identity"}  # of what leads to the output: the residual stream
    casts = [node.inputs[0].name for node in graph.nodes if node.op == "Cast" and node.inputs[0].inputs]
    assert casts == ["two"]
    if precision == "fp16":
        np.testing.assert_allclose(run(halved, optimize=False)[0], run(model, optimize=False)[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("break_it", "looked_for", "found"),
    [
        (lambda text: text.replace("n1_s = Softmax<axis=-1>", "n1_s = Sigmoid"), "Softmax", "Sigmoid"),
        (lambda text: text.replace("n1_ls = Mul(n1_l, scale)", "n1_ls = Tanh(n1_l)"), "MatMul", "Tanh"),
        (
            lambda text: text.replace("n1_kt = Transpose<perm=[0,2,3,1]>", "n1_kt = Transpose<perm=[0,2,3,1]>").replace(
                "n1_v = Transpose<perm=[0,2,1,3]>(n1_vr)", "n1_v0 = Transpose<perm=[0,2,1,3]>(n1_vr)\nn1_v = Abs(n1_v0)"
            ),
            "Transpose",
            "Abs",
        ),
    ],
    ids=["no softmax", "something between", "values by another road"],
)
def test_a_graph_without_the_expected_attention_is_refused_with_the_nearest_miss(break_it, looked_for, found):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0")
    model = make_model(break_it(body), "out1")
    with pytest.raises(SurgeryError, match=rf"looked for 2 attention sites.* found 1; .*{looked_for}.*{found}"):
        scale_queries(graph_of(model), SPEC)


def test_a_graph_without_any_attention_is_refused():
    model = make_model("out0 = Identity(tokens_in)", "out0")
    with pytest.raises(SurgeryError, match="found 0; the graph has no other MatMul of two variables, and 0 Softmax"):
        inject_itae(graph_of(model), SPEC)


def test_an_inner_tensor_that_is_used_elsewhere_blocks_the_rewrite():
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0")
    body += "\nleak = ReduceMean<keepdims=0>(n1_s)\nout2 = Add(out1, leak)"
    model = make_model(body, "out2")
    with pytest.raises(SurgeryError, match=r"Softmax .*used by ReduceMean"):
        scale_queries(graph_of(model), SPEC)


def test_selecting_outputs_refuses_another_output_than_all_tokens():
    graph = graph_of(two_layers())
    with pytest.raises(SurgeryError, match=r"looked for one output \(B, 10, 8\), found tokens \['batch', 5, 8\]"):
        select_outputs(graph, dataclasses.replace(SPEC, image_size=42))


def test_uint8_input_refuses_an_input_that_is_no_picture():
    graph = graph_of(two_layers())
    with pytest.raises(SurgeryError, match=r"looked for one input \(B, 3, 28, 28\), found"):
        uint8_input(graph, dataclasses.replace(SPEC, input="uint8"))


def test_the_runner_names_what_a_pass_broke():
    def drop_a_site(graph: gs.Graph, _: object) -> PassReport:
        next(node for node in graph.nodes if node.op == "Softmax").op = "Sigmoid"
        return PassReport("drop_a_site")

    def rename_the_output(graph: gs.Graph, _: object) -> PassReport:
        graph.outputs[0].name = "other"
        return PassReport("rename_the_output")

    with pytest.raises(SurgeryError, match="left 1 of 2 attention sites"):
        run_pass(drop_a_site, graph_of(two_layers()), SPEC)
    with pytest.raises(SurgeryError, match="changed the interface"):
        run_pass(rename_the_output, graph_of(two_layers()), SPEC)


def test_the_street_names_the_pass_that_refused(tmp_path):
    onnx.save(make_model("out0 = Identity(tokens_in)", "out0"), tmp_path / "traced.onnx")
    with pytest.raises(SurgeryError, match="surgery pass scale_queries: looked for 2"):
        surgery.run(tmp_path / "traced.onnx", SPEC)


def test_surgery_prints_nothing(capfd):
    graph = graph_of(two_layers())
    for operate in PASSES[:-1]:
        run_pass(operate, graph, SPEC)
    exported(graph)
    assert capfd.readouterr() == ("", "")
