"""`itae-embed` on models that were made from somebody else's ONNX: the figures, embeddings and refusals of Python."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import foreign_models
import numpy as np
import pytest
from PIL import Image

from runtime.backends import open_session
from runtime.checks.verify import as_json, verify
from runtime.contract.manifest import parity_path
from runtime.embedding.model import Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures, and models with heads alone, and with a fixed batch and an embedding."""
    made = tmp_path_factory.mktemp("foreign")
    (made / "pictures").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(made / "pictures" / f"{number}.png")
    foreign_models.export_with_heads(made / "heads_theirs.onnx")
    foreign_models.export_fixed_batch(made / "fixed_theirs.onnx", batch=2)
    for name in ("heads", "fixed"):
        assert foreign_models.put_in(made / f"{name}_theirs.onnx", made / f"{name}.onnx") == 0
    return made


@pytest.mark.parametrize("name", ["heads", "fixed"])
def test_verify_has_the_figures_of_python(name, folder, run) -> None:
    done = run(folder / f"{name}.onnx", "--verify", "--json", "--threads", 2)
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), as_json(verify(folder / f"{name}.onnx"))
    assert found.keys() == expected.keys()
    assert found["limits"] == expected["limits"]
    for figure in ("max_relative", "max_abs"):
        assert found[figure] == pytest.approx(expected[figure], abs=1e-6)
    assert found["outputs"] == expected["outputs"]
    assert found["batches"]["sizes"] == ([2] if name == "fixed" else expected["batches"]["sizes"])
    assert found["batches"]["rows"] > 0


def test_verify_shows_the_models_own_outputs(folder, run) -> None:
    done = run(folder / "heads.onnx", "--verify")
    assert b"max relative" in done.stdout
    assert b"logits, depth, own/patch_tokens" in done.stdout
    assert b"max abs" not in done.stdout


def test_verify_fails_where_an_own_output_is_off(folder, run, tmp_path) -> None:
    from runtime.contract.golden import golden_bytes, read_golden
    from runtime.contract.manifest import manifest_path, read_manifest, record_file

    model = tmp_path / "heads.onnx"
    for one in folder.glob("heads.onnx*"):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    manifest = read_manifest(model)
    golden = read_golden(model, manifest)
    golden.own["depth"][0, 0, 0, 0] += 1e-3 * np.abs(golden.own["depth"]).max()
    parity_path(model).write_bytes(golden_bytes(golden))
    files = manifest.files.model_copy(update={"parity": record_file(parity_path(model))})
    manifest_path(model).write_bytes(manifest.model_copy(update={"files": files}).to_json())
    done = run(model, "--verify")
    assert done.returncode == 1
    assert b"depth is off by" in done.stdout


def test_a_model_without_an_embedding_says_what_adds_one(folder, run, tmp_path) -> None:
    done = run(folder / "heads.onnx", folder / "pictures", "--out", tmp_path / "x.npy")
    assert done.returncode == 2
    assert b"--onnx heads_theirs.onnx --embedding NAME` adds one" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_fixed_batch_is_filled(folder, run, tmp_path) -> None:
    pictures = sorted((folder / "pictures").iterdir())  # five: the last batch of two is filled
    done = run(folder / "fixed.onnx", *pictures, "--out", tmp_path / "x.npy", "--threads", 2)
    assert done.returncode == 0, done.stderr
    with closing(open_session(folder / "fixed.onnx", threads=2)) as session:
        expected = Model(session).embed(pictures)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01
