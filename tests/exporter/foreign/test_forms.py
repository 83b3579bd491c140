"""Forms of files that people have, built after their real graphs: what is in them, ITAE in them, and what is run."""

import json
import warnings
from collections import Counter

import foreign_models
import meta_vit
import numpy as np
import onnx
import pyarrow.parquet
import pytest
import torch
import transformers
from foreign_models import images, put_in, results
from meta_vit import Depth, MetaVit, seeded
from PIL import Image

from exporter.__main__ import main
from runtime.__main__ import main as run_main
from runtime.contract.manifest import read_manifest

ITAE = ("--source", "key", "--threshold", "ratio:1.2")


def checked(source, out, *options):
    assert put_in(source, out, *ITAE, *options) == 0
    manifest = read_manifest(out)
    assert any(0 < one.flagged < one.patches and one.effect > 1e-3 for one in manifest.parity.checks)
    return manifest


@pytest.mark.parametrize(("fused", "how"), [(True, "ts14"), (True, "dynamo20"), (False, "ts11"), (False, "dynamo18")])
def test_metas_own_code_as_lightly_train_exports_it(fused, how, tmp_path):
    meta_vit.export(seeded(MetaVit(fused=fused)), tmp_path / "theirs.onnx", how)
    manifest = checked(tmp_path / "theirs.onnx", tmp_path / "x.onnx")
    assert (manifest.model.depth, manifest.model.heads, manifest.foreign.prefix) == (3, 4, 1)
    assert run_main(["verify", str(tmp_path / "x.onnx")]) == 0


def test_a_backbone_with_a_convolutional_decoder_of_opset_14(tmp_path):
    """After a file found in public: anonymous weights, LayerNorm in parts, sizes computed, one output that is a map."""
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    meta_vit.export(seeded(Depth(MetaVit(fused=False))), source, "ts14")
    graph = onnx.load(source).graph
    count = Counter(node.op_type for node in graph.node)
    assert count["Constant"] > 50
    assert count["Shape"] > 5
    assert count["LayerNormalization"] == 0
    assert any(one.name.startswith("onnx::MatMul_") for one in graph.initializer)
    manifest = checked(source, out)
    assert [(one.name, one.shape) for one in manifest.outputs] == [("out", ("batch", 1, 56, 70))]
    assert run_main(["verify", str(out)]) == 0
    tokens = [node.output[0] for node in graph.node if node.op_type == "Add" and node.name.endswith("norm/Add_1")][-1]
    assert checked(source, out, "--embedding", tokens).output_names() == ("embedding",)
    assert run_main(["verify", str(out)]) == 0


def test_masks_as_a_second_input_become_a_constant(tmp_path):
    source = tmp_path / "theirs.onnx"
    meta_vit.export(seeded(MetaVit(fused=True)), source, "ts17", torch.zeros(2, 20, dtype=torch.bool))
    assert put_in(source, tmp_path / "x.onnx", *ITAE) == 0
    assert not (tmp_path / "x.onnx.json").exists()
    assert checked(source, tmp_path / "x.onnx", "--fix-input", "masks=false").output_names() == ("embedding",)


def test_patches_that_are_not_square(tmp_path):
    meta_vit.export(seeded(MetaVit(fused=True, patch=(14, 7))), tmp_path / "theirs.onnx", "ts17")
    manifest = checked(tmp_path / "theirs.onnx", tmp_path / "x.onnx")
    assert manifest.foreign.grid == (4, 10)
    assert manifest.patches == 40
    assert run_main(["verify", str(tmp_path / "x.onnx")]) == 0


def test_sequences_of_queries_keys_and_values(tmp_path):
    meta_vit.export(seeded(MetaVit(fused=True)), tmp_path / "split.onnx", "ts17")
    assert meta_vit.with_sequences(tmp_path / "split.onnx", tmp_path / "theirs.onnx") == 3
    checked(tmp_path / "theirs.onnx", tmp_path / "x.onnx")
    assert run_main(["verify", str(tmp_path / "x.onnx")]) == 0
    pytest.importorskip("tensorrt_rtx")  # which takes no sequences: they become Slices
    assert put_in(tmp_path / "theirs.onnx", tmp_path / "x.engine", *ITAE, "--backend", "tensorrt-rtx") == 0


def export_in_training(path, *, training: bool) -> None:
    """A BEiT by dynamo as its training had it, with dropout and paths that are dropped; or as it is used."""
    more = {"intermediate_size": 64, "use_relative_position_bias": True, "drop_path_rate": 0.1}
    config = transformers.BeitConfig(**{**foreign_models.SIZES, **more, "hidden_dropout_prob": 0.1})
    torch.manual_seed(0)
    model = transformers.BeitModel._from_config(config, attn_implementation="eager").train(training)
    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            foreign_models._Named(model).train(training), (torch.zeros(2, 3, 64, 64),), path, dynamo=True,
            opset_version=20, dynamic_shapes=(batch,), external_data=False, verbose=False,
            input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
        )  # fmt: skip


def test_what_training_left_is_taken_out(tmp_path, capsys):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    export_in_training(source, training=True)
    count = Counter(node.op_type for node in onnx.load(source).graph.node)
    assert count["RandomUniformLike"] > 0
    assert count["Dropout"] > 0
    never = ("--threshold", "absolute:1e30", "--side", "high")
    assert main(["--onnx", str(source), "--out", str(out), *never]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{count['Dropout']} Dropout were on, and are turned off; {count['RandomUniformLike']} paths" in said
    export_in_training(tmp_path / "used.onnx", training=False)
    for want, got in zip(results(tmp_path / "used.onnx", images(3)), results(out, images(3)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert main(["inspect", str(source)]) == 0
    assert "training" in capsys.readouterr().out


def test_random_numbers_of_another_use_are_refused(exported, tmp_path, capsys):
    model = onnx.load(exported("dinov2", "sdpa", "ts14"))
    last = model.graph.node[-1]
    noise = onnx.helper.make_node("RandomNormalLike", [last.input[0]], ["noise"], "noise")
    loud = onnx.helper.make_node("Add", [last.input[0], "noise"], ["loud"], "loud")
    last.input[0] = "loud"
    nodes = [*model.graph.node[:-1], noise, loud, last]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "theirs.onnx")
    assert put_in(tmp_path / "theirs.onnx", tmp_path / "x.onnx") == 2
    assert "draws random numbers" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [1, 2, None], ids=["one", "two", "dynamic"])
def test_pictures_are_embedded_and_clustered_whatever_the_batch(batch, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    source = tmp_path / "theirs.onnx"
    if batch is None:
        meta_vit.export(seeded(MetaVit(fused=False)), source, "ts17")
    else:
        foreign_models.export_fixed_batch(source, batch=batch)
    checked(source, tmp_path / "x.onnx")
    store = tmp_path / "vectors"
    assert run_main(["embed", str(tmp_path / "x.onnx"), str(folder), "--out", str(store)]) == 0
    assert pyarrow.parquet.read_table(store).num_rows == 5
    clusters = tmp_path / "clusters"
    assert run_main(["cluster", str(store), "--k", "2", "--out", str(clusters)]) == 0
    assert json.loads((tmp_path / "x.onnx.json").read_text())["inputs"][0]["shape"][0] == (batch or "batch")
