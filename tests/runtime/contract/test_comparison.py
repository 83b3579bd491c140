"""The comparison passes right results, and each kind of wrong result fails with a clause of its own."""

import dataclasses

import numpy as np
import pytest

from runtime.contract.comparison import LIMITS, compare
from runtime.contract.golden import Golden
from runtime.contract.manifest import ParityLimits

N, K, P, C = 4, 2, 5, 6
MARGIN = 2**-10
"""So that a float32 distance can be exactly that."""
LOOSE = ParityLimits(max_abs=None, min_cosine=None, flag_margin=MARGIN)


@pytest.fixture
def golden() -> Golden:
    rng = np.random.default_rng(0)
    flags = np.zeros((N, K, P), bool)
    flags[:, :, 0] = True
    return Golden(
        input=np.zeros((N, 3, 14, 14), np.float32),
        embedding=rng.standard_normal((N, C)).astype(np.float32),
        flags=flags,
        flag_distance=np.full((N, K, P), 0.5, np.float32),
        patch_tokens=rng.standard_normal((N, P, C)).astype(np.float32),
        artifact_norm=rng.uniform(1, 2, (N, K, P)).astype(np.float32),
    )


def outputs(golden: Golden) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in golden.outputs().items()}


def flip(got: dict[str, np.ndarray], *places: tuple[int, int, int]) -> dict[str, np.ndarray]:
    for place in places:
        got["artifact_mask"][place] ^= True
    return got


def with_distance(golden: Golden, distances: dict[tuple[int, int, int], float]) -> Golden:
    array = golden.flag_distance.copy()
    for place, distance in distances.items():
        array[place] = distance
    return dataclasses.replace(golden, flag_distance=array)


@pytest.mark.parametrize("precision", LIMITS)
def test_equal_outputs_pass_every_limit(golden, precision):
    parity = compare(outputs(golden), golden, LIMITS[precision])
    assert parity.passed
    assert (parity.max_abs, parity.norm_relative, parity.flags_differing) == (0, 0, 0)
    assert parity.min_cosine == pytest.approx(1, abs=1e-12)
    assert parity.flags_checked


def test_flags_count_as_unchecked_where_the_model_has_no_such_output(golden):
    parity = compare({"embedding": golden.embedding}, golden, LIMITS["fp32"])
    assert parity.passed
    assert not parity.flags_checked


@pytest.mark.parametrize(
    ("near", "off", "passes", "left_out"),
    [
        ((0,), (0,), True, (0,)),
        ((0, 1), (0,), True, (0,)),  # a sample that keeps the limits stays in
        ((0, 1), (0, 1), True, (0, 1)),
        ((), (0,), False, ()),
        ((1,), (0,), False, ()),
        ((0, 1, 2), (0, 1, 2), False, (0, 1)),  # never more than half
    ],
    ids=str,
)
def test_a_sample_near_a_threshold_may_be_off_where_flags_are_no_output(near, off, passes, left_out, golden):
    limits = LIMITS["fp32"]
    golden = with_distance(golden, {(sample, 0, 1): limits.flag_margin / 2 for sample in near})
    got = {"embedding": golden.embedding.copy()}
    for sample in off:
        got["embedding"][sample, 0] += np.float32(0.5 - sample / 10)
    parity = compare(got, golden, limits)
    assert (parity.passed, parity.left_out) == (passes, left_out)
    assert not parity.flags_checked


def test_normalized_embeddings_are_held_as_closely_as_others(golden):
    limits = LIMITS["fp32"].model_copy(update={"normalized": True})
    got = {"embedding": golden.embedding.copy()}
    got["embedding"][0, 0] += np.float32(2**-14)  # 6e-5: under the limit, but not as a share of a length of 1
    assert compare(got, golden, LIMITS["fp32"]).passed
    parity = compare(got, golden, limits)
    assert parity.max_abs == pytest.approx(np.sqrt(C) * 2**-14, rel=1e-2)
    assert not parity.passed


@pytest.mark.parametrize("name", ["embedding", "patch_tokens"])
@pytest.mark.parametrize(("off", "passes"), [(2**-14, True), (2**-12, False)], ids=["inside", "outside"])
def test_max_abs_is_held_to_its_limit_in_every_row(golden, name, off, passes):
    got = outputs(golden)
    got[name][-1, ..., -1] += np.float32(off)
    parity = compare(got, golden, ParityLimits(max_abs=1e-4, min_cosine=None, flag_margin=None))
    assert parity.max_abs == pytest.approx(off, rel=1e-2)
    assert parity.passed == passes
    assert passes or parity.failures == (f"max abs {parity.max_abs:.3g} is over the limit 0.0001",)


def test_a_limit_that_is_just_met_is_met(golden):
    got = {"embedding": golden.embedding + np.float32(0)}
    got["embedding"][0, 0] = golden.embedding[0, 0] + np.float32(0.25)
    found = compare(got, golden, LOOSE)
    exact = ParityLimits(max_abs=found.max_abs, min_cosine=found.min_cosine, flag_margin=None)
    assert compare(got, golden, exact).passed
    below = ParityLimits(max_abs=np.nextafter(found.max_abs, 0).item(), min_cosine=None, flag_margin=None)
    assert not compare(got, golden, below).passed


@pytest.mark.parametrize("name", ["embedding", "patch_tokens"])
@pytest.mark.parametrize(("turn", "passes"), [(0.01, True), (0.02, False)], ids=["inside", "outside"])
def test_the_cosine_is_held_to_its_limit_in_the_worst_row(golden, name, turn, passes):
    got = outputs(golden)
    vector = getattr(golden, name)[(2, *[0] * (getattr(golden, name).ndim - 2))].astype(np.float64)
    aside = np.roll(vector, 1) - vector * (np.roll(vector, 1) @ vector) / (vector @ vector)
    aside *= np.linalg.norm(vector) / np.linalg.norm(aside)
    turned = np.cos(turn) * vector + np.sin(turn) * aside
    got[name][(2, *[0] * (getattr(golden, name).ndim - 2))] = turned
    parity = compare(got, golden, LIMITS["fp16"])
    assert parity.min_cosine == pytest.approx(np.cos(turn), abs=1e-6)
    assert parity.passed == passes  # cos 0.01 = 0.99995, cos 0.02 = 0.9998
    assert passes or "is under the limit 0.9999" in parity.failures[0]


def test_the_cosine_does_not_see_length_and_max_abs_does(golden):
    got = {"embedding": golden.embedding * 2}
    assert compare(got, golden, LIMITS["fp16"]).passed
    assert not compare(got, golden, LIMITS["fp32"]).passed


def test_a_zero_vector_has_cosine_0_and_fails(golden):
    got = outputs(golden)
    got["embedding"][1] = 0
    parity = compare(got, golden, LIMITS["fp16"])
    assert parity.min_cosine == 0
    assert not parity.passed


def test_two_zero_vectors_have_no_direction_to_agree_in(golden):
    zero = dataclasses.replace(golden, embedding=np.zeros_like(golden.embedding))
    assert not compare({"embedding": zero.embedding}, zero, LIMITS["fp16"]).passed
    assert compare({"embedding": zero.embedding}, zero, LIMITS["fp32"]).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["embedding", "patch_tokens", "artifact_norm"])
@pytest.mark.parametrize("limits", [*LIMITS.values(), LOOSE], ids=[*LIMITS, "none"])
def test_nan_and_infinity_fail_whatever_the_limits(golden, name, bad, limits):
    got = outputs(golden)
    got[name].flat[-1] = bad
    assert f"{name} holds NaN or infinity" in compare(got, golden, limits).failures


@pytest.mark.parametrize("name", ["embedding", "patch_tokens", "artifact_norm", "flag_distance"])
def test_nan_in_the_golden_sample_never_lets_anything_pass(golden, name):
    array = getattr(golden, name).copy()
    array.flat[0] = np.nan
    limits = ParityLimits(max_abs=1e9, min_cosine=-1, flag_margin=1e9)
    # A distance is asked for only where the flag differs; the figures are over the samples where none does.
    got = flip(outputs(golden), (0, 0, 0) if name == "flag_distance" else (3, 0, 0))
    assert compare(got, golden, limits).passed  # so the line below can fail
    assert not compare(got, dataclasses.replace(golden, **{name: array}), limits).passed


@pytest.mark.parametrize(("off", "passes"), [(0.9 * MARGIN, True), (1.1 * MARGIN, False)], ids=["inside", "outside"])
def test_norms_are_held_to_the_flags_margin(golden, off, passes):
    got = outputs(golden)
    got["artifact_norm"][3, 1, 4] *= np.float32(1 + off)
    parity = compare(got, golden, LOOSE)
    assert parity.norm_relative == pytest.approx(off, rel=1e-2)
    assert parity.passed == passes


@pytest.mark.parametrize(
    ("distance", "borderline"),
    [(0, True), (MARGIN / 2, True), (MARGIN, True), (MARGIN * 1.01, False), (np.inf, False)],
    ids=["on the threshold", "inside", "at the margin", "just outside", "far"],
)
def test_a_differing_flag_is_borderline_only_inside_the_margin(golden, distance, borderline):
    golden = with_distance(golden, {(1, 0, 3): distance})
    parity = compare(flip(outputs(golden), (1, 0, 3)), golden, LOOSE)
    assert parity.flags_differing == 1
    assert parity.passed == borderline
    assert parity.borderline == ((1,) if borderline else ())
    assert borderline or parity.failures[0].startswith("sample 1: 1 flags of chosen layer 0 differ")


def test_without_a_margin_no_flag_is_borderline(golden):
    golden = with_distance(golden, {(1, 0, 3): 0})
    limits = ParityLimits(max_abs=None, min_cosine=None, flag_margin=None)
    assert not compare(flip(outputs(golden), (1, 0, 3)), golden, limits).passed


def test_one_flag_outside_the_margin_fails_beside_one_inside(golden):
    golden = with_distance(golden, {(1, 0, 3): 0})
    assert not compare(flip(outputs(golden), (1, 0, 3), (1, 0, 4)), golden, LOOSE).passed


def test_flags_of_later_layers_follow_from_the_first_that_differs(golden):
    golden = with_distance(golden, {(1, 0, 3): 0})
    parity = compare(flip(outputs(golden), (1, 0, 3), (1, 1, 2)), golden, LOOSE)
    assert (parity.passed, parity.borderline, parity.flags_differing) == (True, (1,), 2)


def test_a_borderline_sample_is_left_out_of_the_figures(golden):
    golden = with_distance(golden, {(1, 0, 3): 0})
    got = flip(outputs(golden), (1, 0, 3))
    got["embedding"][1] += 1
    got["artifact_norm"][1] *= 2
    parity = compare(got, golden, LIMITS["fp32"])
    assert parity.passed
    assert (parity.max_abs, parity.norm_relative) == (0, 0)
    got["embedding"][2] += 1
    assert not compare(got, golden, LIMITS["fp32"]).passed


@pytest.mark.parametrize(("samples", "passes"), [(2, True), (3, False), (4, False)])
def test_at_most_half_of_the_samples_may_be_left_out(golden, samples, passes):
    places = [(sample, 0, 3) for sample in range(samples)]
    golden = with_distance(golden, dict.fromkeys(places, 0.0))
    got = flip(outputs(golden), *places)
    got["embedding"][:samples] += 1
    parity = compare(got, golden, LIMITS["fp32"])
    assert parity.borderline == tuple(range(samples))
    assert len(parity.left_out) == 2
    assert parity.passed == passes
    assert (parity.max_abs == 0) == passes


def test_the_borderline_samples_that_differ_most_are_left_out(golden):
    places = [(sample, 0, 3) for sample in range(4)]
    golden = with_distance(golden, dict.fromkeys(places, 0.0))
    got = flip(outputs(golden), *places)
    got["embedding"][1] += 1
    got["embedding"][3] += 2
    got["artifact_norm"][:, 1:] *= 2  # follows from the flags before it
    parity = compare(got, golden, LIMITS["fp32"])
    assert (parity.passed, parity.borderline, parity.left_out) == (True, (0, 1, 2, 3), (1, 3))
    got["artifact_norm"][0, 0] *= 2
    assert not compare(got, golden, LIMITS["fp32"]).passed


def test_a_lone_sample_is_never_left_out(golden):
    one = Golden(
        **{field.name: getattr(golden, field.name)[:1] for field in dataclasses.fields(golden) if field.name != "own"}
    )
    one = with_distance(one, {(0, 0, 3): 0})
    got = flip(outputs(one), (0, 0, 3))
    assert compare(got, one, LIMITS["fp32"]).left_out == ()
    got["embedding"] += 1
    assert not compare(got, one, LIMITS["fp32"]).passed


@pytest.mark.parametrize("name", ["embedding", "patch_tokens", "artifact_mask", "artifact_norm"])
@pytest.mark.parametrize(
    "cut", [np.s_[:1], np.s_[..., :1], np.s_[0]], ids=["one sample", "one column", "no batch dimension"]
)
def test_a_shape_that_numpy_would_broadcast_fails(golden, name, cut):
    got = outputs(golden)
    got[name] = got[name][cut]
    failures = compare(got, golden, LOOSE).failures
    assert failures == (f"{name} has shape {got[name].shape}, expected {golden.outputs()[name].shape}",)


def test_an_output_that_the_golden_sample_lacks_fails(golden):
    lacking = dataclasses.replace(golden, patch_tokens=None)
    assert compare(outputs(golden), lacking, LOOSE).failures == ("patch_tokens is not in the golden sample",)


def test_no_output_at_all_fails(golden):
    assert not compare({}, golden, LOOSE).passed
