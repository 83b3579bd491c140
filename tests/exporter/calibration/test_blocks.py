"""Norms, flags and embeddings of a calibration are those of the eager reference, which every export is held to."""

import marked_dinov2 as marked
import numpy as np
import pytest
import torch

from exporter.calibration.blocks import Blocks
from exporter.calibration.trials import Setting, Trials
from exporter.methods.itae import reference
from exporter.methods.itae.options import SOURCES, ItaeConfig

SETTINGS = [
    ItaeConfig(),
    ItaeConfig(source="residual", threshold="ratio:3", side="high", attenuate="mask"),
    ItaeConfig(layers="1-3", source="residual", threshold="ratio:3", side="high", detect_layer=1),
    ItaeConfig(layers="0,2", source="key", threshold="ratio:1.2", side="both", detect_layer=0, attenuate="scale:0.1"),
    ItaeConfig(layers="2-3", threshold="positions:0,7", attenuate="mean"),
]
ATOL = 2e-5
"""Both compute in float32, in batches of different sizes."""


def normalised(images: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(marked.TINY.mean), torch.tensor(marked.TINY.std)
    return ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("arch", [marked.TINY, marked.TINY_REG], ids=lambda arch: arch.name)
def test_norms_are_the_references(arch):
    model, images = marked.model(arch), normalised(marked.pictures(marked.some_masks(3)))
    seen = Blocks(model).look(images)
    for place, source in enumerate(SOURCES):
        wanted = reference.embed(model, images, ItaeConfig("all", source, "absolute:0", "high", "none")).norm
        np.testing.assert_allclose(seen.norms[:, :, place], wanted, rtol=1e-5)
    np.testing.assert_allclose(seen.embedding, reference.embed(model, images, None).embedding, atol=ATOL)
    assert (seen.attention.sum(dim=2) < 1).all()
    assert seen.attention.shape == (3, arch.depth, 30)


@pytest.mark.parametrize("itae", SETTINGS, ids=str)
def test_a_setting_does_what_the_reference_does(itae):
    model, images = marked.model(), normalised(marked.pictures(marked.some_masks(5, most=4)))
    trials = Trials(Blocks(model), [Setting("one", itae), Setting("plain", None)], keep_vectors=True)
    flags = trials.add(trials._blocks.look(images, trials.inputs))
    wanted = reference.embed(model, images, itae)
    np.testing.assert_array_equal(flags, wanted.artifact[:, 0])
    one, plain = trials.trials
    np.testing.assert_allclose(one.vectors[0], wanted.embedding, atol=ATOL)
    np.testing.assert_allclose(plain.vectors[0], reference.embed(model, images, None).embedding, atol=ATOL)
    assert np.abs(one.vectors[0] - plain.vectors[0]).max() > 100 * ATOL  # so the lines above can fail
    assert one.attention("after") < one.attention("before")
    assert len(one.before) == len(one.after) == len(itae.layer_indices(marked.TINY.depth))
    assert one.flagged == flags.sum()
    assert plain.flagged == 0


def test_attention_is_that_of_the_images_that_have_artifacts():
    masks = marked.some_masks(6)
    masks[3:] = False
    model, itae = marked.model(), ItaeConfig(source="residual", threshold="ratio:3", side="high")
    whole, part = (Trials(Blocks(model), [Setting("one", itae)], keep_vectors=False) for _ in range(2))
    images = normalised(marked.pictures(masks))
    whole.add(whole._blocks.look(images, whole.inputs))
    part.add(part._blocks.look(images[:3], part.inputs))
    assert whole.trials[0].with_artifacts == 3
    assert whole.trials[0].attention("before") == pytest.approx(part.trials[0].attention("before"), rel=1e-4)


def test_several_settings_are_tried_as_if_each_were_alone():
    model, images = marked.model(), normalised(marked.pictures(marked.some_masks(4)))
    settings = [*(Setting(str(one), one) for one in SETTINGS), Setting("plain", None)]
    together = Trials(Blocks(model), settings, keep_vectors=True)
    together.add(together._blocks.look(images, together.inputs))
    for setting, trial in zip(settings, together.trials, strict=True):
        alone = Trials(Blocks(model), [setting], keep_vectors=True)
        alone.add(alone._blocks.look(images, alone.inputs))
        np.testing.assert_allclose(trial.vectors[0], alone.trials[0].vectors[0], atol=ATOL)
        assert (trial.before, trial.after) == (alone.trials[0].before, alone.trials[0].after)
