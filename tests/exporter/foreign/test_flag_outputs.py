"""`--add-outputs`: the artifacts that a foreign file with ITAE shows are those of numpy, and of the golden sample."""

import foreign_models
import numpy as np
import onnx
import pytest
from foreign_models import put_in, results, session
from onnx import helper

from exporter.foreign import delivery
from runtime.__main__ import main as run_main
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest

BOTH = ("--add-outputs", "artifact_mask,artifact_norm")


@pytest.mark.parametrize(
    ("form", "options", "shape"),
    [
        (("dinov2", "sdpa", "ts14"), ("--threshold", "ratio:1.05"), (4, 1, 16)),
        (("deit", "eager", "ts11"), ("--threshold", "zscore:1", "--source", "key", "--layers", "all"), (4, 3, 16)),
        (("siglip", "eager", "ts17"), ("--threshold", "mad:1", "--side", "both", "--detect-layer", "0"), (4, 1, 16)),
        (("dinov2", "sdpa", "ts14"), ("--threshold", "absolute:0", "--side", "high"), (4, 1, 16)),
    ],
    ids=lambda value: value[0] if len(value) == 3 and isinstance(value[0], str) else None,
)
def test_the_outputs_are_numpys_flags_and_norms(form, options, shape, exported, tmp_path):
    source, out = exported(*form), tmp_path / "x.onnx"
    assert put_in(source, out, *BOTH, *options) == 0
    manifest = read_manifest(out)
    assert [(one.name, one.dtype) for one in manifest.outputs] == [
        ("embedding", "float32"), ("artifact_mask", "bool"), ("artifact_norm", "float32"),
    ]  # fmt: skip
    golden = read_golden(out, manifest)
    got = results(out, golden.input)
    names = [one.name for one in session(out).get_outputs()]
    assert names == [one.name for one in session(source).get_outputs()] + ["artifact_mask", "artifact_norm"]
    mask, norm = got[-2:]
    assert (mask.dtype, mask.shape) == (np.bool_, shape)
    np.testing.assert_array_equal(mask, golden.flags)
    np.testing.assert_allclose(norm, golden.artifact_norm, rtol=1e-5)
    assert mask.all() if "absolute:0" in options else mask.any() and not mask.all()
    assert run_main(["verify", str(out)]) == 0


def test_positions_are_shown_for_any_number_of_pictures(exported, tmp_path, capsys):
    out, words = tmp_path / "x.onnx", ("--threshold", "positions:0,5", "--layers", "all")
    assert put_in(exported("dinov2", "sdpa", "ts14"), out, "--add-outputs", "artifact_mask", *words) == 0
    mask = results(out, foreign_models.images(1, batch=5))[-1]
    assert mask.shape == (5, 3, 16)
    assert np.unique(np.nonzero(mask)[2]).tolist() == [0, 5]
    assert mask.sum() == 5 * 3 * 2
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "y.onnx", *BOTH, *words) == 2
    assert "looks at no norm; leave it out" in capsys.readouterr().err


def test_they_follow_the_size_of_the_pictures(tmp_path):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    foreign_models.export_open_size(source)
    assert put_in(source, out, "--image-size", "48x64", "--threshold", "ratio:1.05", *BOTH) == 0
    tall = np.random.default_rng(1).standard_normal((2, 3, 80, 48)).astype(np.float32)
    assert [one.shape for one in results(out, tall)[-2:]] == [(2, 1, 15)] * 2
    assert run_main(["verify", str(out)]) == 0


def test_wrong_flags_would_be_refused(exported, tmp_path, monkeypatch, capsys):
    add = delivery.add_flag_outputs

    def wrongly(model, *others):
        add(model, *others)
        node = next(one for one in model.graph.node if one.output[0] == "artifact_mask")
        node.output[0] = "right"
        model.graph.node.append(helper.make_node("Not", ["right"], ["artifact_mask"]))

    monkeypatch.setattr(delivery, "add_flag_outputs", wrongly)
    words = ("--add-outputs", "artifact_mask", "--threshold", "ratio:1.05")
    assert put_in(exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx", *words) == 1
    assert "the artifacts that the new file shows are not numpy's" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_added_is_refused(exported, tmp_path, capsys):
    source, out = exported("dinov2", "sdpa", "ts14"), tmp_path / "x.onnx"
    model = onnx.load(source)
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["artifact_mask"]))
    onnx.save(model, tmp_path / "theirs.onnx")
    for path, words, said in (
        (source, ("--add-outputs", "artifact_mask", "--no-itae"), "artifact_mask needs ITAE, and --no-itae was given"),
        (source, ("--add-outputs", "logits"), "must be one of artifact_mask, artifact_norm"),
        (tmp_path / "theirs.onnx", BOTH, "the graph has a tensor of that name already"),
        (source, ("--input", "uint8"), "the inputs of somebody else's file stay as they are"),
    ):
        assert put_in(path, out, *words) == 2
        err = capsys.readouterr().err.strip()
        assert said in err
        assert len(err.splitlines()) == 1
    assert not out.exists()
