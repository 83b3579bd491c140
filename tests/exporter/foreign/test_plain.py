"""`--no-itae`: the plain file of a foreign model, published like any other, to compare with."""

import json

import numpy as np
import onnx
import pyarrow.parquet
import pytest
from foreign_models import images, put_in, results
from PIL import Image

from exporter.__main__ import main
from exporter.foreign import delivery
from runtime.__main__ import main as run_main
from runtime.contract.further_outputs import how_to_add
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest

FORM = ("registers", "sdpa", "dynamo20")


@pytest.fixture(scope="module")
def pair(exported, tmp_path_factory):
    """The plain file and the one with ITAE of the same model."""
    folder = tmp_path_factory.mktemp("pair")
    for name, options in (("plain.onnx", ("--no-itae",)), ("itae.onnx", ("--threshold", "ratio:1.05"))):
        assert put_in(exported(*FORM), folder / name, *options) == 0
    return folder


def test_a_plain_file_is_the_untouched_graph_with_a_manifest(pair, exported):
    source, plain = exported(*FORM), pair / "plain.onnx"
    pictures = images(3)
    for want, got in zip(results(source, pictures), results(plain, pictures), strict=True):
        np.testing.assert_array_equal(want, got)
    assert list(onnx.load(plain).graph.node) == list(onnx.load(source).graph.node)
    manifest = read_manifest(plain)
    assert manifest.options.method.name == "none"
    golden = read_golden(plain, manifest)
    assert golden.flags.shape == (4, 0, 16)
    np.testing.assert_allclose(golden.embedding, results(source, golden.input)[1], atol=1e-6)
    (check,) = manifest.parity.checks
    assert (check.threshold, check.flagged, check.max_abs) == (None, 0, 0.0)
    assert run_main(["verify", str(plain)]) == 0


def test_plain_and_itae_of_a_foreign_model_are_evaluated_side_by_side(pair, tmp_path, capsys):
    random = np.random.default_rng(1)
    for label in ("dark", "light"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(6):
            noise = random.integers(0, 120, (70, 80, 3)) + (0 if label == "dark" else 130)
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    models = [str(pair / name) for name in ("plain.onnx", "itae.onnx")]
    assert run_main(["evaluate", *models, "--data", f"folder:{tmp_path}/photos", "--json", "--seeds", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    plain, itae = found["models"]
    assert ", plain, fp32" in plain["description"]
    assert "ITAE min" in itae["description"]
    assert plain["weights_sha256"] == itae["weights_sha256"]  # one and the same model, so that the difference is ITAE's
    (data,) = found["datasets"]
    assert data["evaluated"] == 12
    assert {one["baseline"] for one in data["comparisons"]} == {"plain.onnx"}


def test_a_plain_file_embeds_as_the_old_file_does(pair, tmp_path):
    Image.fromarray(np.full((70, 90, 3), 90, np.uint8)).save(tmp_path / "a.png")
    assert run_main(["embed", str(pair / "plain.onnx"), str(tmp_path / "a.png"), "--out", str(tmp_path / "e")]) == 0
    (vector,) = pyarrow.parquet.read_table(next((tmp_path / "e").glob("*.parquet")))["embedding"].to_pylist()
    assert len(vector) == 32


def test_a_plain_file_that_gives_something_else_is_refused(exported, tmp_path, monkeypatch, capsys):
    save = delivery.save

    def wrongly(model, *others, **more):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        node = next(one for one in changed.graph.node if one.op_type == "Softmax")
        node.op_type = "HardSigmoid"
        del node.attribute[:]
        return save(changed, *others, **more)

    monkeypatch.setattr(delivery, "save", wrongly)
    assert put_in(exported(*FORM), tmp_path / "x.onnx", "--no-itae") == 1
    assert "the new file gives another" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_options_of_itae_contradict_a_plain_file(exported, tmp_path, capsys):
    assert main(["--onnx", str(exported(*FORM)), "--out", str(tmp_path / "x.onnx"), "--no-itae", "--layers", "1"]) == 2
    assert "--no-itae contradicts --layers: drop either" in capsys.readouterr().err


def test_a_file_with_itae_does_not_become_plain(pair, tmp_path, capsys):
    assert put_in(pair / "itae.onnx", tmp_path / "x.onnx", "--no-itae") == 2
    assert "ITAE is in it already" in " ".join(capsys.readouterr().err.split())
    assert main(["inspect", str(pair / "itae.onnx")]) == 1
    assert "ITAE is in it already" in " ".join(capsys.readouterr().out.split())


def test_the_command_that_adds_an_output_is_named(exported, tmp_path, capsys):
    source, out = exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx"
    model = onnx.load(source)
    tokens = [one for one in model.graph.output if one.name == "last_hidden_state"]
    del model.graph.output[:]
    model.graph.output.extend(tokens)
    onnx.save(model, tmp_path / "theirs.onnx")
    assert main(["--onnx", str(tmp_path / "theirs.onnx"), "--out", str(out)]) == 0
    said = "`python -m exporter --onnx theirs.onnx --embedding last_hidden_state` adds an embedding"
    assert said in " ".join(capsys.readouterr().err.split())
    assert run_main(["embed", str(out), str(tmp_path), "--out", str(tmp_path / "e")]) == 2
    assert said in capsys.readouterr().err
    manifest = read_manifest(out)
    flags = ["artifact_mask", "artifact_norm"]
    assert how_to_add(manifest, flags) == (
        "`python -m exporter --onnx theirs.onnx --add-outputs artifact_mask,artifact_norm` adds it"
    )
    by_name = manifest.model_copy(update={"foreign": manifest.foreign.model_copy(update={"file": "timm:vit"})})
    assert how_to_add(by_name, flags) == (
        "`python -m exporter --model timm:vit --outputs embedding,artifact_mask,artifact_norm` adds it"
    )


def test_the_papers_form_is_a_preset_of_a_foreign_file_too(exported, tmp_path, capsys):
    words = ["--onnx", str(exported(*FORM)), "--out", str(tmp_path / "x.onnx"), "--preset", "paper"]
    assert main(words) == 2
    assert "--preset paper needs --threshold" in capsys.readouterr().err
    assert main([*words, "--threshold", "absolute:3", "--quiet"]) == 0
    method = read_manifest(tmp_path / "x.onnx").options.method
    assert (method.source, method.side, method.threshold, method.attenuate) == ("key", "low", "absolute:3", "min")
