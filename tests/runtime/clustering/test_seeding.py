"""Greedy k-means++: the same distribution as one that draws step by step, few products, the same on every device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.clustering import kmeans, seeding
from runtime.clustering.kmeans import cluster
from runtime.clustering.points import NumpyPoints, Points, SquaredFrom
from runtime.clustering.seeding import plus_plus, sample_rows
from runtime.clustering.torch_points import TorchPoints
from runtime.contract.errors import InputError


def step_by_step(points: np.ndarray, k: int, generator: np.random.Generator) -> list[int]:
    """Greedy k-means++ as its authors have it, in float64, each candidate drawn when it is needed."""
    apart = ((points[:, None].astype(np.float64) - points) ** 2).sum(axis=2)
    chosen = [int(generator.integers(len(points)))]
    while len(chosen) < k:
        closest = apart[chosen].min(axis=0)
        drawn = generator.choice(len(points), 2 + int(np.log(k)), p=closest / closest.sum())
        chosen.append(int(drawn[np.minimum(closest, apart[drawn]).sum(axis=1).argmin()]))
    return chosen


class WithoutRejection:
    """A generator whose second shares are so low that every candidate stays."""

    def __init__(self, seed: int) -> None:
        self._real = np.random.default_rng(seed)

    def integers(self, n: int) -> int:
        return int(self._real.integers(n))

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        return np.stack([self._real.random(shape[1]), np.full(shape[1], 1e-12)])


def left(points: np.ndarray, starts: np.ndarray) -> float:
    """Sum of the squared distances of points to the nearest of some starts."""
    apart = ((points[:, None].astype(np.float64) - starts) ** 2).sum(axis=2)
    return float(apart.min(axis=1).sum())


def test_starts_are_as_good_as_those_of_steps_that_each_draw_their_own():
    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((40, 2)), 4, axis=0) + 0.02 * rng.standard_normal((160, 2))
    points = points.astype(np.float32)
    expected = [left(points, points[step_by_step(points, 30, np.random.default_rng(seed))]) for seed in range(300)]

    def standard_errors(generator: Callable[[int], Any]) -> float:
        found = [left(points, plus_plus(NumpyPoints(points), 30, generator(seed))) for seed in range(300)]
        return float((np.mean(found) - np.mean(expected)) / np.sqrt((np.var(found) + np.var(expected)) / 300))

    assert abs(standard_errors(np.random.default_rng)) < 3
    assert standard_errors(WithoutRejection) > 5  # so the line above can fail


def test_starts_are_as_good_as_scikit_learns():
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 8))[rng.integers(0, 60, 1500)] + 0.5 * rng.standard_normal((1500, 8))
    points = points.astype(np.float32)
    seeds = range(10)
    mine = np.mean([left(points, plus_plus(NumpyPoints(points), 60, np.random.default_rng(seed))) for seed in seeds])
    theirs = np.mean([left(points, kmeans_plusplus(points, 60, random_state=seed)[0]) for seed in seeds])
    random = [left(points, points[np.random.default_rng(seed).choice(1500, 60, replace=False)]) for seed in seeds]
    assert mine == pytest.approx(theirs, rel=0.03)
    assert np.mean(random) > 1.15 * theirs


class Counting(NumpyPoints):
    """Points that record how many rows each product of matrices had."""

    def __init__(self, points: np.ndarray) -> None:
        super().__init__(points)
        self.products: list[int] = []

    def squared_from(self) -> SquaredFrom:
        real = super().squared_from()
        return lambda rows: self.products.append(len(rows)) or real(rows)


def test_thousands_of_centroids_take_few_products_and_few_vain_draws():
    held = Counting(np.random.default_rng(0).standard_normal((4096, 32), np.float32))
    plus_plus(held, 1000, np.random.default_rng(0))
    assert len(held.products) < 1000 / 15
    assert sum(held.products) < 1.1 * 1000 * (2 + int(np.log(1000)))
    assert max(held.products) <= seeding._DRAWN


def test_no_more_distances_exist_at_a_time_than_are_allowed(monkeypatch):
    monkeypatch.setattr(seeding, "_PAIRS", 100 * 2000)
    held = Counting(np.random.default_rng(0).standard_normal((2000, 8), np.float32))
    plus_plus(held, 300, np.random.default_rng(0))
    assert max(held.products) <= 100
    monkeypatch.setattr(seeding, "_PAIRS", 1)
    held.products.clear()
    plus_plus(held, 300, np.random.default_rng(0))
    assert set(held.products) == {1, 2 + int(np.log(300))}  # a step is never split


def test_many_equal_points_are_chosen_once_each(on):
    distinct = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)
    rows = np.concatenate([np.arange(40), np.zeros(2000, np.intp)])  # one of them 2,001 times
    starts = plus_plus(on(distinct[rows]), 40, np.random.default_rng(0))
    assert len(np.unique(starts, axis=0)) == 40


def test_where_all_equal_some_chosen_point_any_others_follow(on):
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    starts = plus_plus(on(points), 7, np.random.default_rng(0))
    assert starts.shape == (7, 3)
    assert len(np.unique(starts, axis=0)) == 3


def test_every_point_may_be_chosen(on):
    points = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    starts = plus_plus(on(points), 30, np.random.default_rng(0))
    assert sorted(map(tuple, starts)) == sorted(map(tuple, points.astype(np.float64)))


def test_a_device_chooses_the_points_that_numpy_does():
    pytest.importorskip("torch")
    points = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    places = NumpyPoints(points), TorchPoints(points, "torch-cpu")
    one, other = (plus_plus(place, 200, np.random.default_rng(5)) for place in places)
    assert np.array_equal(one, other)


def test_squared_distances_are_those_of_float64_even_of_near_points(on):
    rng = np.random.default_rng(0)
    points = 50 + rng.standard_normal((600, 16))
    points[300:] = points[:300] + 1e-4 * rng.standard_normal((300, 16))  # float32 products lose these
    points = points.astype(np.float32)
    rows = np.array([3, 0, 599, 3])
    expected = ((points[rows][:, None].astype(np.float64) - points) ** 2).sum(axis=2)
    found = on(points).squared_from()(rows)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert found[0, 3] == found[3, 3] == found[1, 0] == 0


def test_points_are_not_changed(on):
    points = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    before = points.copy()
    on(points).squared_from()(np.array([1]))
    assert np.array_equal(points, before)


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_what_float32_can_not_square_is_refused(scale, on):
    points = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32) * np.float32(scale)
    with pytest.raises(InputError, match="can't be compared in float32"):
        on(points).squared_from()


def test_a_clustering_on_a_device_starts_from_the_devices_points(monkeypatch):
    pytest.importorskip("torch")
    given: list[Points] = []
    real = kmeans.plus_plus
    monkeypatch.setattr(kmeans, "plus_plus", lambda points, *rest: given.append(points) or real(points, *rest))
    points = np.random.default_rng(0).random((5000, 4), np.float32)
    cluster(points, 7, n_init=2, max_iter=1, device="torch-cpu")
    assert [type(one) for one in given] == [TorchPoints, TorchPoints]
    assert [len(one) for one in given] == [4096, 4096]


@pytest.mark.parametrize(("n", "k", "expected"), [(100, 9, 100), (5000, 9, 4096), (50_000, 2000, 8000), (9, 9, 9)])
def test_the_sample_has_four_points_a_cluster_or_4096(n, k, expected):
    rows = sample_rows(n, k, np.random.default_rng(0))
    assert len(rows) == expected
    assert (np.diff(rows) > 0).all()
