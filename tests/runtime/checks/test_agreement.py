"""Two models' embeddings of the same pictures: each figure on cases that can be worked out by hand, or the long way."""

import math

import numpy as np
import pytest

from runtime.checks import agreement as module
from runtime.checks.agreement import agreement, share_of_neighbours


def random(n: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width), np.float32)


def units(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def groups(n: int, k: int, noise: float, seed: int = 0) -> np.ndarray:
    """n vectors around k directions."""
    rng = np.random.default_rng(seed)
    return (np.eye(k)[np.arange(n) % k] + noise * rng.standard_normal((n, k))).astype(np.float32)


def test_the_same_embeddings_agree_in_everything() -> None:
    got = agreement(random(60), random(60))
    assert (got.max_abs, got.neighbours, got.ari) == (0, 1, 1)
    np.testing.assert_allclose(got.cosines, 1, rtol=0, atol=1e-12)
    assert (got.neighbours_k, got.clusters) == (10, 6)


def test_lengths_matter_for_max_abs_alone() -> None:
    vectors = random(60)
    got = agreement(vectors * np.linspace(1, 3, 60, dtype=np.float32)[:, None], vectors)
    assert got.max_abs > 1
    assert (got.neighbours, got.ari) == (1, 1)
    np.testing.assert_allclose(got.cosines, 1, rtol=0, atol=1e-12)


def test_a_rotation_shows_in_cosines_and_not_in_neighbours() -> None:
    angle = 0.1
    rotation = np.eye(16)
    rotation[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    vectors = np.zeros((40, 16), np.float32)
    vectors[:, :2] = random(40, 2)
    got = agreement((vectors @ rotation).astype(np.float32), vectors)
    np.testing.assert_allclose(got.cosines, math.cos(angle), rtol=0, atol=1e-6)
    assert got.neighbours > 0.999


def test_max_abs_and_cosines_by_hand() -> None:
    got = agreement(np.array([[3, 4], [0, 2]], np.float32), np.array([[4, 3], [0, 5]], np.float32))
    assert got.max_abs == 3
    np.testing.assert_allclose(got.cosines, [24 / 25, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_share_of_neighbours_is_that_of_the_lists(chunk, monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    a, b = units(random(50)), units(random(50) + 0.5 * random(50, seed=1))
    shares = []
    for row in range(50):
        lists = []
        for vectors in (a, b):
            order = np.argsort(-(vectors @ vectors[row]))
            lists.append(set(order[order != row][:10].tolist()))
        shares.append(len(lists[0] & lists[1]) / 10)
    assert 0.3 < np.mean(shares) < 0.9
    assert share_of_neighbours(a, b, 10) == pytest.approx(np.mean(shares))


def test_swapped_rows_show_in_the_neighbours() -> None:
    vectors = random(100)
    swapped = vectors.copy()
    swapped[[3, 70]] = swapped[[70, 3]]
    got = agreement(swapped, vectors)
    assert 0.7 < got.neighbours < 0.99
    assert agreement(vectors[::-1].copy(), vectors).neighbours < 0.3


def test_copies_of_a_picture_may_stand_for_each_other() -> None:
    vectors = np.repeat(random(5), 20, axis=0)  # each with 19 copies, of which any 10 are the nearest
    noise = 1e-9 * random(100, seed=1).astype(np.float64)
    assert share_of_neighbours(units(vectors) + noise, units(vectors), 10) == 1
    assert share_of_neighbours(units(vectors), units(vectors) + noise, 10) == 1


def test_embeddings_that_are_all_the_same_are_no_neighbours() -> None:
    got = agreement(np.ones((100, 16), np.float32), random(100))
    assert got.neighbours < 0.3
    assert got.ari < 0.1


def test_clusters_that_agree_and_that_do_not() -> None:
    expected = groups(200, 5, 0.05)
    assert agreement(groups(200, 5, 0.05, seed=1), expected, 5).ari == 1
    assert agreement(expected[np.random.default_rng(0).permutation(200)], expected, 5).ari < 0.1
    half = expected.copy()
    half[:100] = half[:100][::-1]
    assert 0 < agreement(half, expected, 5).ari < 0.9


def test_noise_does_not_part_clusterings_where_there_are_no_clusters() -> None:
    expected = random(2000, 64)  # every start ends elsewhere
    assert agreement(expected + 1e-3 * random(2000, 64, seed=2), expected).ari > 0.99
    assert agreement(expected + 1.0 * random(2000, 64, seed=2), expected).ari < 0.8
    assert agreement(np.roll(expected, 1, axis=0), expected).ari < 0.01


def test_the_seed_gives_the_start() -> None:
    a, b = random(300), random(300) + 0.3 * random(300, seed=1)
    results = [agreement(a, b, 10, seed).ari for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(
    ("n", "neighbours_k", "clusters"), [(1, 0, 0), (2, 1, 0), (11, 10, 0), (19, 10, 0), (20, 10, 2), (5000, 10, 10)]
)
def test_few_pictures_have_fewer_neighbours_and_clusters(n, neighbours_k, clusters) -> None:
    got = agreement(random(n, 4), random(n, 4))
    assert (got.neighbours_k, got.clusters) == (neighbours_k, clusters)
    assert (got.neighbours is None) == (n == 1)
    assert (got.ari is None) == (clusters == 0)


def test_clusters_may_be_as_many_as_pictures_even_with_copies() -> None:
    vectors = np.repeat(random(4), 2, axis=0)
    assert agreement(vectors, vectors, 8).ari == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_an_embedding_that_has_no_direction_makes_the_figures_nan(bad) -> None:
    vectors = random(40)
    vectors[7] = bad
    for got in (agreement(vectors, random(40)), agreement(random(40), vectors)):
        assert np.isnan(got.cosines).tolist() == [row == 7 for row in range(40)]
        assert np.isnan(got.neighbours)
        assert np.isnan(got.ari)
        assert np.isfinite(got.max_abs) == (bad == 0)


def test_memory_does_not_grow_with_the_square_of_the_pictures(monkeypatch) -> None:
    seen = []
    original = module._cosines_with_others

    def watched(vectors, rows):
        cosines = original(vectors, rows)
        seen.append(cosines.size)
        return cosines

    monkeypatch.setattr(module, "_cosines_with_others", watched)
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    agreement(random(1000, 4), random(1000, 4))
    assert max(seen) <= 10_000
    assert sum(seen) == 2 * 1000 * 1000
