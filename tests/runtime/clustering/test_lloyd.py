"""Lloyd's iterations over numpy and torch: the same as scikit-learn's from the same start, and what is special."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from runtime.clustering import torch_points
from runtime.clustering.kmeans import cluster
from runtime.clustering.lloyd import Fit, lloyd
from runtime.clustering.points import distances_to
from runtime.clustering.torch_points import TorchPoints
from runtime.contract.errors import BackendError, InputError, UsageError

RTOL = 1e-4
"""Of inertia: float32 scores move a point on a border now and then, in scikit-learn's as in ours."""
FOUR = np.array([[1, 0], [-0.8, -0.6], [0.8, 0.6], [-1, 0]], np.float32)


def blobs(
    n: int, width: int, k: int, spread: float = 0.05, seed: int = 0, shares=None
) -> tuple[np.ndarray, np.ndarray]:
    """Points about k centres, and which centre each is of."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(k, n, p=shares)
    truth[:k] = np.arange(k)
    centres = rng.standard_normal((k, width))
    return (centres[truth] + spread * rng.standard_normal((n, width))).astype(np.float32), truth


def uniform() -> np.ndarray:
    return np.random.default_rng(1).random((5000, 8)).astype(np.float32)


def duplicates() -> np.ndarray:
    distinct = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)
    return distinct[np.random.default_rng(3).integers(0, 40, 3000)]


SETS = {
    "blobs": (blobs(4000, 10, 12, spread=0.4)[0], 12),
    "uniform": (uniform(), 25),
    "duplicates": (duplicates(), 9),
    "high-dimensional": (blobs(1500, 768, 30, spread=1.0)[0], 30),
    "unbalanced": (blobs(6000, 5, 6, spread=0.5, shares=[0.9, 0.06, 0.02, 0.01, 0.006, 0.004])[0], 6),
}


def start_of(points: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    distinct = np.unique(points, axis=0)
    return distinct[np.random.default_rng(seed).choice(len(distinct), k, replace=False)].astype(np.float64)


def inertia(points: np.ndarray, fit: Fit) -> float:
    return float((distances_to(points, fit.centroids, fit.labels) ** 2).sum())


@pytest.mark.parametrize("name", SETS)
def test_the_same_start_ends_at_scikit_learns_inertia(name, on):
    points, k = SETS[name]
    start = start_of(points, k)
    held = on(points)
    fit = lloyd(held, start, 300, held.spread())
    theirs = KMeans(k, init=start, n_init=1, max_iter=300).fit(points.astype(np.float64))
    assert inertia(points, fit) == pytest.approx(theirs.inertia_, rel=RTOL)
    assert inertia(points, lloyd(held, start, 1, held.spread())) > theirs.inertia_ * (1 + 10 * RTOL)  # it could fail


def test_far_from_the_origin_float32_still_tells_points_apart(on):
    points = uniform() + np.float32(100)
    start = start_of(points, 25)
    fit = lloyd(on(points), start, 5, 0)  # few, so that a point on a border has not moved whole clusters yet
    theirs = KMeans(25, init=start, n_init=1, max_iter=5, tol=0).fit(points.astype(np.float64))
    assert inertia(points, fit) == pytest.approx(theirs.inertia_, rel=RTOL)


@pytest.mark.parametrize("scale", [1e21, 1e-25])
def test_what_float32_can_not_square_is_refused(scale, on):
    points, _ = blobs(300, 8, 3)
    points *= np.float32(scale)
    with pytest.raises(InputError, match="can't be compared in float32: take --metric cosine"):
        on(points).nearest(points[:3].astype(np.float64))


@pytest.mark.parametrize("scale", [1e14, 1e-10])
def test_what_float32_can_square_is_told_apart(scale, on):
    points, truth = blobs(300, 8, 3)
    points *= np.float32(scale)
    assert np.array_equal(on(points).nearest(points[:3].astype(np.float64)), truth)


@pytest.mark.parametrize("max_iter", [1, 2, 5])
def test_a_run_cut_short_is_where_scikit_learns_is(max_iter, on):
    points, k = SETS["uniform"]
    start = start_of(points, k)
    held = on(points)
    fit = lloyd(held, start, max_iter, 0)
    theirs = KMeans(k, init=start, n_init=1, max_iter=max_iter, tol=0).fit(points.astype(np.float64))
    assert fit.iterations == max_iter
    np.testing.assert_allclose(fit.centroids, theirs.cluster_centers_, atol=1e-3)
    assert inertia(points, fit) == pytest.approx(theirs.inertia_, rel=RTOL)


def test_separate_blobs_get_their_labels(on):
    points, truth = blobs(5000, 32, 20)
    held = on(points)
    fit = lloyd(held, points[:20].astype(np.float64), 300, held.spread())  # one of each
    assert adjusted_rand_score(truth, fit.labels) == 1
    assert np.array_equal(fit.labels, truth)


def test_four_points_are_clustered_as_by_hand(on):
    held = on(FOUR)
    fit = lloyd(held, FOUR[:2].astype(np.float64), 300, held.spread())
    assert fit.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(fit.centroids, [[0.9, 0.3], [-0.9, -0.3]], atol=1e-7)
    assert fit.iterations == 2  # the second finds that nothing changes
    assert held.spread() == pytest.approx(1)


def test_a_centroid_without_points_takes_one_or_stays_as_is_asked(on):
    held = on(FOUR)
    start = np.array([[1, 0], [-0.8, -0.6], [9, 9]], np.float64)
    filled = lloyd(held, start, 300, held.spread())
    assert np.bincount(filled.labels, minlength=3).min() == 1
    stayed = lloyd(held, start, 300, held.spread(), fill=False)
    assert stayed.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(stayed.centroids, [[0.9, 0.3], [-0.9, -0.3], [9, 9]], atol=1e-7)


def test_chosen_points_are_clustered_as_a_copy_of_them(on):
    points, _ = blobs(4000, 16, 12, spread=1.5)
    rows = np.random.default_rng(1).permutation(4000)[:900]  # in no order
    chosen, copied = on(points).choose(rows), on(points[rows])
    start = points[:12].astype(np.float64)
    assert len(chosen) == 900
    assert chosen.spread() == pytest.approx(copied.spread(), rel=1e-12)
    one, other = (lloyd(held, start, 300, held.spread()) for held in (chosen, copied))
    assert np.array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-12)
    assert one.iterations == other.iterations > 2


def test_one_cluster_is_the_mean_of_all(on):
    points = uniform()
    fit = lloyd(on(points), points[:1].astype(np.float64), 300, 1)
    np.testing.assert_allclose(fit.centroids[0], points.astype(np.float64).mean(axis=0), atol=1e-12)  # float64 sums
    assert not fit.labels.any()


def test_as_many_clusters_as_points_leave_each_alone(on):
    points = uniform()[:300]
    held = on(points)
    fit = lloyd(held, points[::-1].astype(np.float64), 300, held.spread())
    assert fit.labels.tolist() == list(range(300))[::-1]
    assert inertia(points, fit) == 0


def test_an_empty_cluster_takes_the_farthest_point(on):
    points = np.array([[0, 0], [1, 0], [0, 1], [9, 9]], np.float32)
    held = on(points)
    start = np.array([[0, 0], [0, 0], [-50, 0]], np.float64)  # a copy and one that is near to none
    fit = lloyd(held, start, 300, held.spread())
    assert sorted(np.bincount(fit.labels, minlength=3).tolist()) == [1, 1, 2]
    assert (fit.labels == fit.labels[3]).sum() == 1


def test_an_empty_cluster_is_left_so_where_all_points_lie_on_centroids(on):
    points = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    held = on(points)
    fit = lloyd(held, np.array([[1, 0], [0, 1], [5, 5]], np.float64), 300, held.spread())
    assert fit.labels.tolist() == [0] * 5 + [1] * 5
    assert fit.iterations <= 2  # it doesn't go on for ever


@pytest.mark.parametrize("n", [255, 256, 257, 8191, 8192, 8193], ids=str)
def test_chunks_end_where_they_may(n, on):
    points, truth = blobs(n, 4, 3)
    held = on(points)
    fit = lloyd(held, points[:3].astype(np.float64), 300, held.spread())
    assert np.array_equal(fit.labels, truth)
    np.testing.assert_allclose(fit.centroids, [points[truth == one].mean(axis=0) for one in range(3)], atol=1e-5)


def test_numpy_and_torch_give_the_same_labels_of_the_same_seed():
    pytest.importorskip("torch")
    points, _ = blobs(3000, 16, 15, spread=0.5)
    ours, torchs = (cluster(points, 15, seed=4, device=device) for device in ("cpu", "torch-cpu"))
    assert (ours.labels == torchs.labels).mean() > 0.999
    assert ours.inertia == pytest.approx(torchs.inertia, rel=RTOL)


def test_two_hundred_thousand_points_end_at_scikit_learns_inertia(on):
    points, _ = blobs(200_000, 16, 40, spread=0.6)
    start = start_of(points[:1000], 40)
    held = on(points)
    fit = lloyd(held, start, 10, 0)
    theirs = KMeans(40, init=start, n_init=1, max_iter=10, tol=0).fit(points)
    assert inertia(points, fit) == pytest.approx(theirs.inertia_, rel=RTOL)


def test_the_same_seed_gives_the_same_bytes_in_torch():
    pytest.importorskip("torch")
    points = uniform()
    one, other = (cluster(points, 25, seed=3, n_init=2, device="torch-cpu") for _ in range(2))
    assert one.labels.tobytes() == other.labels.tobytes()
    assert one.centroids.tobytes() == other.centroids.tobytes()


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_bytes_on_a_gpu():
    points, _ = blobs(200_000, 64, 100, spread=1.0)
    one, other = (cluster(points, 100, seed=3, n_init=2, device="cuda") for _ in range(2))
    assert one.labels.tobytes() == other.labels.tobytes()
    assert one.centroids.tobytes() == other.centroids.tobytes()
    assert one.inertia == pytest.approx(cluster(points, 100, seed=3, n_init=2).inertia, rel=1e-3)


def test_nothing_of_n_times_k_is_kept_by_torch(monkeypatch):
    sizes: list[int] = []
    torch = pytest.importorskip("torch")

    real = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a: sizes.append((found := real(*a)).numel()) or found)
    points = uniform()
    monkeypatch.setattr(torch_points, "ROWS", 512)
    TorchPoints(points, "torch-cpu").nearest(points[:100].astype(np.float64))
    assert max(sizes) == 512 * 100 < len(points) * 100
    assert sum(sizes) == len(points) * 100


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "torch", "CPU", "mps", "cuvs"])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(UsageError, match=f"--device {device}: must be cpu, torch-cpu, cuda or cuda:N"):
        cluster(FOUR, 2, device=device)


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match=r"--device cuda:3: PyTorch .* sees no CUDA device here"):
        cluster(FOUR, 2, device="cuda:3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(BackendError, match=r"--device cuda:3: there are only 2 CUDA devices"):
        cluster(FOUR, 2, device="cuda:3")


@pytest.mark.parametrize(
    ("error", "message"),
    [("RuntimeError", "--device cuda can't be used"), ("OutOfMemoryError", "cuda has no memory for these embeddings")],
)
def test_a_gpu_that_fails_is_told(monkeypatch, error, message):
    torch = pytest.importorskip("torch")

    def fail(*_: object) -> None:
        raise {"RuntimeError": RuntimeError, "OutOfMemoryError": torch.OutOfMemoryError}[error]("CUDA error: busy")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(BackendError, match=rf"{message} \(CUDA error: busy\)"):
        cluster(FOUR, 2, device="cuda")


def test_torch_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(BackendError, match="needs PyTorch, which is not installed"):
        cluster(FOUR, 2, device="cuda")
    assert cluster(FOUR, 2).sizes.tolist() == [2, 2]
