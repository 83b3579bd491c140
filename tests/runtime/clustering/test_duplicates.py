"""Near-duplicates beside brute force, groups solved by hand, which one stays, and what an odd store gives."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from stores import open_writer

from runtime.clustering import duplicates
from runtime.clustering.duplicates import ALONE, find_duplicates
from runtime.contract.errors import UsageError
from runtime.store import Store


def written(folder, vectors) -> Store:
    with open_writer(folder, {}) as writer:
        writer.add(["/root"] * len(vectors), [f"{row}.png" for row in range(len(vectors))], np.float32(vectors))
    return Store(folder)


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def made(n: int, seed: int = 0, width: int = 24) -> np.ndarray:
    """Rows in overlapping groups; a third of them have a near-duplicate, some nearer to the threshold than others."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((12, width))[rng.integers(0, 12, n)] + 0.6 * rng.standard_normal((n, width))
    of = rng.choice(n, n // 3, replace=False)
    base[rng.permutation(n)[: len(of)]] = base[of] * (1 + rng.uniform(0, 0.5, (len(of), 1)) * rng.choice([-0.5, 0.5]))
    base += rng.uniform(0, 0.2, (n, 1)) * rng.standard_normal((n, width))
    return base.astype(np.float32)


def pairs_of(vectors, threshold: float) -> np.ndarray:
    """(n, n), in float64: whether two rows are duplicates."""
    units = np.float64(vectors) / np.linalg.norm(np.float64(vectors), axis=1, keepdims=True)
    return units @ units.T >= threshold


@pytest.fixture
def clustered(monkeypatch):
    """Clusters also of few rows, in several blocks."""
    monkeypatch.setattr(duplicates, "_BY_BRUTE_FORCE", 10)
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", 37)
    monkeypatch.setattr(duplicates, "_OTHERS", 29)


@pytest.mark.parametrize("most_pairs", [duplicates._MOST_PAIRS, 50], ids=["all pairs held", "few pairs held"])
@pytest.mark.parametrize("threshold", [0.99, 0.97, 0.9])
def test_groups_are_those_of_brute_force_across_clusters_too(threshold, most_pairs, tmp_path, clustered, monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", most_pairs)
    vectors = made(1500)
    found = find_duplicates(written(tmp_path / "store", vectors), threshold, "first", tmp_path)
    count, labels = connected_components(pairs_of(vectors, threshold), directed=False)
    assert 200 < count < 1490
    sizes = np.bincount(labels)
    np.testing.assert_array_equal(found.groups == ALONE, sizes[labels] == 1)
    of_group = {(int(label), int(group)) for label, group in zip(labels, found.groups, strict=True) if group != ALONE}
    assert len(of_group) == len({label for label, _ in of_group}) == len({group for _, group in of_group})
    assert found.sizes.tolist() == sorted(sizes[sizes > 1], reverse=True)
    assert found.kept.sum() == count


def pairs_found(store, threshold, work, monkeypatch) -> int:
    """Number of pairs that are compared and are duplicates, each counted once."""
    seen = set()
    add = duplicates._Pairs.add

    def noted(self, one, other):
        seen.update(tuple(sorted(pair)) for pair in zip(one.tolist(), other.tolist(), strict=True))
        add(self, one, other)

    with monkeypatch.context() as patch:
        patch.setattr(duplicates._Pairs, "add", noted)
        find_duplicates(store, threshold, "first", work)
    return len(seen)


def test_probing_finds_pairs_that_clusters_alone_would_miss(tmp_path, clustered, monkeypatch):
    vectors = made(1500)
    store = written(tmp_path / "store", vectors)
    expected = int(np.triu(pairs_of(vectors, 0.97), 1).sum())
    assert pairs_found(store, 0.97, tmp_path, monkeypatch) == expected
    monkeypatch.setattr(duplicates, "_reach", lambda threshold: -np.inf)  # no plane is near
    assert pairs_found(store, 0.97, tmp_path, monkeypatch) < expected  # so the first assertion can fail


@pytest.mark.parametrize("spectrum", [0.0, 1.0, 2.0], ids=["flat", "falling", "steep"])
@pytest.mark.parametrize("threshold", [0.999, 0.97, 0.8])
def test_shortened_vectors_miss_no_pair(spectrum, threshold, tmp_path, clustered, monkeypatch):
    width = 128
    vectors = made(700, width=width) / np.arange(1, width + 1) ** spectrum
    chosen = []
    shortened = duplicates._shortened
    monkeypatch.setattr(duplicates, "_COST_OF_CANDIDATE", 0)  # the shortest, which lets most pairs through
    monkeypatch.setattr(duplicates, "_shortened", lambda *given: chosen.append(shortened(*given)) or chosen[0])
    store = written(tmp_path / "store", vectors)
    expected = int(np.triu(pairs_of(np.float32(vectors), threshold), 1).sum())
    assert pairs_found(store, threshold, tmp_path, monkeypatch) == expected > 0
    assert chosen[0].width == width // 32 + 1


@pytest.mark.parametrize("spectrum", [0.0, 1.0])
def test_a_product_of_shortened_vectors_is_never_below_the_cosine(spectrum):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 96)) / np.arange(1, 97) ** spectrum
    vectors[200:] = vectors[:200] + 1e-4 * rng.standard_normal((200, 96))
    units = np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    axes = np.linalg.eigh(units.T.astype(np.float64) @ units)[1][:, ::-1]
    for p in (1, 8, 90):
        short = duplicates._Shortened(axes[:, :p])(units)
        assert short.shape == (400, p + 1)
        bound = np.float64(short) @ np.float64(short).T
        assert (bound >= np.float64(units) @ np.float64(units).T - 1e-6).all()


def test_a_chain_is_one_group_and_the_largest_group_comes_first(tmp_path):
    # cos 10 degrees is 0.985, cos 20 degrees 0.940
    store = written(tmp_path / "store", at(90, 0, 10, 20, 94, 180))
    found = find_duplicates(store, 0.97, "first", tmp_path)
    assert found.groups.tolist() == [1, 0, 0, 0, 1, ALONE]
    assert found.sizes.tolist() == [3, 2]
    assert found.kept.tolist() == [True, True, False, False, False, True]
    expected = [1, 1, np.cos(np.radians(10)), np.cos(np.radians(20)), np.cos(np.radians(4)), np.nan]
    np.testing.assert_allclose(found.similarities, expected, rtol=1e-6)


@pytest.mark.parametrize(("keep", "row"), [("first", 0), ("last", 2), ("nearest", 1), ("farthest", 2)])
def test_the_rule_says_which_one_stays(keep, row, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_centroids", lambda *_: (at(9.0), None))
    found = find_duplicates(written(tmp_path / "store", at(0, 10, 20)), 0.97, keep, tmp_path)
    assert np.flatnonzero(found.kept).tolist() == [row]


def test_identical_rows_are_a_group_at_any_threshold_and_zeros_are_not(tmp_path, clustered):
    vectors = np.concatenate([np.tile(made(1), (40, 1)), np.zeros((3, 24), np.float32), made(60, seed=1)])
    store = written(tmp_path / "store", vectors)
    found = find_duplicates(store, 1.0, "last", tmp_path)
    assert found.groups[:40].tolist() == [0] * 40
    assert (found.groups[40:43] == ALONE).all()
    assert found.kept[40:43].all()
    assert (found.zeros, found.kept[:40].sum(), int(found.kept[39])) == (3, 1, 1)
    assert (found.similarities[:40] == 1).all()


def test_a_pair_at_the_threshold_is_decided_in_float64(tmp_path):
    vectors = np.float32(at(0, 11))
    exact = float(np.float64(vectors[0]) @ np.float64(vectors[1]) / np.linalg.norm(np.float64(vectors[1])))
    store = written(tmp_path / "store", vectors)
    for threshold, groups in ((exact - 1e-7, 1), (exact + 1e-7, 0)):
        assert len(find_duplicates(store, threshold, "first", tmp_path).sizes) == groups


@pytest.mark.parametrize("vectors", [at(0), np.zeros((2, 2)), at(0, 90)], ids=["one row", "zeros", "no duplicates"])
def test_stores_without_duplicates_keep_all(vectors, tmp_path):
    found = find_duplicates(written(tmp_path / "store", vectors), 0.97, "first", tmp_path)
    assert found.kept.all()
    assert not len(found.sizes)


@pytest.mark.parametrize(("threshold", "keep"), [(0, "first"), (1.01, "first"), (float("nan"), "first"), (0.9, "best")])
def test_bad_arguments_are_refused(threshold, keep, tmp_path):
    with pytest.raises(UsageError, match="must be"):
        find_duplicates(written(tmp_path / "store", at(0)), threshold, keep, tmp_path)
