"""Each pass on graphs in ONNX text: changes, refuses, a second run, same numbers, dtypes and shapes set."""

import dataclasses
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from attention_as_text import FACTS, C, N, attention_text, make_model, two_layers

from exporter.methods.itae.graph.inject import inject_itae, offered_outputs
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery import runner
from exporter.surgery.attention import find_attention
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph, is_ours
from exporter.surgery.half_precision import half_precision
from exporter.surgery.runner import run_pass
from exporter.surgery.scale_queries import scale_queries
from exporter.surgery.select_outputs import Outputs, select_outputs
from exporter.surgery.split_bias_gelu import split_bias_gelu
from exporter.surgery.uint8_input import uint8_input
from exporter.surgery.unfuse_attention import unfuse_attention
from runtime.contract.errors import SurgeryError

ITAE = ItaeConfig("all", "key", "zscore:0.5", attenuate="mean")
EVERYTHING = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
CLS_OUTPUTS = ("embedding", "artifact_mask", "artifact_norm")
scale = partial(scale_queries, facts=FACTS)
halve = partial(half_precision, precision="fp16")
unfuse = partial(unfuse_attention, facts=FACTS)
cut = partial(cls_only, facts=FACTS, keep_query=False)


def inject(**options) -> partial:
    return partial(inject_itae, facts=FACTS, itae=dataclasses.replace(ITAE, **options))


def select(*names: str, **options) -> partial:
    return partial(
        select_outputs, facts=FACTS, outputs=Outputs(names, by_layer=offered_outputs(ITAE, FACTS.depth), **options)
    )


def passes(names: tuple[str, ...]) -> list[partial]:
    """A whole street, but for the input: the text model's is no picture."""
    cutting = [] if "patch_tokens" in names else [cut]
    return [scale, halve, *cutting, inject(), unfuse, select(*names), partial(split_bias_gelu)]


def uint8(facts=FACTS) -> partial:
    return partial(uint8_input, facts=facts, name="images", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


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
    sites = find_attention(graph_of(two_layers(**knobs)), FACTS)
    assert [(site.layer, site.heads, site.head_dim, site.rows) for site in sites] == [(0, 2, 4, N), (1, 2, 4, N)]
    assert [site.key.name for site in sites] == ["n0_kp", "n1_kp"]
    assert sites[0].scale == (1.0 if knobs["scale"] == "none" else 0.5)


@pytest.mark.parametrize("knobs", VARIANTS)
@pytest.mark.parametrize("optimize", [False, True], ids=["as-is", "optimized"])
def test_scaling_queries_keeps_the_numbers(knobs, optimize):
    model = two_layers(**knobs)
    graph = graph_of(model)
    report = run_pass(scale, graph)
    assert report.changed == (["layer0", "layer1"] if knobs["scale"] == "late" else [])
    assert all(site.late is None for site in find_attention(graph, FACTS))
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(run(changed, optimize=optimize)[0], run(model, optimize=optimize)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attenuate", ["min", "mask", "mean", "scale:0.5"])
def test_injection_changes_the_chosen_layer_and_touches_nothing_else(attenuate):
    model = two_layers()
    graph = graph_of(model)
    run_pass(scale, graph)
    before = {node.name or node.outputs[0].name: node.op for node in graph.nodes}
    assert run_pass(inject(layers="1", attenuate=attenuate), graph).changed == ["layer1"]
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
    with pytest.raises(SurgeryError, match="layer0: logits are scaled after their MatMul: scale the queries first"):
        run_pass(inject(attenuate="min"), graph_of(two_layers()))


@pytest.mark.parametrize("names", [EVERYTHING, CLS_OUTPUTS], ids=["all tokens", "CLS only"])
def test_all_passes_leave_checked_graphs_and_typed_tensors_and_a_second_run_changes_nothing(names):
    model = two_layers()
    graph = graph_of(model)
    for operate in passes(names):
        report = run_pass(operate, graph)
        assert bool(report.changed) != (operate.func is split_bias_gelu), report.name
        onnx.checker.check_model(exported(graph), full_check=True)
        for node in filter(is_ours, graph.nodes):
            for tensor in node.outputs:
                assert tensor.dtype is not None
                assert tensor.shape is not None
        ours = [node.name for node in graph.nodes if is_ours(node)]
        assert run_pass(operate, graph).changed == []
        assert [node.name for node in graph.nodes if is_ours(node)] == ours
    # What we wrote down of dtypes and shapes is what ONNX infers.
    final = exported(graph)
    inferred = onnx.shape_inference.infer_shapes(final, strict_mode=True, data_prop=True)
    assert [output.name for output in inferred.graph.output] == list(names)


@pytest.mark.parametrize("source", ["query", "key"])
@pytest.mark.parametrize("knobs", VARIANTS)
@pytest.mark.parametrize("optimize", [False, True], ids=["as-is", "optimized"])
def test_cls_only_gives_the_first_row_of_all_tokens(knobs, source, optimize):
    model = two_layers(**knobs)
    graph = graph_of(model)
    operate = partial(cls_only, facts=FACTS, keep_query=source == "query")
    assert run_pass(operate, graph).changed == ["layer1"]
    assert run_pass(operate, graph).changed == []
    changed = exported(graph)
    onnx.checker.check_model(changed, full_check=True)
    (got,), (want,) = run(changed, optimize=optimize), run(model, optimize=optimize)
    assert got.shape == (3, 1, C)
    np.testing.assert_allclose(got, want[:, :1], rtol=0, atol=1e-6)
    first, last = find_attention(graph, FACTS)
    assert (first.rows, last.rows) == (N, 1)
    # The norm needs the query of all patches, the logits only that of the CLS token.
    assert tuple(last.query.shape) == ("batch", N if source == "query" else 1, C)


def test_cls_only_computes_no_other_row_of_the_last_block():
    graph = graph_of(two_layers())
    run_pass(cut, graph)
    after = False
    for node in graph.nodes:  # in the order of execution
        (tensor,) = node.outputs
        after = after or node.name.endswith("cls_row")
        if after and not any(part in tensor.name for part in ("_k", "_v")):
            assert 1 in tensor.shape[1:3], f"{node.op} {tensor.name} {tensor.shape}"
    assert after


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
        run_pass(cut, graph_of(make_model(body, "out2")))


MLP = """
mlp_m = MatMul(out1, w0)
mlp_b = Add(BIASED)
out2 = Gelu(mlp_b)"""


@pytest.mark.parametrize("biased", ["mlp_m, b0", "b0, mlp_m"])
def test_the_bias_before_a_gelu_stays_out_of_onnx_runtimes_fusion(biased, tmp_path):
    body = attention_text(0, "tokens_in") + "\n" + attention_text(1, "out0") + MLP.replace("BIASED", biased)
    model = make_model(body, "out2")
    graph = graph_of(model)
    assert len(run_pass(partial(split_bias_gelu), graph).changed) == 1
    assert run_pass(partial(split_bias_gelu), graph).changed == []
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
    assert run_pass(partial(split_bias_gelu), graph_of(make_model(body, "out2"))).changed == []


@pytest.mark.parametrize("attenuate", [None, "min", "mask", "mean", "scale:0.5"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cls_row", [False, True], ids=["all rows", "CLS row"])
def test_unfused_attention_gives_the_same_bits_and_needs_the_logits_of_all_heads(attenuate, precision, cls_row):
    graph = graph_of(two_layers())
    before = [scale, *([halve] if precision == "fp16" else []), *([cut] if cls_row else [])]
    for operate in before + ([] if attenuate is None else [inject(attenuate=attenuate)]):
        run_pass(operate, graph)
    fused = exported(graph)
    assert run_pass(unfuse, graph).changed == ["layer0", "layer1"]
    assert run_pass(unfuse, graph).changed == []
    unfused = exported(graph)
    onnx.checker.check_model(unfused, full_check=True)
    for site in find_attention(graph, FACTS):
        assert site.barrier is not None
        assert [tuple(tensor.shape) for tensor in site.barrier.inputs] == [
            ("batch", 2, site.rows, N),
            ("batch", 1, site.rows, 1),
        ]
    for optimize in (False, True):
        np.testing.assert_array_equal(run(unfused, optimize=optimize)[0], run(fused, optimize=optimize)[0])


def test_attention_is_unfused_after_the_method():
    graph = graph_of(two_layers())
    run_pass(scale, graph)
    run_pass(unfuse, graph)
    with pytest.raises(SurgeryError, match="left 0 of 2 attention sites"):
        run_pass(inject(attenuate="scale:0.5"), graph)


def test_half_precision_stays_close_and_casts_at_every_border():
    model = two_layers()
    graph = graph_of(model)
    run_pass(scale, graph)
    assert run_pass(halve, graph).changed
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
    run_pass(partial(half_precision, precision=precision), graph)
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
        scale(graph_of(model))


def test_a_graph_without_any_attention_is_refused():
    model = make_model("out0 = Identity(tokens_in)", "out0")
    with pytest.raises(SurgeryError, match="found 0; the graph has no other MatMul of two variables, and 0 Softmax"):
        inject()(graph_of(model))


def test_selecting_outputs_refuses_another_output_than_all_tokens():
    graph = graph_of(two_layers())
    with pytest.raises(
        SurgeryError, match=r"looked for one float32 output \(B, 10, 8\), found tokens float32 \['batch', 5, 8\]"
    ):
        select_outputs(graph, dataclasses.replace(FACTS, grid=(3, 3)), Outputs(("embedding",)))


def test_uint8_input_refuses_an_input_that_is_no_picture():
    graph = graph_of(two_layers())
    with pytest.raises(SurgeryError, match=r"looked for one float32 input \(B, 3, 28, 28\), found tokens_in float32"):
        uint8()(graph)


def test_the_runner_names_what_a_pass_broke():
    def drop_a_site(graph: gs.Graph) -> list[str]:
        next(node for node in graph.nodes if node.op == "Softmax").op = "Sigmoid"
        return []

    def rename_the_output(graph: gs.Graph) -> list[str]:
        graph.outputs[0].name = "other"
        return []

    with pytest.raises(SurgeryError, match="left 1 of 2 attention sites"):
        run_pass(partial(drop_a_site), graph_of(two_layers()))
    with pytest.raises(SurgeryError, match="changed the interface"):
        run_pass(partial(rename_the_output), graph_of(two_layers()))


def test_the_street_names_the_pass_that_refused(tmp_path):
    onnx.save(make_model("out0 = Identity(tokens_in)", "out0"), tmp_path / "traced.onnx")
    with pytest.raises(SurgeryError, match="surgery pass scale_queries: looked for 2"):
        runner.run(tmp_path / "traced.onnx", passes(EVERYTHING))


def test_surgery_prints_nothing(capfd):
    graph = graph_of(two_layers())
    for operate in passes(CLS_OUTPUTS):
        run_pass(operate, graph)
    exported(graph)
    assert capfd.readouterr() == ("", "")
