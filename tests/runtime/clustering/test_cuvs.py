"""k-means with cuVS: a stand-in of its Python API computes on the CPU; the real one's names, where it is installed."""

import contextlib
import inspect
import sys
from collections import namedtuple
from types import ModuleType

import numpy as np
import pytest
from sklearn.cluster import KMeans

from runtime.clustering import kmeans
from runtime.clustering.kmeans import cluster, normalize_rows
from runtime.clustering.torch_points import TorchPoints
from runtime.contract.errors import BackendError

FitOutput = namedtuple("FitOutput", "centroids inertia n_iter")


class CuvsException(Exception):  # noqa: N818  # its own name
    pass


class StandIn:
    """`cuvs.cluster.kmeans`, with the parameters of the real one that we use and no others."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.failure: Exception | None = None

    def KMeansParams(self, *, n_clusters, init_method, max_iter, tol, n_init) -> dict:  # noqa: N802
        return {"k": n_clusters, "init": init_method, "max_iter": max_iter, "tol": tol, "n_init": n_init}

    def fit(self, params, X, centroids=None, sample_weights=None, resources=None) -> FitOutput:
        self.calls.append(params)
        if self.failure:
            raise self.failure
        assert str(X.dtype) == str(centroids.dtype) == "torch.float32"
        assert centroids.shape == (params["k"], X.shape[1])
        found = KMeans(params["k"], init=centroids.numpy().copy(), n_init=1, max_iter=params["max_iter"])
        found.fit(X.numpy())
        centroids.numpy()[:] = found.cluster_centers_  # in place, as the real one
        return FitOutput(centroids, found.inertia_, found.n_iter_)


@pytest.fixture
def cuvs(monkeypatch) -> StandIn:
    stand_in = StandIn()
    exceptions = ModuleType("cuvs.common.exceptions")
    exceptions.CuvsException = CuvsException
    for name, module in {
        "cuvs": ModuleType("cuvs"),
        "cuvs.cluster": ModuleType("cuvs.cluster"),
        "cuvs.cluster.kmeans": stand_in,
        "cuvs.common": ModuleType("cuvs.common"),
        "cuvs.common.exceptions": exceptions,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    real = TorchPoints.__init__
    monkeypatch.setattr(TorchPoints, "__init__", lambda self, points, device: real(self, points, "torch-cpu"))
    monkeypatch.setattr("torch.cuda.device", contextlib.nullcontext)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    return stand_in


def vectors(n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return normalize_rows((rng.standard_normal((12, 16))[rng.integers(0, 12, n)] + rng.random((n, 16))).astype("f4"))


def test_cuvs_comes_first_and_our_iterations_end_it(cuvs, monkeypatch):
    runs = []
    real = kmeans.lloyd
    monkeypatch.setattr(kmeans, "lloyd", lambda *a: runs.append(a) or real(*a))
    points = vectors()
    found = cluster(points, 12, seed=3, n_init=2, max_iter=40, device="cuvs:0")
    assert [call["max_iter"] for call in cuvs.calls] == [30, 30]
    assert cuvs.calls[0] == {"k": 12, "init": "Array", "max_iter": 30, "tol": 1e-4, "n_init": 1}
    assert len(runs) == 2
    assert all(10 <= run[2] < 40 for run in runs)  # what cuVS left over
    assert 2 < found.iterations <= 40
    assert found.inertia == pytest.approx(cluster(points, 12, seed=3, n_init=2, max_iter=40).inertia, rel=1e-3)
    apart = np.linalg.norm(points[:, None] - found.centroids.astype(float), axis=2)
    assert (found.distances <= apart.min(axis=1) + 1e-6).all()


def test_one_iteration_is_ours_alone(cuvs):
    assert cluster(vectors(), 12, n_init=1, max_iter=1, device="cuvs").iterations == 1
    assert cuvs.calls == []


def test_what_cuvs_says_is_told_in_one_line(cuvs):
    cuvs.failure = CuvsException("RAFT failure at file=x\n  no device\n")
    with pytest.raises(BackendError, match=r"^cuVS failed on cpu \(RAFT failure at file=x no device\); take --device"):
        cluster(vectors(), 12, device="cuvs")


def test_cuvs_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuvs", None)
    message = r"--device cuvs:1 needs cuVS, which can't be loaded \(.*\): pip install 'itae\[cuvs\]', or take cuda:1"
    with pytest.raises(BackendError, match=message):
        cluster(vectors(), 12, device="cuvs:1")


def test_the_real_one_has_these_names():
    real = pytest.importorskip("cuvs.cluster.kmeans", reason="cuVS is not installed")
    params = real.KMeansParams(n_clusters=5, init_method="Array", max_iter=20, tol=1e-4, n_init=1)
    assert (params.n_clusters, params.init_method, params.max_iter, params.n_init) == (5, "Array", 20, 1)
    assert list(inspect.signature(real.fit).parameters) == list(inspect.signature(StandIn().fit).parameters)
    assert issubclass(pytest.importorskip("cuvs.common.exceptions").CuvsException, Exception)


@pytest.mark.gpu
def test_cuvs_on_a_gpu_ends_as_low_as_the_cpu():
    pytest.importorskip("cuvs", reason="cuVS is not installed")
    points = vectors(100_000)
    found = cluster(points, 50, seed=3, n_init=2, device="cuvs")
    assert found.inertia == pytest.approx(cluster(points, 50, seed=3, n_init=2).inertia, rel=1e-2)
