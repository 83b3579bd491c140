"""Rounding that makes up for its errors: less is lost where channels are correlated, nothing changes where not."""

import numpy as np
import pytest

from exporter.quantization import compensated_rounding
from exporter.quantization.compensated_rounding import Moments, round_to_int8

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((300, 40)).astype(np.float32)
SCALES = (np.abs(WEIGHT).max(axis=0) / 127).astype(np.float32)


def error(tokens: np.ndarray, whole: np.ndarray) -> float:
    return float(np.square(tokens @ (whole * SCALES - WEIGHT)).mean())


def test_far_less_is_lost_where_channels_are_correlated_on_tokens_that_were_not_seen():
    tokens = (RNG.standard_normal((1000, 30)) @ RNG.standard_normal((30, 300))).astype(np.float32)
    got = round_to_int8(WEIGHT, SCALES, Moments.of(tokens[:500]))
    assert error(tokens[500:], got) < 0.2 * error(tokens[500:], np.rint(WEIGHT / SCALES))


def test_independent_channels_are_rounded_to_the_nearest():
    tokens = np.diag(RNG.uniform(0.5, 2, 300)).astype(np.float32)
    np.testing.assert_array_equal(round_to_int8(WEIGHT, SCALES, Moments.of(tokens)), np.rint(WEIGHT / SCALES))


def test_the_size_of_blocks_changes_next_to_nothing(monkeypatch):
    moments = Moments.of(RNG.standard_normal((400, 300)).astype(np.float32))
    whole = round_to_int8(WEIGHT, SCALES, moments)
    monkeypatch.setattr(compensated_rounding, "BLOCK", 7)
    assert (whole != round_to_int8(WEIGHT, SCALES, moments)).mean() < 0.01


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_channels_of_nothing_are_rounded_all_the_same(value):
    moments = Moments.of(np.full((5, 300), value, np.float32))
    assert np.isfinite(moments.factor).all()
    np.testing.assert_array_equal(round_to_int8(WEIGHT, SCALES, moments), np.rint(WEIGHT / SCALES))


def test_values_stay_within_the_levels():
    tokens = (RNG.standard_normal((400, 3)) @ RNG.standard_normal((3, 300)) * 50).astype(np.float32)
    whole = round_to_int8(WEIGHT, SCALES, Moments.of(tokens))
    assert np.abs(whole.astype(int)).max() <= 127
