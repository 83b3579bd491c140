"""The graphs of torch's exporter, and the same graphs after surgery, on real traces."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import pipeline, trace
from exporter.methods.itae.options import ItaeConfig
from exporter.models import backbone, position, weights
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec
from exporter.surgery import materialize, runner
from runtime.contract.errors import WeightsError

TINY = Architecture("tiny", width=32, heads=2, depth=2, registers=4)
SPEC = ExportSpec("unused.onnx", size=TINY, image_size=(28, 42), weights="random:5")
ATTENTION = {"MatMul", "Mul", "Softmax"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Path:
    return pipeline.load_and_trace(SPEC, tmp_path_factory.mktemp("traced"))[1]


def operate(traced: Path, spec: ExportSpec):
    return runner.run(traced, pipeline.passes(spec))


def names_and_types(model: onnx.ModelProto) -> dict[str, str]:
    return {node.name: node.op_type for node in model.graph.node}


def test_surgery_touches_only_attention(traced):
    before = names_and_types(onnx.load(traced, load_external_data=False))
    plain, _ = operate(traced, dataclasses.replace(SPEC, itae=None))
    operated, reports = operate(traced, SPEC)
    gone = {name: before[name] for name in before.keys() - names_and_types(operated).keys()}
    assert set(gone.values()) == {"Mul"}  # the scales after the first MatMul
    assert len(gone) == TINY.depth
    new = names_and_types(operated).keys() - names_and_types(plain).keys()
    assert new
    assert all(name.startswith("itae/layer1/") for name in new)  # `last`
    assert {report.name: len(report.changed) for report in reports} == {
        "scale_queries": 2, "cls_only": 1, "inject_itae": 1, "select_outputs": 1, "split_bias_gelu": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"outputs": ("embedding",)}, True),
        ({"outputs": ("artifact_mask", "embedding")}, True),
        ({"outputs": ("embedding", "patch_tokens")}, False),
        ({"outputs": ("embedding",), "pooling": "cls+mean"}, False),
        ({"outputs": ("embedding",), "cls_only": False}, False),
    ],
    ids=["embedding", "and flags", "and patch tokens", "pooled", "switched off"],
)
def test_the_last_block_is_cut_only_where_no_other_token_is_read(options, cut, traced):
    operated, reports = operate(traced, dataclasses.replace(SPEC, **options))
    assert ("cls_only" in [report.name for report in reports]) == cut
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in operated.graph.value_info
    }
    softmax = [node.output[0] for node in operated.graph.node if node.op_type == "Softmax"]
    assert [shapes[name][2] for name in softmax] == [SPEC.facts.tokens, 1 if cut else SPEC.facts.tokens]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_path_or_stack_trace_of_the_exporting_machine_stays(precision, traced, tmp_path):
    spec = dataclasses.replace(SPEC, precision=precision)
    operated, _ = operate(traced, spec)
    materialize.materialize(operated, traced.parent, tmp_path / "m.onnx", "m.onnx.data")
    content = (tmp_path / "m.onnx").read_bytes()
    for trail in (
        str(tmp_path),
        str(Path(__file__).parents[3]),
        str(Path.home()),
        ".py",
        "Traceback",
        "site-packages",
    ):
        assert trail.encode() not in content
    assert not list(tmp_path.glob("*.data"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_no_node_computes_from_constants_alone(precision, traced, tmp_path):
    operated, _ = operate(traced, dataclasses.replace(SPEC, precision=precision))
    materialize.materialize(operated, traced.parent, tmp_path / "m.onnx", "m.onnx.data")
    graph = onnx.load(tmp_path / "m.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    assert [node.name for node in graph.node if constants.issuperset(node.input)] == []
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert {name for node in graph.node for name in node.output[:1]} <= read  # and none that nothing reads
    assert constants <= read


def test_the_same_export_gives_the_same_bytes(traced, tmp_path):
    files = []
    for number in range(2):
        operated, _ = operate(traced, SPEC)
        materialize.materialize(operated, traced.parent, tmp_path / f"{number}.onnx", "x.data")
        files.append((tmp_path / f"{number}.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_above_the_limit_go_to_a_file_of_their_own(precision, traced, tmp_path, monkeypatch):
    operated, _ = operate(traced, dataclasses.replace(SPEC, precision=precision))
    copy = onnx.ModelProto.FromString(operated.SerializeToString())
    materialize.materialize(operated, traced.parent, tmp_path / "inline.onnx", "x.data")
    monkeypatch.setattr(materialize, "INLINE_LIMIT", 1000)
    data = materialize.materialize(copy, traced.parent, tmp_path / "split.onnx", "split.onnx.data")
    assert data == tmp_path / "split.onnx.data"
    assert (tmp_path / "split.onnx").stat().st_size < 100_000
    inline, split = (onnx.load(tmp_path / f"{name}.onnx") for name in ("inline", "split"))
    onnx.checker.check_model(str(tmp_path / "split.onnx"), full_check=True)
    for one, other in zip(inline.graph.initializer, split.graph.initializer, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))


def test_a_weight_beyond_float16_is_named(tmp_path):
    tensors = weights.random_tensors(TINY, 5)
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = 7e4
    model = weights.build_model(TINY, backbone.translate(tensors, TINY, "test").parameters)
    position.bake_position_embedding(model, SPEC.facts.grid, TINY, SPEC.pos_embed)
    path = trace.to_onnx(model, SPEC.facts, tmp_path)
    operated, _ = operate(path, dataclasses.replace(SPEC, precision="fp16", itae=ItaeConfig()))
    named = r"the weight model\.encoder\.layer\.1\.mlp\.fc1\.weight holds 7e\+04, more than float16 can: use --prec"
    with pytest.raises(WeightsError, match=named):
        materialize.materialize(operated, tmp_path, tmp_path / "m.onnx", "m.onnx.data")
