"""The helper that chooses which combinations of options run on every commit."""

import itertools

import pytest
from matrix import over, pairwise

SIZES = [(2, 2), (2, 2, 2), (11, 3, 4), (4, 3, 6), (4, 3, 2, 2), (9, 5, 3), (5, 5, 5, 5), (1, 3, 2), (2, 1)]


def pairs(rows) -> set:
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_all_pairs_are_chosen_by_few_combinations(sizes):
    chosen = pairwise(sizes)
    product = list(itertools.product(*map(range, sizes)))
    assert set(chosen) <= set(product)
    assert pairs(chosen) == pairs(product)
    largest = sorted(sizes)[-2:]
    assert len(chosen) <= 1.5 * largest[0] * largest[1]  # fewer than their product can't hold the pairs of these two
    assert len(set(chosen)) == len(chosen)


def test_without_any_one_of_the_chosen_a_pair_is_missing_in_small_matrices():
    for sizes in ((2, 2), (2, 2, 2), (3, 2, 2)):
        chosen = pairwise(sizes)
        for one in chosen:
            assert pairs(row for row in chosen if row != one) != pairs(chosen)


def test_the_same_seed_gives_the_same_choice():
    assert pairwise((4, 3, 6)) == pairwise((4, 3, 6))
    assert pairwise((4, 3, 6), seed=1) != pairwise((4, 3, 6))


def test_quick_and_slow_cases_together_are_the_full_product():
    letters, numbers, signs = "abc", (1, 2, 3), [pytest.param("+", id="plus"), pytest.param("-", id="minus")]
    names, rows = over(letter=letters, number=numbers, sign=signs).args
    assert names == ("letter", "number", "sign")
    assert [row.values for row in rows] == list(itertools.product(letters, numbers, "+-"))
    assert [row.id for row in rows][:3] == ["a-1-plus", "a-1-minus", "a-2-plus"]
    quick = [row.values for row in rows if not row.marks]
    assert pairs(quick) == pairs(row.values for row in rows)
    assert 9 <= len(quick) < len(rows) == 18
    assert {mark.name for row in rows for mark in row.marks} == {"slow"}


def test_marks_of_a_value_stay_with_it():
    _, rows = over(one=[pytest.param(1, marks=pytest.mark.gpu), 2], two=[1, 2], three=[1, 2]).args
    assert [row.values[0] for row in rows if "gpu" in {mark.name for mark in row.marks}] == [1, 1, 1, 1]
