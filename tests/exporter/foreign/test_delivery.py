"""ITAE put into real exports: what stays, what changes, and against what it is held."""

import dataclasses
import json
import shutil
from pathlib import Path

import foreign_models
import numpy as np
import onnx
import pyarrow.parquet
import pytest
import torch
from foreign_models import images, put_in, results, session
from PIL import Image

from exporter.__main__ import main
from exporter.foreign import replica
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from runtime.__main__ import main as run_main
from runtime.contract.golden import golden_bytes, read_golden
from runtime.contract.manifest import manifest_path, parity_path, read_manifest, record_file

ATOL = 1e-4
FORMS = [
    ("dinov2", "sdpa", "ts14"),
    ("registers", "sdpa", "dynamo20"),
    ("dinov3", "eager", "ts17"),
    ("deit", "eager", "ts11"),
    ("beit", "eager", "ts17"),
    ("clip", "sdpa", "dynamo18"),
    ("siglip", "eager", "ts17"),
    ("uneven", "eager", "ts17"),
]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_real_export_with_itae_is_proven_and_keeps_what_it_was(form, exported, tmp_path, capsys):
    source, out = exported(*form), tmp_path / "x.onnx"
    assert put_in(source, out) == 0
    before, after = onnx.load(source).graph, onnx.load(out).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    assert len(after.node) > len(before.node)
    changed = [old.output[0] for old in before.node if old not in after.node]
    assert len(changed) == 1  # the softmax of the last layer
    manifest = json.loads((tmp_path / "x.onnx.json").read_text())
    assert manifest["foreign"]["file"] == source.name
    assert manifest["options"]["pos_embed"] is None
    assert manifest["options"]["method"]["layers"] == [2]
    assert manifest["outputs"][0]["in_file"] == "pooler_output"
    checks = manifest["parity"]["checks"]
    assert any(0 < one["flagged"] < one["patches"] and one["effect"] > 1e-3 for one in checks)
    assert all(one["max_abs"] < ATOL for one in checks)
    assert run_main(["verify", str(out)]) == 0


@pytest.mark.parametrize("how", ["ts14", "ts17"])
def test_weights_that_equal_others_lie_behind_identities(how, exported, tmp_path):
    """TorchScript stores equal weights once, and gives the others by Identity: fresh LayerNorms are all ones."""
    source, theirs, out = exported("dinov2", "eager", how), tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    model = onnx.load(source)
    names = {one.name for one in model.graph.initializer if len(one.dims) == 1}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = f"{name}/shared"
    for number, name in enumerate(sorted(names)):
        model.graph.node.insert(number, onnx.helper.make_node("Identity", [name], [f"{name}/shared"]))
    onnx.save(model, theirs)
    assert put_in(theirs, out, "--threshold", "ratio:1.2", "--source", "residual", "--layers", "all") == 0
    assert put_in(theirs, out, "--threshold", "ratio:1.2", "--precision", "fp16") == 0


SMALL = sorted((Path(__file__).parents[2] / "data" / "foreign").glob("*.onnx"))


@pytest.mark.parametrize("source", SMALL, ids=lambda path: path.stem)
def test_a_small_export_of_another_library_is_proven(source, tmp_path):
    out = tmp_path / "x.onnx"
    assert put_in(source, out, "--threshold", "ratio:1.2", "--source", "key", "--layers", "all") == 0
    found = json.loads((tmp_path / "x.onnx.json").read_text())
    checks = found["parity"]["checks"]
    assert any(0 < one["flagged"] < one["patches"] and one["effect"] > 1e-3 for one in checks)
    prefix = {"timm_mean": 0, "vit_pytorch_registers": 0, "vit_pytorch_cct": 0}.get(source.stem.split("-")[0], 1)
    assert found["foreign"]["prefix"] == (5 if "dynamo" in source.stem else prefix)
    assert run_main(["verify", str(out)]) == 0


def test_there_is_a_small_export_of_each_library():
    assert {path.stem.split("_")[0] for path in SMALL} == {"timm", "open", "vit"}


@pytest.mark.parametrize("threshold", ["mad:1", "ratio:1.2", "zscore:1"])
def test_height_and_width_stay_open(threshold, tmp_path):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    foreign_models.export_open_size(source)
    assert put_in(source, out, "--image-size", "48x64", "--threshold", threshold, "--attenuate", "mean") == 0
    found = json.loads((tmp_path / "x.onnx.json").read_text())
    sizes = {one["patches"] // one["samples"] for one in found["parity"]["checks"]}
    assert sizes == {12, 24}  # proven at two sizes
    assert session(out).get_inputs()[0].shape == ["batch", 3, "height", "width"]
    tall = np.random.default_rng(1).standard_normal((2, 3, 80, 48)).astype(np.float32)
    tall[:, :, :16, :16] *= 20
    assert np.abs(results(out, tall)[0] - results(source, tall)[0]).max() > 1e-3


def test_a_fixed_batch_stays_fixed(tmp_path):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    foreign_models.export_fixed_batch(source, batch=1)
    assert put_in(source, out) == 0
    assert session(out).get_inputs()[0].shape == [1, 3, 64, 64]
    assert run_main(["verify", str(out)]) == 0


def test_half_precision_stays_half(exported, tmp_path):
    source, out = exported("vit", "eager", "ts17-half"), tmp_path / "x.onnx"
    assert put_in(source, out, "--embedding", "pooler_output", "--source", "key", "--threshold", "ratio:1.2") == 0
    before, after = onnx.load(source).graph, onnx.load(out).graph
    assert list(after.input) == list(before.input)
    assert list(after.output)[:2] == list(before.output)


def test_another_input_stays_or_becomes_a_constant(tmp_path, capsys):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    foreign_models.export_with_factor(source)
    assert main(["--onnx", str(source), "--out", str(out)]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "takes factor too" in err
    assert "the file alone" in err
    assert [one.name for one in session(out).get_inputs()] == ["pixel_values", "factor"]
    assert not (tmp_path / "x.onnx.json").exists()
    assert put_in(source, out, "--fix-input", "factor=1") == 0
    assert [one.name for one in session(out).get_inputs()] == ["pixel_values"]
    assert run_main(["verify", str(out)]) == 0
    assert put_in(source, out) == 0  # without a manifest again: the older one must not stay
    assert sorted(one.name for one in tmp_path.iterdir()) == ["theirs.onnx", "x.onnx"]


@pytest.mark.parametrize(
    ("threshold", "attenuate", "options"),
    [
        ("ratio:1.3", "min", {"layers": "all"}),
        ("mad:1", "mask", {"source": "key", "side": "both"}),
        ("mad:1", "mean", {"source": "key", "side": "high"}),
        ("zscore:1", "scale:0.2", {"source": "query", "side": "low", "layers": "1,2", "detect_layer": 0}),
        ("absolute:4", "mean", {"source": "value", "side": "low"}),
        ("positions:0,5-7", "mean", {}),
        ("positions:0,5-7", "min", {}),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_the_graph_gives_what_eager_pytorch_gives(threshold, attenuate, options, exported, tmp_path):
    """Against the eager reference of our own exports, which shares nothing with the proof in numpy."""
    itae = ItaeConfig(threshold=threshold, attenuate=attenuate, **options)
    source, out = exported("dinov2", "eager", "ts14"), tmp_path / "x.onnx"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert put_in(source, out, f"--threshold={threshold}", f"--attenuate={attenuate}", *flags) == 0
    model = foreign_models.model_of("dinov2", "eager")
    pictures = images(7)
    want = reference.embed(model, torch.from_numpy(pictures), itae)
    model.set_attn_implementation("eager")
    assert want.is_mixed.any()
    got = results(out, pictures)[1]
    np.testing.assert_allclose(got, want.embedding.numpy(), rtol=0, atol=ATOL)
    assert np.abs(got - results(source, pictures)[1]).max() > 10 * ATOL


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("form", FORMS[:3], ids="-".join)
def test_plain_in_is_plain_out_bit_for_bit(form, optimize, exported, tmp_path):
    source, out = exported(*form), tmp_path / "x.onnx"
    assert put_in(source, out, "--threshold", "absolute:1e30", "--side", "high", "--layers", "all") == 0
    for want, got in zip(*(results(one, images(3), optimize=optimize) for one in (source, out)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_wrong_attenuation_would_be_refused(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replica.in_numpy, "attenuate", lambda logits, *_: logits)
    out = tmp_path / "x.onnx"
    assert put_in(exported("dinov2", "sdpa", "ts14"), out) == 1
    assert "disagrees with the untouched one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


SMALL_EFFECT = ["--source", "key", "--threshold", "ratio:1.3", "--attenuate", "scale:0.999"]
"""On a threshold that flags some patches, this moves outputs by less than 1e-4."""


def test_the_limit_follows_the_effect(exported, tmp_path, capsys):
    source, out = exported("dinov2", "eager", "ts14"), tmp_path / "x.onnx"
    assert main(["--onnx", str(source), "--out", str(out), *SMALL_EFFECT]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "was hardly checked" in err
    assert "the file, its golden sample and its manifest" in err
    checks = json.loads((tmp_path / "x.onnx.json").read_text())["parity"]["checks"]
    assert 2e-5 < max(one["effect"] for one in checks) < 1e-4
    assert [one["limits"]["max_abs"] for one in checks] == [1e-5] * len(checks)
    assert main(["--onnx", str(source), "--out", str(out), *SMALL_EFFECT[:4], "--attenuate", "scale:0.99"]) == 0
    assert "hardly checked" not in " ".join(capsys.readouterr().err.split())
    check = json.loads((tmp_path / "x.onnx.json").read_text())["parity"]["checks"][1]
    assert 1e-4 < check["effect"] < 1e-3
    assert check["limits"]["max_abs"] == pytest.approx(check["effect"] / 10)


@pytest.mark.parametrize("wrong", ["none", "too much"])
def test_a_wrong_attenuation_of_a_small_effect_is_refused(wrong, exported, tmp_path, monkeypatch, capsys):
    attenuate = replica.in_numpy.attenuate

    def wrongly(logits, *others):
        return logits + {"none": 0, "too much": 1.5}[wrong] * (attenuate(logits, *others) - logits)

    monkeypatch.setattr(replica.in_numpy, "attenuate", wrongly)
    assert put_in(exported("dinov2", "eager", "ts14"), tmp_path / "x.onnx", *SMALL_EFFECT) == 1
    assert "disagrees with the untouched one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_misread_scale_would_be_refused(exported, tmp_path, monkeypatch, capsys):
    attend = replica.in_numpy.attend
    monkeypatch.setattr(replica.in_numpy, "attend", lambda logits, value: attend(logits * 1.1, value))
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx") == 1
    assert "the form was misread" in capsys.readouterr().err


def test_pictures_are_embedded(exported, tmp_path):
    out, folder = tmp_path / "x.onnx", tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (80, 90, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
    assert put_in(exported("dinov2", "sdpa", "ts14"), out, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5") == 0
    assert run_main(["embed", str(out), str(folder), "--out", str(tmp_path / "vectors")]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "vectors")
    assert (table.num_rows, table.schema.field("embedding").type.list_size) == (3, 32)


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory):
    """A foreign model without an embedding, ITAE in it."""
    folder = tmp_path_factory.mktemp("heads")
    foreign_models.export_with_heads(folder / "theirs.onnx")
    assert put_in(folder / "theirs.onnx", folder / "x.onnx", "--source", "key", "--threshold", "ratio:1.2") == 0
    return folder


def test_outputs_that_are_no_embedding_are_verified_each_by_its_own_scale(with_heads, tmp_path, capsys):
    out = Path(shutil.copytree(with_heads, tmp_path / "copy")) / "x.onnx"
    manifest = read_manifest(out)
    assert [(one.name, one.shape, one.in_file) for one in manifest.outputs] == [
        ("logits", ("batch", 5), None),
        ("depth", ("batch", 1, 16, 16), None),
        ("own/patch_tokens", ("batch", 16, 4), "patch_tokens"),
    ]
    assert run_main(["verify", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "max relative" in shown
    assert "max abs" not in shown
    golden = read_golden(out, manifest)
    assert np.abs(golden.own["depth"]).max() < 0.05
    moved = golden.own["depth"].copy()
    moved[1, 0, 3, 3] += np.float32(5e-4 * np.abs(moved).max())  # far below what logits may be off by
    parity_path(out).write_bytes(golden_bytes(dataclasses.replace(golden, own={**golden.own, "depth": moved})))
    files = manifest.files.model_copy(update={"parity": record_file(parity_path(out))})
    manifest_path(out).write_bytes(manifest.model_copy(update={"files": files}).to_json())
    assert run_main(["verify", str(out)]) == 1
    assert "depth is off by" in capsys.readouterr().out


def test_a_model_without_an_embedding_embeds_nothing_and_says_what_adds_one(with_heads, tmp_path, capsys):
    Image.new("RGB", (80, 80)).save(tmp_path / "1.png")
    assert run_main(["embed", str(with_heads / "x.onnx"), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.strip()
    assert "`python -m exporter --onnx theirs.onnx --embedding NAME` adds an embedding" in err
    assert len(err.splitlines()) == 1


def test_a_model_with_heads_gets_an_embedding_beside_them(with_heads, tmp_path):
    source, out = with_heads / "theirs.onnx", tmp_path / "x.onnx"
    tokens = next(
        node.output[0] for node in reversed(onnx.load(source).graph.node) if node.op_type == "LayerNormalization"
    )
    assert put_in(source, out, "--embedding", tokens) == 0
    assert [one.name for one in session(out).get_outputs()] == [*foreign_models.HEADS, "embedding"]
    assert read_manifest(out).output_names() == ("embedding",)
    assert run_main(["verify", str(out)]) == 0


def test_tokens_become_an_embedding_where_they_are_named(exported, tmp_path):
    source = exported("dinov2", "sdpa", "ts14")
    pictures = images(5)
    for pooling in ("cls", "mean", "cls+mean"):
        out = tmp_path / f"{pooling}.onnx"
        assert put_in(source, out, "--embedding", "last_hidden_state", "--pooling", pooling) == 0
        tokens, _, embedding = results(out, pictures)
        parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(axis=1)}
        np.testing.assert_allclose(embedding, np.concatenate([parts[one] for one in pooling.split("+")], 1), atol=1e-5)
        assert [one.name for one in session(out).get_outputs()] == ["last_hidden_state", "pooler_output", "embedding"]
        assert run_main(["verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--embedding", "nothing"], "no node of the graph gives it"),
        (["--layers", "7"], "no layer 7"),
        (["--prefix-tokens", "17"], "--prefix-tokens K"),
        (["--image-size", "32"], "takes 64x64 alone"),
        (["--threshold", "positions:99"], "patches 0 to 15"),
        (["--attenuate", "none"], "changes nothing"),
        (["--resize-to", "32"], "does not cover"),
        (["--mean", "1,2"], "three numbers"),
        (["--preprocessor", "none.json"], "can't read"),
        (["--size", "vits14"], "unrecognized"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else None,
)
def test_what_can_not_be_is_refused_in_one_line_and_nothing_is_written(options, said, exported, tmp_path, capsys):
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx", *options) == 2
    err = capsys.readouterr().err
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused_and_nothing_is_written(exported, tmp_path, capsys):
    assert put_in(exported("swin", "eager", "ts17"), tmp_path / "x.onnx") == 2
    assert "windowed attention" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_itae_already_is_refused(exported, tmp_path, capsys):
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx") == 0
    assert put_in(tmp_path / "x.onnx", tmp_path / "y.onnx") == 2
    assert "ITAE is in it already" in capsys.readouterr().err


def test_the_preprocessors_file_says_how_pictures_are_brought_to_size(exported, tmp_path):
    told = tmp_path / "preprocessor_config.json"
    told.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 64, "width": 64}}))
    assert put_in(exported("vit", "sdpa", "ts17"), tmp_path / "x.onnx", "--preprocessor", str(told)) == 0
    how = json.loads((tmp_path / "x.onnx.json").read_text())["preprocessing"]
    assert (how["fit"], how["mean"], how["std"], how["resize_cover"]) == ("squash", [0.5] * 3, [0.25] * 3, None)


def test_external_data_goes_along(exported, tmp_path):
    source = tmp_path / "theirs.onnx"
    onnx.save(
        onnx.load(exported("dinov2", "sdpa", "ts14")),
        source,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    out = tmp_path / "out"
    out.mkdir()
    assert put_in(source, out / "x.onnx") == 0
    assert {one.name for one in out.iterdir()} == {"x.onnx", "x.onnx.data", "x.onnx.json", "x.onnx.parity.npz"}
    assert run_main(["verify", str(out / "x.onnx")]) == 0
    pictures = images(1)
    assert np.abs(results(out / "x.onnx", pictures)[0]).max() > 0
