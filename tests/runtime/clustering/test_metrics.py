"""ACC, NMI and ARI against contingency tables worked out by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clustering.metrics import contingency, folder_classes, score

EXACT = 1e-12
"""The figures are short sums of float64."""


def points(table: list[list[int]]) -> tuple[list[str], np.ndarray]:
    """Classes a, b, ... and labels of points that are so distributed."""
    classes, labels = [], []
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            classes += [chr(ord("a") + row)] * count
            labels += [column] * count
    return classes, np.array(labels, np.int32)


def test_the_contingency_table_counts_classes_by_clusters():
    table = contingency(np.array([0, 0, 1, 1, 1]), np.array([0, 2, 2, 2, 1], np.int32), 2, 4)
    assert table.tolist() == [[1, 0, 1, 0], [0, 1, 2, 0]]


def entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares if share)


# Six points: clusters of 3 and 3, classes of 4 and 2. ARI: 4 pairs together in both, 6 + 1 by class, 3 + 3 by
# cluster, 15 in all: (4 - 7 * 6 / 15) / ((7 + 6) / 2 - 7 * 6 / 15).
HALF = entropy(1 / 2, 1 / 2)
THIRDS = entropy(2 / 3, 1 / 3)
MUTUAL = THIRDS + HALF - entropy(1 / 2, 1 / 6, 1 / 3)


@pytest.mark.parametrize(
    ("table", "acc", "nmi", "ari", "matching"),
    [
        ([[3, 0], [0, 2]], 1, 1, 1, ("a", "b")),
        ([[0, 3], [2, 0]], 1, 1, 1, ("b", "a")),
        ([[3, 1], [0, 2]], 5 / 6, MUTUAL / ((HALF + THIRDS) / 2), (4 - 2.8) / (6.5 - 2.8), ("a", "b")),
        ([[1, 1], [1, 1]], 1 / 2, 0, -0.5, None),
        ([[2], [2]], 1 / 2, 0, 0, ("a",)),
        ([[2, 2]], 1 / 2, 0, 0, None),
        ([[4]], 1, 1, 1, ("a",)),
        ([[1, 1, 0], [0, 0, 2]], 3 / 4, None, None, None),
        ([[5, 4], [4, 0]], 8 / 13, None, None, ("b", "a")),
    ],
    ids=["equal", "renamed", "one astray", "independent", "one cluster", "one class", "one of both", "split",
         "the best row is not taken greedily"],
)  # fmt: skip
def test_scores_equal_those_worked_out_by_hand(table, acc, nmi, ari, matching):
    classes, labels = points(table)
    metrics = score(classes, labels, len(table[0]))
    assert metrics.acc == pytest.approx(acc, abs=EXACT)
    assert nmi is None or metrics.nmi == pytest.approx(nmi, abs=EXACT)
    assert ari is None or metrics.ari == pytest.approx(ari, abs=EXACT)
    assert matching is None or metrics.class_of_cluster == matching
    assert metrics.classes == tuple("ab"[: len(table)])


def test_clusters_beyond_the_classes_get_none():
    classes, labels = points([[2, 1, 0], [0, 0, 3]])
    assert score(classes, labels, 3).class_of_cluster == ("a", None, "b")


def test_a_class_for_each_point_is_no_occasion_for_a_warning():
    # Warnings are errors in these tests; scikit-learn has one for this.
    metrics = score([f"class {number}" for number in range(50)], np.zeros(50, np.int32), 1)
    assert (metrics.acc, metrics.ari, len(metrics.classes)) == (1 / 50, 0, 50)


@pytest.mark.parametrize(("classes", "labels"), [([], []), (["a"], [0, 0])], ids=["none", "unequal"])
def test_nothing_to_compare_is_our_own_bug(classes, labels):
    with pytest.raises(ValueError, match="classes for"):
        score(classes, np.array(labels, np.int32), 1)


sets = st.integers(1, 5).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, k - 1)), min_size=1, max_size=40),
        st.permutations(range(k)),
    )
)


@settings(deadline=None, derandomize=True)
@given(sets)
def test_accuracy_is_the_best_over_all_assignments_and_within_its_bounds(drawn):
    k, pairs, _ = drawn
    classes, labels = [name for name, _ in pairs], np.array([label for _, label in pairs], np.int32)
    metrics = score(classes, labels, k)
    names = list(metrics.classes) + [""] * k  # a cluster may go without a class
    best = max(
        sum(given[label] == name for name, label in pairs) for given in set(permutations(names, k))
    ) if math.perm(len(names), k) <= 20_000 else None  # fmt: skip
    assert best is None or metrics.acc == best / len(pairs)
    largest = max(pairs.count(pair) for pair in pairs)
    assert metrics.acc >= largest / len(pairs)  # one cell of the table can always be had
    assert metrics.acc >= 1 / max(k, len(metrics.classes))  # the mean over all assignments
    assert metrics.acc <= 1
    assert -EXACT <= metrics.nmi <= 1 + EXACT
    assert metrics.ari <= 1 + EXACT


@settings(deadline=None, derandomize=True)
@given(sets)
def test_other_names_and_another_order_change_no_score(drawn):
    k, pairs, permutation = drawn
    classes, labels = [name for name, _ in pairs], np.array([label for _, label in pairs], np.int32)
    one = score(classes, labels, k)
    renamed = np.array(permutation, np.int32)[labels][::-1]
    other = score([f"class {'dcba'['abcd'.index(name)]}" for name in reversed(classes)], renamed, k)
    for name in ("acc", "nmi", "ari"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=EXACT)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.permutations(range(4)))
def test_permuted_classes_score_1(truth, permutation):
    metrics = score([str(value) for value in truth], np.array([permutation[value] for value in truth], np.int32), 4)
    assert metrics.acc == 1
    assert metrics.nmi == pytest.approx(1, abs=EXACT)
    assert metrics.ari == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("/data", "cats/1.jpg", "cats"),
        ("/data", "train/cats/1.jpg", "cats"),
        ("/data/cats", "1.jpg", "cats"),
        ("/", "1.jpg", ""),
        ("/data", "[bold]é 猫\n/1.jpg", "[bold]é 猫\n"),
        ("/data", "a\\b/1.jpg", "a\\b"),
        ("/data", "cats.jpg/cats.jpg", "cats.jpg"),
    ],
    ids=["folder", "deeper folder", "root itself", "no folder", "odd name", "backslash", "folder like a file"],
)
def test_the_class_is_the_immediate_folder(root, path, name):
    assert folder_classes([root], [path]) == [name]
