import marked_dinov2 as marked
import numpy as np
import pytest
import torch

from exporter.calibration import rule
from exporter.calibration.blocks import Blocks
from exporter.calibration.tally import Tally
from exporter.methods.itae import reference


def look(model, images):
    blocks, tally = Blocks(model), None
    mean, std = torch.tensor(marked.TINY.mean), torch.tensor(marked.TINY.std)
    for start in range(0, len(images), 16):
        part = torch.from_numpy(images[start : start + 16]).float() / 255
        seen = blocks.look(((part - mean) / std).permute(0, 3, 1, 2).contiguous())
        tally = tally or Tally.empty(*seen.norms.shape[1:])
        tally.add(seen.norms.numpy(), seen.attention.numpy())
    return tally


def flags(model, images, detection, depth):
    itae = rule.to_config(detection, "last", depth - 1, "min")
    mean, std = torch.tensor(marked.TINY.mean), torch.tensor(marked.TINY.std)
    pixels = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return reference.embed(model, pixels, itae).artifact[:, 0].numpy()


@pytest.mark.parametrize("arch", [marked.TINY, marked.TINY_REG], ids=lambda arch: arch.name)
@pytest.mark.parametrize(("times", "share", "most"), [(30, 1, 3), (30, 0.05, 1), (30, 0.5, 6), (6, 1, 3)])
def test_marked_patches_are_found_and_nothing_else(arch, times, share, most):
    model = marked.model(arch, times)
    masks = marked.some_masks(80, share, most)
    tally = look(model, marked.pictures(masks))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert chosen.first.source == "residual"
    assert chosen.first.layer == 1  # low and high norms of the first block's input are the picture's own
    assert chosen.positions == ()
    others = marked.some_masks(40, share, most, seed=9)
    found = flags(model, marked.pictures(others, seed=9), chosen.first, arch.depth)
    assert found[others].mean() >= 0.99
    assert others[found].mean() >= 0.99


@pytest.mark.parametrize("arch", [marked.TINY, marked.TINY_REG], ids=lambda arch: arch.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_clean_model_has_none(arch, seed):
    images = marked.pictures(marked.some_masks(64))
    images[::4, 14:42, 14:42] = 124  # flat grey, whose residual norms are low
    images[1::4, :28, 28:] = 0
    tally = look(marked.model(arch, times=0, seed=seed), images)
    assert rule.detections(tally) == []
    assert rule.no_artifacts(tally).startswith("no artifacts in these images")


def test_the_same_places_in_every_image_become_positions():
    masks = np.zeros((40, 30), bool)
    masks[:, [0, 1, 6, 7]] = True
    tally = look(marked.model(), marked.pictures(masks))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert chosen.positions == (0, 1, 6, 7)
    masks[::8, 12] = True  # one in eight images has another
    tally = look(marked.model(), marked.pictures(masks))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert chosen.positions == ()


def test_a_single_odd_picture_is_no_artifact():
    masks = np.zeros((40, 30), bool)
    masks[5, 3] = True
    tally = look(marked.model(), marked.pictures(masks))
    assert rule.detections(tally) == []


def made(norms: np.ndarray, attention: np.ndarray) -> Tally:
    tally = Tally.empty(*norms.shape[1:])
    tally.add(norms.astype(np.float32), attention.astype(np.float32))
    return tally


def test_low_value_norms_are_found_where_nothing_else_shows():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.08, (60, 4, 4, 64))
    norms[:, 2:, 2, 5:8] *= 0.2
    attention = np.full((60, 4, 64), 1 / 65)
    attention[:, 2:, 5:8] *= 8
    tally = made(norms, attention)
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.source, chosen.first.side, chosen.first.layer, chosen.last.layer) == ("value", "low", 2, 3)
    assert min(chosen.first.pull) == pytest.approx(8 * 64 / 65, rel=0.01)


def test_norms_that_have_fallen_in_the_last_block_are_found_before_it():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.08, (60, 5, 4, 64))
    norms[:, 2:4, 3, :3] *= 20
    tally = made(norms, np.full((60, 5, 64), 1 / 65))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.layer, chosen.last.layer) == (2, 3)
    assert rule.to_config(chosen.last, "last", 4, "min").detect_layer == 3
    assert rule.to_config(chosen.first, "2-4", 4, "min").detect_layer == 2


def test_what_the_cls_token_attends_to_decides_between_two_kinds_of_outliers():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.05, (60, 4, 4, 64))
    norms[:, 1, 3, 20:40:2] *= 4  # many, in an early block, and nobody looks at them
    norms[:, 2:, 3, :2] *= 20
    attention = np.full((60, 4, 64), 0.5 / 62)
    attention[:, 2:, :2] = 0.25
    tally = made(norms, attention)
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.layer, chosen.positions) == (2, (0, 1))


@pytest.mark.parametrize(("share", "most"), [(1, 16), (0.05, 1), (0.3, 3)])
@pytest.mark.parametrize("times", [3, 30])
def test_rare_many_and_weak_artifacts_are_found_among_patches_that_vary_with_their_content(times, share, most):
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.06, (160, 4, 4, 256))
    for image in norms:  # a tenth is darker
        image[:, 3, rng.choice(256, 25, replace=False)] *= rng.uniform(1.1, 1.4)
    masks = marked.some_masks(160, share, most, grid=(16, 16))
    norms[:, 2:, 3][masks[:, None].repeat(2, 1)] *= times * rng.lognormal(0, 0.08, 2 * masks.sum())
    chosen_by, other = slice(0, 160, 2), slice(1, 160, 2)
    tally = made(norms[chosen_by], np.full((80, 4, 256), 1 / 257))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.layer, chosen.first.source, chosen.first.side) == (2, "residual", "high")
    flagged = norms[other, 2, 3] > float(chosen.first.threshold[6:]) * np.median(norms[other, 2, 3], axis=1)[:, None]
    assert flagged[masks[other]].mean() >= 0.99
    assert masks[other][flagged].mean() >= 0.99
