"""The checkpoints that people own: every form is taken as it was meant, or refused with what to do."""

from __future__ import annotations

import re

import checkpoint_forms
import pytest
import torch
from checkpoint_forms import PLAIN, REFUSED, REGISTERS, SEED, TAKEN, meta, save, under

from exporter import ExportSpec, export
from exporter.models import backbone, naming, weights
from exporter.models.architecture import architecture
from runtime.contract.errors import WeightsError, one_line
from runtime.contract.manifest import read_manifest

POSITION = "embeddings.position_embeddings"


@pytest.mark.parametrize(("arch", "make"), TAKEN.values(), ids=TAKEN)
def test_every_form_gives_the_parameters_that_it_was_made_of(tmp_path, request, arch, make):
    form = request.node.callspec.id
    held = dict(weights.load(arch, str(make(tmp_path))).model.named_parameters())
    expected = dict(weights.load(arch, f"random:{SEED}").model.named_parameters())
    assert held.keys() == expected.keys()
    if side := re.search(r"grid of (\d+)", form):
        expected[POSITION] = expected[POSITION][:, : 1 + int(side[1]) ** 2]
    if "timm" in form and "training" not in form:
        expected["embeddings.mask_token"] = torch.zeros(1, 12)
    if form == "timm, registers":  # the CLS token holds its position
        expected["embeddings.cls_token"] = expected["embeddings.cls_token"] + expected[POSITION][:, :1]
        expected[POSITION] = torch.cat([torch.zeros(1, 1, 12), expected[POSITION][:, 1:]], dim=1)
    for name, tensor in expected.items():
        if "registers with positions" in form and "register_tokens" in name:
            torch.testing.assert_close(held[name], tensor, rtol=0, atol=1e-6)  # they were subtracted and added
        else:
            assert torch.equal(held[name], tensor), name


@pytest.mark.parametrize(("arch", "make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_is_named(tmp_path, arch, make, words):
    with pytest.raises(WeightsError) as caught:
        weights.load(arch, str(make(tmp_path)))
    message = one_line(caught.value)
    assert words in message
    assert len(message) < 600
    assert "--size" not in message  # none of them is of another size


def test_notes_say_which_backbone_was_taken_and_what_was_left_out(tmp_path):
    path = TAKEN["Meta, model_final.rank_0.pth"][1](tmp_path)
    took, left_out = weights.load(PLAIN, str(path)).origin.notes
    assert took == f"{path}: took model.teacher.backbone of model.student.backbone, model.teacher.backbone"
    for words in ("model.student (", "model.teacher.dino_head (5 tensors)", "model.teacher.ibot_head (5 tensors)",
                  "model.dino_loss (1 tensor)", "optimizer (2 tensors)"):  # fmt: skip
        assert words in left_out
    assert "iteration" not in left_out  # no tensor
    assert weights.load(PLAIN, str(save(meta(), tmp_path / "a.pth"))).origin.notes == ()


def test_another_size_is_named_if_the_checkpoint_is_of_one(tmp_path):
    entries = naming.meta_entries(architecture("vits14_reg"))
    shapes = {name: torch.zeros(1).expand(entry.shape) for name, entry in entries.items()}
    with pytest.raises(WeightsError, match="It has the form of vits14_reg: give --size vits14_reg"):
        backbone.translate(under("model.", shapes), architecture("vits14"), "a.pth")


def test_a_class_of_the_file_is_neither_imported_nor_called(tmp_path, monkeypatch):
    path = TAKEN["an object of the training program"][1](tmp_path)

    def never(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(checkpoint_forms.Config, "__new__", never)
    monkeypatch.setattr(checkpoint_forms.Config, "__setstate__", never, raising=False)
    assert weights.load(PLAIN, str(path)).origin.sha256 == weights.load(PLAIN, f"random:{SEED}").origin.sha256


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    held: dict = {"model": meta()}
    held["self"] = held
    assert weights.load(PLAIN, str(save(held, tmp_path / "a.pth"))).origin.notes == ()


@pytest.mark.parametrize("form", ["timm, registers", "timm, registers with positions"])
def test_timms_registers_compute_what_metas_do(tmp_path, form):
    image = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(3))
    ours = weights.load(REGISTERS, f"random:{SEED}").model
    timms = weights.load(REGISTERS, str(TAKEN[form][1](tmp_path))).model
    got, want = (model(image).last_hidden_state for model in (timms, ours))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_the_manifest_says_what_was_left_out(tmp_path, capfd):
    path = TAKEN["Meta, model_final.rank_0.pth"][1](tmp_path)
    spec = ExportSpec(tmp_path / "m.onnx", size=PLAIN, weights=str(path), image_size=28, parity_samples=1)
    notes = export(spec).manifest.model.weights.notes
    assert notes == weights.load(PLAIN, str(path)).origin.notes
    assert len(notes) == 2
    assert read_manifest(tmp_path / "m.onnx").model.weights.notes == notes
