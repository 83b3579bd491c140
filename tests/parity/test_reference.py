"""The eager reference against exporter/ITAE.md written out in numpy."""

import itae_in_numpy as oracle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig

THRESHOLDS = [
    *(
        (f"{kind}:{x}", side)
        for kind, x in [("mad", 1.5), ("zscore", 1), ("ratio", 1.2)]
        for side in ("high", "low", "both")
    ),
    ("absolute:1", "high"),
    ("absolute:1", "low"),
    ("positions:0", None),
]


@pytest.mark.parametrize(("threshold", "side"), THRESHOLDS)
@given(data=st.data(), P=st.integers(1, 9))
def test_detection_equals_the_formulas(threshold, side, data, P):
    values = st.floats(0.125, 4, width=16)  # coarse, so that ties happen
    norms = np.array(data.draw(st.lists(values, min_size=P, max_size=P)))
    got, distance = reference.detect(torch.from_numpy(norms[None]), ItaeConfig(threshold=threshold, side=side))
    want = oracle.is_artifact(norms, threshold, side)
    # Within rounding of the threshold either answer is right.
    clear = distance.numpy()[0] > 1e-12 if not threshold.startswith("absolute") else np.full(P, True)
    np.testing.assert_array_equal(got.numpy()[0][clear], want[clear])


@pytest.mark.parametrize(("side", "expected"), [("high", [False, False, True]), ("low", [True, True, False])])
def test_a_norm_at_an_absolute_threshold_is_low_and_not_high(side, expected):
    norms = torch.tensor([[1.0, 2.0, 3.0]])
    got, _ = reference.detect(norms, ItaeConfig(threshold="absolute:2", side=side))
    assert got.tolist() == [expected]


def test_nothing_is_near_the_threshold_with_positions():
    got, distance = reference.detect(torch.ones(2, 3), ItaeConfig(threshold="positions:1-2"))
    assert got.tolist() == [[False, True, True]] * 2
    assert (distance == reference.FAR).all()


def test_norms_of_all_sources_are_those_of_the_blocks_own_tensors(tiny):
    model, images = tiny.float64, torch.from_numpy(tiny.images(2, seed=3)).double()
    seen = {}
    hooks = []
    for number, block in enumerate(model.encoder.layer):

        def see_block(_, inputs, __, number=number):
            seen["residual", number] = inputs[0]

        hooks.append(block.register_forward_hook(see_block))
        for source in ("query", "key", "value"):

            def see(_, __, output, at=(source, number)):
                seen[at] = output

            hooks.append(getattr(block.attention, f"{source[0]}_proj").register_forward_hook(see))
    model(images)
    for hook in hooks:
        hook.remove()
    for source in ("query", "key", "value", "residual"):
        itae = ItaeConfig("0,2", source, "absolute:0", "high", "none")
        got = reference.embed(model, images, itae).norm
        want = [np.linalg.norm(seen[source, layer].detach().numpy()[:, tiny.prefix :], axis=2) for layer in (0, 2)]
        np.testing.assert_allclose(got.numpy(), np.stack(want, 1), rtol=1e-12)
    assert not any(block._forward_pre_hooks for block in model.encoder.layer)  # nothing of it stays behind


def test_norms_are_taken_in_float32_at_least():
    vectors = torch.full((1, 2, 3, 2), 300.0, dtype=torch.float16)  # their squares are no float16
    got = reference.patch_norm(vectors, 1)
    assert got.dtype == torch.float32
    assert got.tolist() == [[600.0, 600.0]]
    assert reference.patch_norm(vectors.double(), 1).dtype == torch.float64


def test_equal_norms_have_no_artifacts_under_mad():
    got, _ = reference.detect(torch.full((1, 6), 3.25), ItaeConfig(threshold="mad:0.5"))
    assert not got.any()


def test_median_of_an_even_count_is_the_mean_of_the_two_middle_ones():
    norms = torch.tensor([[1.0, 2.0, 4.0, 9.0]])  # median 3, not 2 as torch's
    got, _ = reference.detect(norms, ItaeConfig(threshold="ratio:1.4", side="low"))
    assert got.tolist() == [[True, True, False, False]]  # below 3 / 1.4 = 2.14


@pytest.mark.parametrize("attenuate", ["min", "mask", "scale:0.1", "mean", "none"])
@pytest.mark.parametrize("flags", ["none", "one", "all but one", "all"])
@pytest.mark.parametrize("prefix", [1, 5])
def test_attention_equals_the_formulas(attenuate, flags, prefix):
    H, P, d = 2, 5, 3
    rng = np.random.default_rng(5)
    q, k, v = rng.standard_normal((3, H, prefix + P, d)) * 2
    artifact = {"none": np.zeros(P), "one": np.eye(P)[2], "all but one": 1 - np.eye(P)[2], "all": np.ones(P)}[flags] > 0
    logits = torch.from_numpy(q @ k.swapaxes(1, 2) / np.sqrt(d))[None]
    how = ItaeConfig(attenuate=attenuate).attenuation
    weakened = reference.attenuate(logits, torch.from_numpy(artifact[None]), prefix, how)
    got = (weakened.softmax(-1) @ torch.from_numpy(v)).numpy()[0]
    want = oracle.attention(q, k, v, artifact, prefix, attenuate)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    unchanged = np.array_equal(weakened.numpy(), logits.numpy())
    assert unchanged == (flags in ("none", "all") or attenuate == "none")  # so the lines above can fail
