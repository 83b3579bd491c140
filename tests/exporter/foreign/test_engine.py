"""Engines from somebody else's graph, by TensorRT-RTX, which builds without a GPU; and half precision of it."""

import foreign_models
import numpy as np
import onnx
import pytest
from foreign_models import images, put_in, results

from exporter.__main__ import main as command
from runtime.__main__ import main as run_main
from runtime.contract.comparison import LIMITS
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest, verified_manifest

pytest.importorskip("tensorrt_rtx")
ITAE = ("--source", "key", "--threshold", "ratio:1.2")


def engine(source, out, *options):
    assert put_in(source, out, "--backend", "tensorrt-rtx", *ITAE, *options) == 0
    return verified_manifest(out)


def test_an_engine_is_published_with_its_manifest_and_golden_sample(exported, tmp_path, capsys):
    manifest = engine(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.engine", "--batch", "1,2,4")
    assert {one.name for one in tmp_path.iterdir()} == {"x.engine", "x.engine.json", "x.engine.parity.npz"}
    assert manifest.builder.name == manifest.options.backend == "tensorrt-rtx"
    assert (manifest.options.precision, manifest.options.batch) == ("fp32", (1, 2, 4))
    assert [one.name for one in manifest.outputs] == ["embedding", "last_hidden_state", "pooler_output"]
    assert all(one.in_file is None for one in manifest.outputs)
    assert manifest.not_replayed is not None
    assert manifest.fusion is not None
    assert (manifest.fusion.sites, manifest.fusion.expected) == (3, 0)
    golden = read_golden(tmp_path / "x.engine", manifest)
    np.testing.assert_array_equal(golden.embedding, golden.own["pooler_output"])


@pytest.mark.parametrize(("how", "precision"), [("ts14", "fp16"), ("dynamo23", "bf16")])
def test_half_precision_lets_attention_be_one_kernel(how, precision, exported, tmp_path):
    manifest = engine(exported("wide", "sdpa", how), tmp_path / "x.plan", "--precision", precision)
    assert manifest.options.precision == precision
    assert manifest.parity.limits == LIMITS[precision]
    assert manifest.fusion is not None
    assert (manifest.fusion.sites, manifest.fusion.expected) == (3, 3)
    assert manifest.fusion.fused >= 2  # the layer that ITAE works in is one kernel or not


def test_bfloat16(exported, tmp_path):
    manifest = engine(exported("dinov2", "eager", "ts17"), tmp_path / "x.engine", "--precision", "bf16")
    assert manifest.options.precision == "bf16"


def test_an_operator_that_is_refused_in_float32_is_written_out_in_all_layers(exported, tmp_path):
    manifest = engine(exported("vit", "sdpa", "dynamo23"), tmp_path / "x.engine")
    assert manifest.fusion is not None
    assert all(len(kernels) > 1 for kernels in manifest.fusion.kernels)


def test_open_sizes_become_one(tmp_path, capsys):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.engine"
    foreign_models.export_open_size(source)
    assert put_in(source, out, "--backend", "tensorrt-rtx") == 2
    assert "say --image-size" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["theirs.onnx"]
    assert engine(source, out, "--image-size", "48x64").options.image_size == (48, 64)


def test_a_fixed_batch_stays_the_engines(tmp_path):
    foreign_models.export_fixed_batch(tmp_path / "theirs.onnx", batch=2)
    manifest = engine(tmp_path / "theirs.onnx", tmp_path / "x.engine")
    assert manifest.options.batch == (2, 2, 2)
    assert manifest.input.shape[0] == 2


def test_a_model_with_heads_alone_is_an_engine_too(tmp_path, capsys):
    foreign_models.export_with_heads(tmp_path / "theirs.onnx")
    assert command(["--onnx", str(tmp_path / "theirs.onnx"), "--out", str(tmp_path / "x.engine"), "--backend",
                    "tensorrt-rtx", "--precision", "fp16", *ITAE]) == 0  # fmt: skip
    shown = capsys.readouterr()
    assert "the engine has no output label" in shown.err
    assert "attention fused:" in shown.out
    manifest = read_manifest(tmp_path / "x.engine")
    assert manifest.output_names() == ("logits", "depth", "own/patch_tokens")


@pytest.mark.parametrize(
    "form", [("dinov2", "sdpa", "ts14"), ("beit", "eager", "ts17"), ("dinov3", "eager", "ts17")], ids="-".join
)
def test_half_precision_of_a_file_keeps_its_interface_and_its_results(form, exported, tmp_path):
    source, out = exported(*form), tmp_path / "x.onnx"
    assert put_in(source, out, "--precision", "fp16", *ITAE) == 0
    before, after = onnx.load(source).graph, onnx.load(out).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    kinds = {one.data_type for one in after.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert out.stat().st_size < source.stat().st_size
    assert run_main(["verify", str(out)]) == 0
    pictures = images(3)
    exact = tmp_path / "exact.onnx"
    assert put_in(source, exact, *ITAE) == 0
    for want, got in zip(results(exact, pictures), results(out, pictures), strict=True):
        off = np.abs(want - got).max() / np.abs(want).max()
        assert 1e-6 < off < 2e-2


def test_the_scale_goes_to_the_queries_where_it_is_a_constant(exported, tmp_path, capsys):
    source, out = exported("dinov2", "eager", "ts14"), tmp_path / "x.engine"
    assert command(["--onnx", str(source), "--out", str(out), "--backend", "tensorrt-rtx", *ITAE]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "to the queries in 3 of the 3 layers" in said
    assert "all tokens of the last layer are computed: the output 'last_hidden_state' has all tokens" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "1,2,4"], "--batch is for engines"),
        (["--backend", "tensorrt-rtx"], "--backend tensorrt-rtx is for engines"),
        (["--no-replay"], "--no-replay is for engines"),
        (["--faster", "--out", "x.engine"], "--faster is for ONNX files"),
        (["--precision", "bf16"], "--precision bf16 is for engines"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else None,
)
def test_what_is_for_engines_is_refused_for_a_file(options, said, exported, tmp_path, capsys):
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx", *options) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_half_precision_stays_as_it_is(exported, tmp_path, capsys):
    source = exported("vit", "eager", "ts17-half")
    for precision, said in (("fp16", "is in half precision already"), ("fp32", "leave it out to keep that")):
        assert put_in(source, tmp_path / "x.onnx", "--precision", precision) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_half_precision_is_refused(exported, tmp_path, monkeypatch, capsys):
    from exporter.foreign import delivery

    finish = delivery.finish

    def wrongly(model, precision):
        finish(model, precision)
        for one in model.graph.initializer:
            if one.data_type == onnx.TensorProto.FLOAT16 and len(one.dims) == 2:
                one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) * np.float16(1.2), one.name))

    monkeypatch.setattr(delivery, "finish", wrongly)
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx", "--precision", "fp16") == 1
    assert "try bf16 or fp32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
