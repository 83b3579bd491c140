"""Position embeddings that were trained on another grid than Meta's 37 × 37."""

from __future__ import annotations

import json
import math

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from checkpoint_forms import PLAIN, REGISTERS, meta, save

from exporter import pipeline
from exporter.__main__ import main
from exporter.models import position, weights
from exporter.models.architecture import ARCHITECTURES, Architecture
from exporter.options import ExportSpec
from exporter.proof.golden_sample import candidate, normalize
from runtime.contract.manifest import verified_manifest


def metas(trained: torch.Tensor, rows: int, columns: int, offset: float, antialias: bool) -> torch.Tensor:
    """`interpolate_pos_encoding` of facebookresearch/dinov2, `vision_transformer.py`, written out once more."""
    n = trained.shape[1] - 1
    if rows * columns == n and rows == columns:
        return trained
    m = int(math.sqrt(n))
    options = {"scale_factor": ((rows + offset) / m, (columns + offset) / m)} if offset else {"size": (rows, columns)}
    patches = torch.nn.functional.interpolate(
        trained[:, 1:].reshape(1, m, m, -1).permute(0, 3, 1, 2), mode="bicubic", antialias=antialias, **options
    )
    assert patches.shape[-2:] == (rows, columns)
    return torch.cat((trained[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, trained.shape[-1])), dim=1)


@pytest.mark.parametrize("side", [1, 2, 16, 27, 37, 40])
@pytest.mark.parametrize("grid", [(16, 16), (3, 5), (37, 37), (16, 32)], ids=str)
@pytest.mark.parametrize(("arch", "offset", "antialias"), [(PLAIN, 0.1, False), (REGISTERS, 0.0, True)])
def test_a_grid_is_resized_from_its_own_size_as_meta_does(side, grid, arch, offset, antialias):
    trained = torch.randn(1, 1 + side * side, 12, generator=torch.Generator().manual_seed(side))
    got = position.position_embedding(trained, grid, arch, "meta")
    assert torch.equal(got, metas(trained, *grid, offset, antialias))


@pytest.mark.parametrize(("arch", "kind"), [(PLAIN, "Dinov2"), (REGISTERS, "Dinov2WithRegisters")])
def test_the_ports_own_model_of_a_224_training_agrees_with_pos_embed_hf(tmp_path, arch, kind):
    config = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 224, "patch_size": 14}
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    with torch.no_grad():
        theirs.embeddings.position_embeddings.normal_()
    theirs.save_pretrained(tmp_path)
    shallow = Architecture("own", width=12, heads=3, depth=2, registers=arch.registers, position=arch.position)
    spec = ExportSpec(
        "unused.onnx", size=shallow, weights=str(tmp_path), image_size=(42, 70), pos_embed="hf", itae=None
    )
    images = torch.randn(2, 3, 42, 70, generator=torch.Generator().manual_seed(1))
    ours = pipeline.load(spec).model
    assert ours.embeddings.position_embeddings.shape == (1, 257, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).last_hidden_state, theirs(images).last_hidden_state, rtol=0, atol=1e-5)


def test_an_export_of_a_training_at_224_pixels(tmp_path, monkeypatch, capsys):
    """The command, its notes, its parity, its manifest; and the graph against Meta's formula in an eager model."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", PLAIN)
    tensors = meta(side=16)
    given = save({"teacher": {f"backbone.{name}": one for name, one in tensors.items()} | {"head.w": torch.ones(2)}},
                 tmp_path / "teacher_checkpoint.pth")  # fmt: skip
    out = tmp_path / "a.onnx"
    argv = ["--size", "tiny", "--weights", str(given), "--image-size", "42x70", "--parity-samples", "2", "--no-itae"]
    assert main([*argv, "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert f"note: {given}: left out teacher.head (1 tensor)" in err
    manifest = verified_manifest(out)
    assert (manifest.options.image_size, manifest.options.pos_embed) == ((42, 70), "meta")
    assert all(check.max_abs < 1e-4 for check in manifest.parity.checks)
    assert json.loads((tmp_path / "a.onnx.json").read_text())["model"]["weights"]["source"] == str(given)

    model = weights.load(PLAIN, str(given)).model
    table = metas(tensors["pos_embed"], 3, 5, 0.1, antialias=False)
    model.embeddings.interpolate_pos_encoding = lambda *_: table
    spec = ExportSpec("unused.onnx", size=PLAIN, weights="random:0", image_size=(42, 70))
    pixels = normalize(np.stack([candidate(number, spec.facts) for number in (5, 6)]))
    with torch.no_grad():
        want = model(torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (got,) = session.run(["embedding"], {"pixel_values": pixels})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert np.abs(want).max() > 0.1
