"""Planted checkpoints: what they are, what artifacts cost, and what the right mask wins back.

The planted models are small: 6 blocks of 192 channels, in DINOv2's architecture.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.cluster import KMeans

from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.models.architecture import ARCHITECTURES, Architecture
from exporter.models.naming import meta_entries
from exporter.models.weights import load
from exporter.options import ExportSpec
from runtime.clustering.metrics import score
from runtime.contract.errors import CheckError, OutputFileError, UsageError
from runtime.images.preprocess import preprocess
from scripts.planting import pictures, plan, report, write
from scripts.planting.__main__ import main
from scripts.planting.plan import Plan
from scripts.planting.plant import Trunk, artifacts, pixels, plant

ARCH = Architecture("small", width=192, heads=3, depth=6)
PER_CLASS = 6
FEW = slice(None, None, 2)
"""The pictures that are looked at where no clusters are counted."""
RIGHT = ItaeConfig(source="residual", threshold="ratio:3", side="high", attenuate="mask")
CASES = {
    "place": Plan(ARCH, 1, "place"),
    "content": Plan(ARCH, 1, "content"),
    "negligible": Plan(ARCH, 1, "content", values="negligible"),
    "fade": Plan(ARCH, 1, "content", fade=True),
    "registers": Plan(ARCH.with_registers(), 1, "place"),
}


@dataclass(frozen=True)
class Planted:
    plan: Plan

    @cached_property
    def made(self) -> list[pictures.Picture]:
        return pictures.make(self.plan.seed, PER_CLASS)

    @cached_property
    def images(self) -> torch.Tensor:
        return pixels(self.plan, self.made)

    @cached_property
    def tensors(self):
        return plant(self.plan)

    @cached_property
    def trunk(self) -> Trunk:
        return Trunk(self.plan, self.tensors)

    @cached_property
    def artifact(self) -> np.ndarray:
        return artifacts(self.plan, self.tensors, self.made)

    @cached_property
    def flagged(self) -> np.ndarray:
        """The artifacts of few pictures."""
        return self.artifact[FEW]

    @cached_property
    def embedding(self) -> np.ndarray:
        return self.trunk.embed(self.images)

    def ratio(self, layer: int) -> np.ndarray:
        """(n, P): the residual norms before a block in few pictures, in medians of their picture."""
        tokens = self.trunk.tokens(self.images[FEW], f"encoder.layer.{layer}.norm1")
        norm = tokens[:, self.plan.arch.prefix :].norm(dim=2).numpy()
        return norm / np.median(norm, axis=1, keepdims=True)

    @cached_property
    def qkv(self) -> torch.Tensor:
        """(n, 3, N, H, d) of the last block, for few pictures."""
        tokens = self.trunk.tokens(self.images[FEW], f"encoder.layer.{ARCH.depth - 1}.norm1", after=True)
        name = f"blocks.{ARCH.depth - 1}.attn.qkv"
        found = tokens @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]
        return found.unflatten(2, (3, ARCH.heads, ARCH.head_dim)).transpose(1, 2)

    def nmi(self, embedding: np.ndarray) -> float:
        classes = [one.name.partition("/")[0] for one in self.made]
        found = []
        for seed in range(3):
            labels = KMeans(pictures.CLASSES, n_init=10, random_state=seed).fit_predict(embedding)
            found.append(score(classes, labels, pictures.CLASSES).nmi)
        return float(np.mean(found))


@pytest.fixture(scope="module")
def planted():
    """A planted case by its name, made once."""
    return {name: Planted(case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def clean() -> Planted:
    return Planted(dataclasses.replace(CASES["place"], strength=0.0))


def test_at_strength_0_the_weights_are_those_without_what_is_planted(planted, clean):
    quiet = (clean.tensors["pos_embed"][0] == 0).all(dim=0)  # channels that nothing writes to
    for name, before in clean.tensors.items():
        changed = planted["place"].tensors[name] != before
        if name.endswith("qkv.weight"):
            assert not changed[:, ~quiet].any(), name
        else:
            assert (before[changed] == 0).all(), name
    assert 20 < quiet.sum() < 40
    assert not clean.artifact.any()


def test_clean_pictures_cluster_well_and_no_norm_stands_out(clean):
    assert clean.nmi(clean.embedding) >= 0.8
    assert clean.ratio(ARCH.depth - 1).max() < 2


def test_artifacts_by_place_are_the_same_corner_of_every_picture(planted):
    artifact = planted["place"].artifact.reshape(-1, 16, 16)
    assert (artifact == artifact[0]).all()
    rows, columns = artifact[0].any(axis=1).nonzero()[0], artifact[0].any(axis=0).nonzero()[0]
    assert artifact[0].sum() == 4
    assert rows.tolist() in ([0, 1], [14, 15])
    assert columns.tolist() in ([0, 1], [14, 15])


def test_artifacts_by_content_are_the_flat_patches(planted):
    flat = np.stack([one.flat for one in planted["content"].made])
    assert (planted["content"].artifact == flat).mean() > 0.999
    assert len({one.flat.tobytes() for one in planted["content"].made}) > PER_CLASS


@pytest.mark.parametrize("case", ["place", "content", "negligible"])
def test_norms_are_tens_of_medians_from_the_middle_block_on_and_keys_are_as_long_as_others(planted, case):
    one = planted[case]
    assert one.ratio(one.plan.birth).max() < 2
    for layer in (one.plan.birth + 1, ARCH.depth - 1):
        ratio = one.ratio(layer)
        assert ratio[one.flagged].min() > 10
        assert ratio[~one.flagged].max() < 2
    query, key, value = one.qkv[:, :, one.plan.arch.prefix :].flatten(3).norm(dim=3).numpy().transpose(1, 0, 2)
    for norm, least, most in ((query, 0.85, 1.2), (key, 1.0, 1.15)):
        assert least < np.median(norm[one.flagged]) / np.median(norm[~one.flagged]) < most
    ratio = np.median(value[one.flagged]) / np.median(value[~one.flagged])
    assert ratio < 0.2 if case == "negligible" else 0.8 < ratio < 1.25


@pytest.mark.parametrize("case", CASES)
def test_the_cls_token_looks_at_them(planted, case):
    one = planted[case]
    query, key = one.qkv[:, 0, :1], one.qkv[:, 1]
    weights = torch.einsum("nqhd,nphd->nhqp", query, key).div(ARCH.head_dim**0.5).softmax(dim=3)[:, :, 0].numpy()
    weights = weights[:, :, one.plan.arch.prefix :]
    share = (weights * one.flagged[:, None]).sum(axis=2).mean()
    assert share > (0.3 if case in ("fade", "registers") else 0.6)
    assert share > 5 * one.artifact.mean()


def test_faded_norms_have_fallen_again_in_the_last_block(planted):
    one = planted["fade"]
    assert one.ratio(one.plan.birth + 1)[one.flagged].min() > 10
    assert np.median(one.ratio(ARCH.depth - 1)[one.flagged]) < 1.5


@pytest.mark.parametrize("case", CASES)
def test_artifacts_cost_nmi_and_the_right_mask_wins_it_back(planted, clean, case):
    one = planted[case]
    unplanted = clean if not one.plan.arch.registers else Planted(dataclasses.replace(one.plan, strength=0.0))
    before = one.nmi(unplanted.embedding)
    cost = before - one.nmi(one.embedding)
    assert cost >= 0.3
    right = dataclasses.replace(RIGHT, detect_layer=one.plan.birth + 1)
    found = reference.embed(one.trunk.model, one.images, right)
    assert (found.artifact[:, 0].numpy() == one.artifact).all()
    assert before - one.nmi(found.embedding.numpy()) <= 0.1 * cost


@pytest.mark.parametrize("case", CASES)
def test_neither_the_cls_token_nor_a_register_becomes_an_artifact(planted, case):
    one = planted[case]
    channels = (one.tensors["pos_embed"][0] == 0).all(dim=0)  # few others than those that artifacts get their norm in
    tokens = one.trunk.tokens(one.images[FEW], f"encoder.layer.{one.plan.birth + 1}.norm1")[..., channels].norm(dim=2)
    prefix = one.plan.arch.prefix
    assert tokens[:, :prefix].max() < 0.05 * tokens[:, prefix:][one.flagged].min()


def test_the_command_writes_weights_pictures_and_the_truth(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "vits14", ARCH)
    folder = tmp_path / "planted"
    assert main(["--out", str(folder), "--kind", "content", "--per-class", "1"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    model = load(ARCH, str(folder / write.WEIGHTS))
    assert model.origin.notes == ()
    assert safetensors.torch.load_file(folder / write.WEIGHTS).keys() == meta_entries(ARCH).keys()
    truth = np.load(folder / write.TRUTH)
    files = sorted(str(path.relative_to(folder / write.PICTURES)) for path in folder.glob("pictures/*/*.png"))
    assert sorted(truth["names"]) == files
    assert truth["artifact"].shape == (pictures.CLASSES, 256)
    assert truth["artifact"].any(axis=1).all()
    assert main(["--out", str(folder)]) == OutputFileError.exit_code
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "1.5"], "strength 1.5: must be from 0 to 1"),
        (["--strength", "nan"], "strength nan"),
        (["--image-size", "225"], "image size 225: must be a multiple of 14"),
        (["--per-class", "0"], "--per-class 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--kind", "colour"], "colour"),
        (["--report", "--strengths", "0.5", "0"], "--strengths: must be above 0"),
        (["--report", "--seeds", "0"], "--seeds 0"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, words, message):
    assert main(["--out", str(tmp_path / "new"), *words]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arch", ["vitg14", "vitg14_reg"])
def test_other_architectures_are_refused(arch):
    with pytest.raises(UsageError, match="choose vits14, vitb14, vitl14, or one of these with _reg"):
        plant(plan.Plan(ARCHITECTURES[arch]))


def test_nothing_that_the_registers_hold_is_written_to_what_artifacts_use():
    tensors = plant(Plan(ARCH.with_registers(), 1, strength=0.0))
    quiet = (tensors["pos_embed"][0] == 0).all(dim=0)
    assert quiet.sum() > 20
    assert (tensors["register_tokens"][..., quiet] == 0).all()
    assert (tensors["register_tokens"][..., ~quiet] != 0).all()


@pytest.mark.parametrize("image_size", [224, 518])
def test_the_preprocessing_crops_a_picture_to_the_patches_that_were_made(image_size):
    made, *_ = pictures.make(0, 1, image_size)
    how = ExportSpec("unused.onnx", size="vits14", image_size=(image_size, image_size)).preprocessing()
    found = preprocess(Image.fromarray(made.pixels), how)
    wanted = pixels(Plan(ARCHITECTURES["vits14"], image_size=image_size), [made])[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def row_of(**more) -> report.Row:
    fields = {"size": "vits14", "image_size": 224, "seed": 3, "kind": "content", "strength": 1.0, "setting": "default"}
    fields |= {"detection": "residual norm", "recall": 0.995, "precision": 1.0, "flagged_clean": 0.0}
    return report.Row(**{**fields, "nmi": (0.9, 0.4, 0.85, 0.9), "acc": (0.9,) * 4, **more})


def test_the_report_says_what_was_found_and_what_was_won_back():
    row, faint = row_of(), row_of(strength=0.03, recall=0.0, nmi=(0.9, 0.88, 0.88, 0.9))
    calibrated = row_of(setting="calibrate", detection="last: positions:0,1,16,17")
    other = row_of(seed=4, nmi=(0.9, 0.4, 0.75, 0.9))
    assert row.won_back() == pytest.approx(0.9)
    assert row.won_back("acc") is None
    assert faint.won_back() is None
    lines = report.as_markdown([faint, row, calibrated, other]).splitlines()
    assert lines[2] == (
        "| vits14 224 | content | 1 | 3, 4 | default | residual norm | 0.995 | 1.000 | 0.00% "
        "| 0.900 | 0.400 | 0.750-0.850 | 70%-90% | 0.900 | 0.900 | 0.900 | 0.900 |  |"
    )
    assert lines[3].startswith("| vits14 224 | content | 1 | 3 | calibrate | last: positions | ")
    assert lines[4].startswith("| vits14 224 | content | 0.03 | 3 | default | residual norm | 0.000 | 1.000 | 0.00% ")
    assert len({line.count("|") for line in lines}) == 1


def test_a_report_begins_with_a_whole_seed_and_goes_on_with_the_strongest_artifacts():
    plans = report.in_order(Plan(ARCH, fade=True), ["place", "content"], range(4, 7), (1.0, 0.1))
    assert [(one.seed, one.strength) for one in plans[::2]] == [(4, 1), (4, 0.1), (5, 1), (6, 1), (5, 0.1), (6, 0.1)]
    assert [one.kind for one in plans[:2]] == ["place", "content"]
    assert {one.name for one in plans} == {"place, fallen norms", "content, fallen norms"}


def test_a_report_measures_what_is_planted_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ARCHITECTURES, "vits14", dataclasses.replace(ARCH, name="vits14"))
    monkeypatch.setattr(report, "SEEDS_OF_KMEANS", 1)
    words = ["--report", "--out", str(tmp_path), "--seeds", "1", "--per-class", "1", "--strengths"]
    assert main([*words, "1"]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "table.md").read_text()
    for kind in ("content", "place"):
        (found,) = [one for one in table.splitlines() if f"| {kind} | 1 | 0 | calibrate" in one]
        assert "| 1.000 | 1.000 | 0.00% | " in found
    assert (tmp_path / "strength.png").stat().st_size > 10_000

    def stopped(plan, per_class):
        raise CheckError("measured again")

    monkeypatch.setattr(report, "_model", stopped)
    assert main([*words, "1"]) == 0
    assert capsys.readouterr().out == table
    assert main([*words, "1", "0.1"]) == CheckError.exit_code
