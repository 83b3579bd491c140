"""The choice of images by --limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.contract.errors import UsageError
from runtime.evaluation.datasets.dataset import stratified

UNEVEN = np.repeat([0, 1, 2], [97, 2, 1]).astype(np.int32)


def test_each_class_keeps_its_share_and_has_one_at_least() -> None:
    assert np.bincount(UNEVEN[stratified(UNEVEN, 10, 0)]).tolist() == [8, 1, 1]
    even = np.tile(np.arange(10, dtype=np.int32), 100)
    assert np.bincount(even[stratified(even, 200, 0)]).tolist() == [20] * 10


def test_a_seed_chooses_always_the_same_and_another_others() -> None:
    one, two, other = (stratified(UNEVEN, 20, seed).tolist() for seed in (3, 3, 4))
    assert one == two != other


def test_a_smaller_choice_lies_in_a_larger_so_that_the_cache_serves_it() -> None:
    even = np.tile(np.arange(10, dtype=np.int32), 100)
    assert set(stratified(even, 100, 0)) < set(stratified(even, 200, 0))


def test_fewer_than_the_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit 2: there are 3 classes, each needs an image at least"):
        stratified(UNEVEN, 2, 0)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 5))
def test_as_many_as_asked_for_and_none_twice(drawn, limit, seed) -> None:
    labels = np.array(drawn, np.int32)
    if limit < len(set(drawn)):
        return
    rows = stratified(labels, limit, seed)
    assert len(rows) == len(set(rows.tolist())) == min(limit, len(drawn))
    assert rows.tolist() == sorted(rows.tolist())
    assert set(labels[rows].tolist()) == set(drawn)
    counts, all_of = np.bincount(labels[rows], minlength=7), np.bincount(labels, minlength=7)
    assert (counts <= all_of).all()
