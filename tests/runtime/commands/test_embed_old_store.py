"""A store of an older version, and of a model whose file was called otherwise: `embed` goes on, `cluster` reads it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.__main__ import main
from runtime.contract.manifest import manifest_path, parity_path, read_manifest, record_file
from runtime.store import Store

FORMAT1 = Path(__file__).parents[2] / "data/format1"
TOLERANCE = 1e-4
"""Of float32 on another machine's ONNX Runtime; the figures are of order 1."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the model, its pictures, and the store of the first four, made by the code of manifest format 1."""
    return Path(shutil.copytree(FORMAT1, tmp_path / "old"))


def embed(model: Path, pictures: Path, out: Path) -> int:
    return main(["embed", str(model), str(pictures), "--out", str(out), "--images-root", f"/data/pictures={pictures}"])


def renamed(model: Path, name: str) -> Path:
    """The same bytes as the exporter of today would describe them under another name."""
    other = model.with_name(name)
    manifest = read_manifest(model)
    model.rename(other)
    parity_path(model).rename(parity_path(other))
    files = {"model": record_file(other), "parity": record_file(parity_path(other))}
    described = manifest.model_copy(update={"files": manifest.files.model_copy(update=files)})
    manifest_path(other).write_bytes(described.to_json())
    return other


def test_a_store_of_format_1_is_gone_on_with(old, capsys) -> None:
    before = Store(old / "store").read()
    assert before.paths == ["a/0.png", "a/1.png", "a/2.png", "b/3.png"]
    assert embed(old / "itae.onnx", old / "pictures", old / "store") == 0
    said = capsys.readouterr().err
    assert "embedded 2 images" in said
    assert "4 were there already" in said
    store = Store(old / "store")
    after = store.read()
    assert store.complete
    names = {path.name for path in (old / "store").iterdir()}
    assert names == {"store.json", "errors.jsonl", "part-00000.parquet"}  # its own, not those of today
    assert after.paths == [*before.paths, "b/4.png", "b/5.png"]
    assert set(after.roots) == {"/data/pictures"}
    np.testing.assert_array_equal(after.vectors[:4], before.vectors)
    with runtime.load(old / "itae.onnx") as model:
        fresh = model.embed([old / "pictures" / path for path in after.paths])
    np.testing.assert_allclose(after.vectors, fresh, rtol=0, atol=TOLERANCE)
    assert np.abs(fresh[:, None] - fresh[None]).max(axis=2)[~np.eye(6, dtype=bool)].min() > 10 * TOLERANCE


def test_a_store_of_format_1_is_clustered(old, tmp_path) -> None:
    moved = f"/data/pictures={old / 'pictures'}"
    out = tmp_path / "clusters"
    assert main(["cluster", str(old / "store"), "--k", "2", "--out", str(out), "--images-root", moved]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["n"], summary["k"], summary["picture"]["unreadable"]) == (4, 2, 0)


def test_the_same_model_under_another_name_goes_on(old, capsys) -> None:
    other = renamed(old / "itae.onnx", "other.onnx")
    assert embed(other, old / "pictures", old / "store") == 0
    assert "4 were there already" in capsys.readouterr().err
    assert len(Store(old / "store")) == 6


def test_another_model_is_refused_in_a_line_that_says_what_differs(old, capsys) -> None:
    before = {path.name: path.read_bytes() for path in (old / "store").iterdir()}
    assert embed(old / "plain.onnx", old / "pictures", old / "store") == 2
    said = capsys.readouterr().err
    assert "was made otherwise: model_sha256 is 0ef20d5d5465... there, " in said
    assert "give the same model and options, or an --out of its own" in said
    assert said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (old / "store").iterdir()} == before
