import re

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
@pytest.mark.parametrize(("times", "share", "most"), [(30, 1, 3), (30, 0.05, 1), (30, 0.5, 6), (12, 1, 3)])
def test_marked_patches_are_found_and_nothing_else(arch, times, share, most):
    model = marked.model(arch, times)
    masks = marked.some_masks(80, share, most)
    tally = look(model, marked.pictures(masks))
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert chosen.first.source == "residual"
    assert chosen.first.layer == 1  # high norms of the first block's input are the picture's own
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
    assert rule.watched_places(tally) is None
    assert rule.no_artifacts(tally).startswith("no artifacts in these images")


@pytest.mark.parametrize("ground", [124, 255], ids=["grey", "white"])
@pytest.mark.parametrize("arch", [marked.TINY, marked.TINY_REG], ids=lambda arch: arch.name)
def test_objects_on_a_flat_ground_are_the_pictures_own(arch, ground):
    images = np.full((64, *marked.SIZE, 3), ground, np.uint8)
    rng = np.random.default_rng(0)
    for image in images:
        y, x = rng.integers(0, 4, 2) * 14
        image[y : y + 14, x : x + 28] = 255 * rng.integers(0, 2, (14, 28, 1)) if ground == 124 else 128
    tally = look(marked.model(arch, times=0), images)
    stand_apart = [one for one in rule._candidates(tally) if one.valley.gap >= 2]
    assert stand_apart  # so the next line can fail
    assert rule.detections(tally) == []
    assert rule.watched_places(tally) is None


def test_patches_that_the_embedding_of_patches_makes_large_are_the_pictures_own_unless_the_cls_token_is_drawn():
    tally = look(marked.model(times=6), marked.pictures(marked.some_masks(80)))
    assert rule.detections(tally) == []
    residual = [one for one in rule._candidates(tally) if one.source == "residual" and one.side == "high"]
    assert residual
    for one in residual:
        assert (
            rule._objection(one, tally)
            == "but they stand apart as far before the first block: they are the picture's own"
        )
    tally.attention *= 10
    assert rule.detections(tally) != []


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


def test_a_single_picture_is_enough_where_its_artifacts_are_beyond_doubt():
    masks = masks_of(60, 1 / 60, 3)
    for drawn, found in ((0.5, True), (0.0, False)):
        tally = mixture(masks, range(2, 4), 20, 0.1, drawn)
        assert bool(rule.detections(tally)) == found
    assert "only 1 image has such patches, of 60: look at more" in rule.no_artifacts(tally)


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


def mixture(masks: np.ndarray, layers: range, times: float, spread: float, drawn: float, depth: int = 4) -> Tally:
    """Residual norms that vary by 6 %; those of the masks are others in some layers, and draw this much attention."""
    norms, attention = mixed(masks, layers, times, spread, drawn, depth)
    return made(norms, attention)


def mixed(masks, layers, times, spread, drawn, depth=4):
    rng = np.random.default_rng(0)
    images, patches = masks.shape
    norms = rng.lognormal(0, 0.06, (images, depth, 4, patches))
    attention = np.full((images, depth, patches), 0.9 / patches)
    for layer in layers:
        norms[:, layer, 3][masks] *= times * rng.lognormal(0, spread, masks.sum())
        marked_images = masks.any(axis=1)
        attention[marked_images, layer] *= 1 - drawn
        attention[:, layer] += drawn * masks / np.maximum(masks.sum(axis=1, keepdims=True), 1)
    return norms, attention


def masks_of(images: int, share: float, most: int, seed: int = 0) -> np.ndarray:
    return marked.some_masks(images, share, most, seed=seed, grid=(16, 16))


@pytest.mark.parametrize(("share", "most"), [(1, 8), (0.05, 4), (1, 100)], ids=["usual", "few images", "a fifth"])
@pytest.mark.parametrize(("times", "spread"), [(2.5, 0.15), (3, 0.25), (1 / 3, 0.15)], ids=str)
def test_weak_artifacts_of_wide_spread_are_found_where_the_cls_token_is_drawn_to_them(share, most, times, spread):
    masks = masks_of(400, share, most)
    norms, attention = mixed(masks, range(2, 4), times, spread, 0.4)
    tally = made(norms[::2], attention[::2])
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.layer, chosen.last.layer, chosen.first.source) == (2, 3, "residual")
    others, there = norms[1::2, 2, 3], masks[1::2]
    level = float(chosen.first.threshold.removeprefix("ratio:"))
    ratio = others / np.median(others, axis=1, keepdims=True)
    flagged = ratio > level if times > 1 else ratio < 1 / level
    assert flagged[there].mean() >= 0.96
    assert there[flagged].mean() >= 0.99


@pytest.mark.parametrize(("times", "spread"), [(2.3, 0.1), (1 / 3, 0.1)], ids=str)
def test_the_same_norms_that_the_cls_token_passes_by_are_the_pictures_own(times, spread):
    tally = mixture(masks_of(100, 1, 8), range(1, 4), times, spread, 0)
    assert rule.detections(tally) == []
    assert re.search(r"times (above|below) those of the others, but the CLS token", rule.no_artifacts(tally))


@pytest.mark.parametrize("drawn", [True, False])
def test_of_two_kinds_in_one_block_those_that_the_cls_token_is_drawn_to_are_artifacts(drawn):
    strong, weak = masks_of(100, 1, 4), masks_of(100, 1, 30, seed=1)
    weak &= ~strong
    norms, attention = mixed(strong, range(2, 4), 30, 0.1, 0.5)
    norms[:, 2:, 3][weak[:, None].repeat(2, 1)] *= 4
    attention[:, 2:][weak[:, None].repeat(2, 1)] *= 4 if drawn else 0.1
    tally = made(norms, attention)
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    level = float(chosen.first.threshold.removeprefix("ratio:"))
    assert 1.4 <= level <= 3 if drawn else 5 <= level <= 20


@pytest.mark.parametrize("birth", [1, 2, 3])
def test_the_block_of_their_birth_decides_where_artifacts_are_found(birth):
    tally = mixture(masks_of(60, 1, 4), range(birth, 4), 20, 0.1, 0.5)
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert (chosen.first.layer, chosen.last.layer) == (birth, 3)
    assert rule.to_config(chosen.last, "last", 3, "min").detect_layer is None


def test_weak_artifacts_in_constant_places_become_positions():
    masks = np.zeros((100, 256), bool)
    masks[:, [0, 1, 16, 17]] = True
    tally = mixture(masks, range(2, 4), 2.5, 0.25, 0.5)
    chosen = rule.choose(rule.detections(tally), tally)
    assert chosen is not None
    assert chosen.first.valley.overlap > 0  # some of their norms lie on the wrong side
    assert chosen.positions == (0, 1, 16, 17)


@pytest.mark.parametrize(
    ("norms", "reason"),
    [
        (lambda masks: np.where(masks, 1.7, 1), "1.7. times above those of the others, which is less than 2 times"),
        (
            lambda masks: np.where(masks & (np.arange(100) == 7)[:, None], 9, 1),
            "but only 1 image has such patches, of 100",
        ),
        (lambda masks: np.where(np.arange(256) < 100, 9, 1), "but they are too many"),
        (lambda masks: np.ones((100, 256)), "in every block all norms lie in one mode"),
    ],
    ids=["too near", "too rare", "too many", "one mode"],
)
def test_the_reason_says_why_those_that_come_closest_are_none(norms, reason):
    rng = np.random.default_rng(0)
    whole = rng.lognormal(0, 0.02, (100, 3, 4, 256))
    whole[:, 1, 3] *= norms(masks_of(100, 1, 4))
    tally = made(whole, np.full((100, 3, 256), 1 / 257))
    assert rule.choose(rule.detections(tally), tally) is None
    assert re.search(reason, rule.no_artifacts(tally))


def watched(masks: np.ndarray, drawn: float, layers: range = range(2, 4)) -> Tally:
    """Norms of one mode; in some layers the CLS token gives the masks this much of its attention."""
    return mixture(masks, layers, 1, 0, drawn)


@pytest.mark.parametrize("places", [[0, 1, 16, 17], [85], list(range(32, 48))], ids=["a corner", "one", "a row"])
def test_constant_places_that_no_norms_set_apart_are_found_by_the_cls_tokens_attention(places):
    masks = np.zeros((60, 256), bool)
    masks[:, places] = True
    tally = watched(masks, 0.4)
    assert rule.detections(tally) == []
    found = rule.watched_places(tally)
    assert found is not None
    assert (found.positions, found.layer) == (tuple(places), 2)
    assert found.attention == pytest.approx(0.4, abs=0.05)
    assert rule.watched_places(watched(masks[:15], 0.4)) is None  # too few images to call a place constant


def test_what_the_cls_token_looks_at_in_other_places_of_every_image_is_mentioned_alone():
    tally = watched(masks_of(60, 1, 4), 0.4)
    assert rule.watched_places(tally) is None
    reason = rule.no_artifacts(tally)
    assert re.search(
        r"but \d\d% of the CLS token's attention in block [23] falls on 2\.\d of 256 patches an image, "
        "4 times the mean or more each, and norms don't separate these",
        reason,
    )


def test_some_places_in_every_image_and_as_many_that_vary_are_not_constant():
    masks = masks_of(60, 1, 8)
    masks[:, [3, 4]] = True
    assert rule.watched_places(watched(masks, 0.4)) is None


@pytest.mark.parametrize(
    ("drawn", "masks"),
    [(0.0, masks_of(60, 1, 4)), (0.03, np.arange(256) == np.full((60, 1), 3)), (0.2, masks_of(60, 1, 4))],
    ids=["none", "a place, hardly", "others, as pictures do"],
)
def test_attention_that_is_hardly_drawn_is_not_mentioned(drawn, masks):
    tally = watched(masks, drawn)
    assert rule.watched_places(tally) is None
    assert rule.no_artifacts(tally) == "no artifacts in these images: in every block all norms lie in one mode"
