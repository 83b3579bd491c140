"""k-means from a set solved by hand, its order, its repeatability, and what it refuses."""

import os
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clustering import kmeans
from runtime.clustering.kmeans import check_k, cluster
from runtime.clustering.points import normalize_rows
from runtime.contract.errors import InputError, UsageError

ATOL = 1e-6
"""float32 results of numbers near 1."""

# Two pairs of unit vectors: each pair's mean is (0.9, 0.3) or its opposite, sqrt(0.1) from both.
FOUR = np.array([[1, 0], [-0.8, -0.6], [0.8, 0.6], [-1, 0]], np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_four_points_are_clustered_as_by_hand(seed, order):
    found = cluster(np.asarray(FOUR, order=order), 2, seed)
    assert found.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.centroids, [[0.9, 0.3], [-0.9, -0.3]], atol=ATOL)
    np.testing.assert_allclose(found.distances, [0.1**0.5] * 4, atol=ATOL)
    assert found.inertia == pytest.approx(0.4, abs=ATOL)
    assert found.sizes.tolist() == [2, 2]
    assert 1 <= found.iterations <= 3
    assert [array.dtype for array in (found.labels, found.distances, found.centroids)] == [
        "int32",
        "float32",
        "float32",
    ]


def test_one_cluster_has_the_mean_of_all():
    found = cluster(FOUR, 1)
    np.testing.assert_allclose(found.centroids, [[0, 0]], atol=ATOL)
    assert found.inertia == pytest.approx(4, abs=ATOL)  # four unit vectors about the origin


def test_as_many_clusters_as_points_leave_no_inertia():
    found = cluster(FOUR, 4)
    assert found.labels.tolist() == [0, 1, 2, 3]  # all of size 1: by first occurrence
    np.testing.assert_allclose(found.centroids, FOUR, atol=ATOL)
    assert found.inertia == pytest.approx(0, abs=ATOL)


def test_clusters_are_numbered_by_size_and_equal_ones_by_their_first_point():
    axes = np.eye(4, dtype=np.float32)
    points = axes[[3, 0, 1, 1, 0, 2, 1]]  # sizes: axis 1 three, axis 0 two, axes 3 and 2 one
    found = cluster(points, 4)
    assert found.labels.tolist() == [2, 1, 0, 0, 1, 3, 0]
    assert found.sizes.tolist() == [3, 2, 1, 1]
    np.testing.assert_allclose(found.centroids, axes[[1, 0, 3, 2]], atol=ATOL)


def test_members_come_nearest_first_and_equals_in_order():
    angles = np.radians([0, 30, 3, -3, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = cluster(points, 2)
    assert [members.tolist() for members in found.members()] == [[2, 0, 3, 1], [4]]  # about a mean at 7 degrees
    same = cluster(np.repeat(FOUR[:1], 5, axis=0), 1)
    assert same.members()[0].tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_results_agree_with_each_other(draw, k):
    rng = np.random.default_rng(draw)
    points = normalize_rows(rng.standard_normal((40, 5)).astype(np.float32))
    found = cluster(points, k, seed=draw)
    apart = np.linalg.norm(points[:, None].astype(float) - found.centroids, axis=2)  # (n, k)
    np.testing.assert_allclose(found.distances, apart[np.arange(40), found.labels], atol=ATOL)
    assert (found.distances <= apart.min(axis=1) + ATOL).all()  # the nearest centroid
    assert found.inertia == pytest.approx((apart[np.arange(40), found.labels] ** 2).sum(), rel=1e-5)
    assert found.sizes.tolist() == sorted(np.bincount(found.labels, minlength=k), reverse=True)
    members = found.members()
    assert sorted(np.concatenate(members).tolist()) == list(range(40))
    assert all((found.labels[rows] == number).all() for number, rows in enumerate(members))


def test_the_best_of_its_starts_is_kept():
    points = normalize_rows(np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32))
    first = [cluster(points, 7, seed, n_init=1).inertia for seed in range(5)]
    best = [cluster(points, 7, seed, n_init=8).inertia for seed in range(5)]  # the first start is the same
    assert all(one <= other for one, other in zip(best, first, strict=True))
    assert sum(best) < sum(first) * (1 - 1e-3)


def test_ten_starts_are_as_good_as_ten_of_scikit_learns():
    from sklearn.cluster import KMeans

    points = normalize_rows(np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32))
    theirs = KMeans(20, n_init=10, random_state=3).fit(points)
    assert cluster(points, 20, seed=3).inertia == pytest.approx(theirs.inertia_, rel=0.01)


def many(n: int, k: int, width: int = 16) -> np.ndarray:
    """Unit vectors in overlapping groups of very different sizes, in the order of their groups."""
    rng = np.random.default_rng(7)
    groups = np.sort(rng.choice(k, n, p=(shares := rng.pareto(1.5, k) + 0.2) / shares.sum()))
    noise = 0.5 * rng.standard_normal((n, width))
    return normalize_rows((rng.standard_normal((k, width))[groups] + noise).astype(np.float32))


def test_first_iterations_on_a_sample_end_as_low_as_iterations_on_all(monkeypatch):
    points = many(40_000, 60)

    def inertia(max_iter: int) -> float:
        return sum(cluster(points, 60, seed, n_init=1, max_iter=max_iter).inertia for seed in range(4))

    sampled = inertia(300)
    monkeypatch.setattr(kmeans, "AHEAD_LEAST", len(points))
    assert sampled == pytest.approx(whole := inertia(300), rel=0.01)
    assert sampled != whole
    assert inertia(1) > whole * 1.05  # so the limit above means something


def test_groups_so_rare_that_a_sample_misses_some_keep_their_clusters(monkeypatch):
    rng = np.random.default_rng(1)
    rare = (20 * rng.standard_normal((40, 16))).repeat(6, 0) + 0.5 * rng.standard_normal((240, 16))
    points = np.concatenate([rng.standard_normal((39_760, 16)), rare]).astype(np.float32)

    def found() -> tuple[float, list[int]]:
        runs = [cluster(points, 50, seed, n_init=1, max_iter=40) for seed in range(4)]
        return sum(run.inertia for run in runs), [int(run.sizes.min()) for run in runs]

    sampled, least = found()
    monkeypatch.setattr(kmeans, "AHEAD_LEAST", len(points))
    whole, expected = found()
    assert least == expected == [6] * 4  # no point alone, in place of a group of six
    assert sampled < 1.03 * whole


def seen(monkeypatch) -> list[tuple[int, int]]:
    """How many points each of Lloyd's runs has, and how many iterations it may take."""
    runs: list[tuple[int, int]] = []
    real = kmeans.lloyd
    monkeypatch.setattr(kmeans, "lloyd", lambda *a, **given: runs.append((len(a[0]), a[2])) or real(*a, **given))
    return runs


@pytest.mark.parametrize(
    ("n", "k", "max_iter", "expected"),
    [
        (40_000, 4, 20, [(8192, 15), (40_000, 5)]),
        (80_000, 4, 20, [(10_000, 15), (80_000, 5)]),  # an eighth
        (40_000, 400, 4, [(10_000, 3), (40_000, 1)]),  # 25 a cluster
        (40_000, 401, 4, [(40_000, 4)]),  # more than a quarter of all
        (32_767, 4, 20, [(32_767, 20)]),
        (40_000, 4, 1, [(40_000, 1)]),
    ],
)
def test_a_sample_is_taken_where_it_is_much_less_than_all(monkeypatch, n, k, max_iter, expected):
    points = np.random.default_rng(0).random((n, 2), np.float32)
    runs = seen(monkeypatch)
    found = cluster(points, k, n_init=1, max_iter=max_iter)
    assert found.iterations <= max_iter
    if found.iterations == max_iter:  # what the sample leaves over is for all
        assert runs == expected
    assert [size for size, _ in runs] == [size for size, _ in expected]
    assert runs[-1][1] >= expected[-1][1]


def test_a_group_that_the_sample_hardly_shows_is_still_found_by_a_centroid_near_it():
    points = many(40_000, 5, width=4)
    points[::4000] = [0, 0, 0, -1]  # ten equal ones among 40,000
    found = cluster(points, 6, n_init=1)
    apart = np.linalg.norm(points[0] - found.centroids.astype(np.float64), axis=1)
    assert found.labels[0] == apart.argmin()
    assert len(set(found.labels[::4000].tolist())) == 1
    assert found.sizes.sum() == 40_000


def test_iterations_are_cut_short_where_it_is_asked_for():
    points = normalize_rows(np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32))
    short, long = cluster(points, 20, n_init=1, max_iter=2), cluster(points, 20, n_init=1)
    assert short.iterations == 2 < long.iterations
    assert short.inertia > long.inertia


def test_points_are_neither_copied_nor_changed():
    points = normalize_rows(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    before = points.copy()
    points.flags.writeable = False
    cluster(points, 9)
    assert np.array_equal(points, before)


NOISE = """
    import hashlib
    import sys
    import numpy as np
    from runtime.contract import machine

    machine.usable_cores = lambda: int(sys.argv[1])  # how many threads we take
    from runtime.clustering.kmeans import cluster
    from runtime.clustering.points import normalize_rows

    n = int(sys.argv[2])
    points = normalize_rows(np.random.default_rng(0).standard_normal((n, 32)).astype(np.float32))
    found = cluster(points, 12, seed=5, n_init=60_000 // n)
    print(hashlib.sha256(found.labels.tobytes() + found.centroids.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("n", ["6000", "40000"])  # the latter begins with a sample
def test_the_same_seed_gives_the_same_bytes_however_many_threads_there_are(n):
    digests = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(NOISE), threads, n],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "8")
    }
    assert len(digests) == 1


def test_another_seed_may_give_other_clusters():
    points = normalize_rows(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    assert len({cluster(points, 9, seed).inertia for seed in range(3)}) > 1


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30], ids=str)
def test_rows_are_divided_by_their_norm_at_any_scale(scale):
    vectors = np.array([[3, 4], [0, -2], [1e-3, 0]], np.float32) * np.float32(scale)
    before = vectors.copy()
    np.testing.assert_allclose(normalize_rows(vectors), [[0.6, 0.8], [0, -1], [1, 0]], atol=ATOL)
    assert np.array_equal(vectors, before)  # the caller's are left alone
    assert normalize_rows(vectors).dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_row_with_nan_or_infinity_is_named(bad):
    vectors = np.ones((4, 3), np.float32)
    vectors[2, 1] = bad
    with pytest.raises(InputError, match=r"the embedding of c\.jpg \(row 2\) holds NaN or infinity"):
        normalize_rows(vectors, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"].__getitem__)


@pytest.mark.parametrize("zero", [0.0, -0.0], ids=str)
def test_a_row_of_zeros_is_named(zero):
    vectors = np.ones((4, 3), np.float32)
    vectors[1] = zero
    with pytest.raises(InputError, match=r"the embedding of b\.jpg \(row 1\) is all zeros"):
        normalize_rows(vectors, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"].__getitem__)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, "must be 1 or more"),
        (-3, "must be 1 or more"),
        (6, "there are only 5 embeddings; choose no more"),
        (4, "5 embeddings, but only 3 distinct ones; choose no more"),
    ],
)
def test_a_k_that_the_points_do_not_have_is_refused(k, message):
    points = np.array([[1, 0], [0, 1], [1, -0.0], [-1, 0], [1, 0]], np.float32)
    for refuse in (check_k, cluster):
        with pytest.raises(UsageError, match=rf"--k {k}: {message}"):
            refuse(points, k)
    assert cluster(points, 3).sizes.tolist() == [3, 1, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e20, 1e37, 1e-25])
def test_what_float32_can_not_square_is_refused_without_a_warning(scale):
    points = np.random.default_rng(0).standard_normal((300, 8), np.float32) * np.float32(scale)
    with pytest.raises(InputError, match="can't be compared in float32: take --metric cosine"):
        cluster(points, 3)


def test_as_many_clusters_as_points_need_no_second_copy_of_them():
    points = np.random.default_rng(0).standard_normal((2000, 768), np.float32)
    tracemalloc.start()
    check_k(points, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < points.nbytes / 5


def test_points_that_differ_too_little_to_be_told_apart_are_refused_without_a_warning():
    points = np.repeat(FOUR[:2], 3, axis=0)
    points[1, 1], points[2, 1] = 1e-30, 2e-30  # distinct as bytes, equal once their mean is subtracted
    check_k(points, 4)
    with pytest.raises(UsageError, match="only 2 clusters came out, the embeddings are too nearly equal"):
        cluster(points, 4)
