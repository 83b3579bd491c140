"""Which images stand for a cluster, on points solved by hand; the confusion matrix."""

import numpy as np
import pytest
from reports import described

from runtime.commands import report_clusters as choose
from runtime.commands.report_clusters import count_confusion
from runtime.contract.labels import NOISE

LINE = np.array([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0], [12.0], [5.8]], np.float32)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 0], np.int32)
CENTRES = np.array([[1.0], [11.0]], np.float32)


def key(row: int) -> tuple[str, str]:
    return "/root", str(row)


def rows(images) -> list[int]:
    return [int(image.key[1]) for image in images]


def test_a_small_cluster_is_shown_whole_most_central_first():
    first, second = described(LINE, LABELS, key, centroids=CENTRES)
    assert (first.number, first.size, second.number, second.size) == (0, 5, 1, 3)
    assert rows(first.central) == [1, 0, 2, 3, 7]
    assert (first.borderline, first.outliers) == ([], [])
    assert [image.distance for image in second.central] == [0, 1, 1]


def test_borderline_and_outliers_are_by_margin_and_distance(monkeypatch):
    monkeypatch.setattr(choose, "MOST_PER_CLUSTER", 4)
    points = np.array([[0, 0], [0.1, 0], [0.2, 0], [0, 8], [2, 6], [3, 0], [10, 0], [10, 0.1]], np.float32)
    labels = np.array([0] * 6 + [1] * 2)
    first, _ = described(points, labels, key, centroids=np.array([[0, 0], [10, 0]], np.float32))
    assert rows(first.central) == [0, 1]
    assert rows(first.borderline) == [4]  # its margin is 10 - 6.3; row 5 is nearer to the other centre, but by 7 - 3
    assert rows(first.outliers) == [3]
    assert first.borderline[0].nearest_other == 1
    assert first.borderline[0].distance == pytest.approx(40**0.5)


def test_no_image_is_shown_twice_and_each_strip_is_in_order():
    points = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    labels = np.arange(500) % 3
    for cluster in described(points, labels, key):
        shown = rows([*cluster.central, *cluster.borderline, *cluster.outliers])
        assert len(shown) == len(set(shown)) == choose.MOST_PER_CLUSTER
        assert all(labels[row] == cluster.number for row in shown)
        near, far = ([image.distance for image in strip] for strip in (cluster.central, cluster.outliers))
        assert near == sorted(near)
        assert far == sorted(far, reverse=True)
        assert near[-1] < far[-1]


def test_one_cluster_has_no_borderline():
    points = np.random.default_rng(2).standard_normal((60, 4)).astype(np.float32)
    (only,) = described(points, np.zeros(60, np.int32), key)
    assert only.size == 60
    assert only.central
    assert only.outliers
    assert not only.borderline


def test_noise_comes_last_as_a_sample():
    labels = np.array([NOISE, 0, 0, NOISE, 1, 1, 1, NOISE])
    clusters = described(LINE, labels, key, classes=list("aabbccca"))
    assert [cluster.number for cluster in clusters] == [0, 1, NOISE]
    assert rows(clusters[-1].central) == [0, 3, 7]
    assert clusters[-1].size == 3
    assert clusters[-1].label is None  # it is no group, so no class is the wrong one in it
    assert clusters[-1].central[0].distance is None


def test_all_noise_is_one_group():
    (only,) = described(LINE, np.full(8, NOISE), key)
    assert (only.number, only.size) == (NOISE, 8)


def test_an_empty_cluster_keeps_its_place():
    clusters = described(LINE, np.where(LABELS == 1, 2, 0), key)
    assert [(cluster.number, cluster.size) for cluster in clusters] == [(0, 5), (1, 0), (2, 3)]
    assert not clusters[1].central


@pytest.mark.parametrize(("k", "per"), [(10, 24), (100, 24), (400, 6), (1000, 3)])
def test_the_more_clusters_the_fewer_images_of_each(k, per):
    points = np.random.default_rng(3).standard_normal((k * 30, 3)).astype(np.float32)
    clusters = described(points, np.arange(k * 30) % k, key)
    shown = {len([*one.central, *one.borderline, *one.outliers]) for one in clusters}
    assert shown == {per}
    assert all(one.central and one.borderline and one.outliers for one in clusters)


def test_clusters_beyond_the_thousandth_show_no_images():
    points = np.random.default_rng(4).standard_normal((1010, 3)).astype(np.float32)
    clusters = described(points, np.arange(1010), key)
    assert [bool(one.central) for one in clusters] == [True] * 1000 + [False] * 10


def test_most_frequent_class_of_equals_is_the_first_by_name():
    first, second = described(LINE, LABELS, key, classes=["b", "b", "a", "a", "c", "c", "d", "z"])
    assert (first.label, first.label_count) == ("a", 2)
    assert (second.label, second.label_count) == ("c", 2)


def test_confusion_counts_and_matches_as_acc_does():
    found = count_confusion(np.array([1, 1, 0, 0, 0, NOISE]), ["a", "a", "a", "b", "b", "b"])
    assert found.classes == ["a", "b"]
    assert found.clusters == [NOISE, 0, 1]
    assert found.counts.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert found.class_of_cluster == [None, "b", "a"]
