"""`cluster` with each algorithm, metric and source of k: the right clusters, noise handled, bad options refused."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import adjusted_rand_score

from runtime.__main__ import main
from runtime.clustering import algorithms, assign
from runtime.clustering.algorithms import agglomerative, hdbscan
from runtime.clustering.choose_k import choose
from runtime.clustering.clusters import from_labels, nearest_other
from runtime.clustering.kmeans import cluster as kmeans
from runtime.clustering.minibatch import cluster as minibatch
from runtime.clustering.options import ALGORITHMS, TAKES
from runtime.clustering.points import StoreReader
from runtime.clustering.results import CENTROIDS, LABELS, PICTURE, SUMMARY
from runtime.contract.errors import UsageError
from runtime.contract.labels import NOISE
from runtime.store import Store
from runtime.store.writer import open_writer

MEGABYTE = 1 << 20


def write(folder: Path, vectors: np.ndarray, names=None, **origin: str) -> Path:
    names = names or [f"{number}.png" for number in range(len(vectors))]
    with open_writer(folder, origin) as writer:
        writer.add(["/nowhere"] * len(vectors), names, vectors.astype(np.float32))
    return folder


def blobs(
    n: int = 600, width: int = 8, k: int = 4, spread: float = 0.05, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.sort(rng.integers(0, k, n))  # a store is in the order of its folders
    points = 3 * np.eye(k, width)[truth] + spread * rng.standard_normal((n, width))
    return points.astype(np.float32), truth


@pytest.fixture
def stored(tmp_path) -> Path:
    points, truth = blobs()
    return write(tmp_path / "e", points, names=[f"{of}/{n}.png" for n, of in enumerate(truth)], model_sha256="ab" * 32)


def run(*arguments: object) -> int:
    return main(["cluster", *map(str, arguments)])


def labels_of(out: Path) -> np.ndarray:
    return parquet.read_table(out / LABELS)["label"].to_numpy()


def summary_of(out: Path) -> dict:
    return json.loads((out / SUMMARY).read_text())


OPTIONS = {
    "kmeans": ["--k", 4, "--n-init", 2, "--max-iter", 50],
    "minibatch": ["--k", 4, "--max-iter", 5],
    "hdbscan": ["--min-cluster-size", 20, "--min-samples", 3],
    "agglomerative": ["--k", 4, "--linkage", "average"],
}


@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        ("kmeans", r"start 2 of 2: iteration \d+, \d+ of 600 embeddings changed their cluster"),
        ("minibatch", r"pass 1 of at most 5: 600 of 600 embeddings"),
        ("hdbscan", r"computing for \d s"),
        ("agglomerative", r"computing for \d s"),
    ],
)
def test_each_algorithm_says_how_far_it_is_where_it_takes_long(stored, tmp_path, algorithm, line, capsys, monkeypatch):
    words = [stored, "--algorithm", algorithm, *OPTIONS[algorithm], "--out"]
    assert run(*words, tmp_path / "fast") == 0
    assert not re.search(line, capsys.readouterr().err)  # it took less than two seconds
    for name in ("runtime.contract.progress.FIRST_LINE", "runtime.contract.progress.SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(name, -1.0)
    monkeypatch.setattr("runtime.clustering.algorithms.FIRST_LINE", 0)
    assert run(*words, tmp_path / "slow") == 0
    said = capsys.readouterr().err
    assert re.search(line, said)
    assert ("600 of 600 embeddings read\n" in said) == (algorithm != "minibatch")
    assert run(*words, tmp_path / "quiet", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_finds_separate_blobs(stored, tmp_path, algorithm, metric):
    out = tmp_path / "out"
    assert run(stored, "--algorithm", algorithm, "--metric", metric, *OPTIONS[algorithm], "--out", out) == 0
    _, truth = blobs()
    labels = labels_of(out)
    inside = labels != NOISE
    assert inside.mean() > 0.9
    assert adjusted_rand_score(truth[inside], labels[inside]) == 1
    told = summary_of(out)
    assert (told["algorithm"], told["metric"], told["k"]) == (algorithm, metric, 4)
    assert told["sizes"] == np.bincount(labels[inside]).tolist() == sorted(told["sizes"], reverse=True)
    assert told["noise"] == (~inside).sum() == 600 - sum(told["sizes"])
    points = Store(stored).read().vectors
    if metric == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    centroids = np.load(out / CENTROIDS)
    means = [points[labels == number].mean(axis=0) for number in range(4)]
    np.testing.assert_allclose(centroids, means, atol=0.02 if algorithm == "minibatch" else 1e-5)


def test_lengths_matter_to_euclidean_alone(tmp_path):
    vectors = np.array([[1, 0], [10, 0], [1, 0.01], [10, 0.1], [0, 1], [0, 10]], np.float32)
    folder = write(tmp_path / "e", vectors)
    for metric, expected in (("cosine", [0, 0, 0, 0, 1, 1]), ("euclidean", [0, 1, 0, 1, 0, 2])):
        k = max(expected) + 1
        assert run(folder, "--k", k, "--metric", metric, "--out", tmp_path / metric) == 0
        assert labels_of(tmp_path / metric).tolist() == expected


def test_zero_vectors_are_points_to_euclidean(tmp_path):
    folder = write(tmp_path / "e", np.array([[0, 0], [0, 0], [5, 5]]))
    assert run(folder, "--k", 2, "--metric", "euclidean", "--out", tmp_path / "out") == 0
    assert labels_of(tmp_path / "out").tolist() == [0, 0, 1]


# noise


@pytest.fixture
def noisy(tmp_path) -> tuple[Path, np.ndarray]:
    """Three blobs and twenty points far from everything, each embedded image in a folder of its blob."""
    points, truth = blobs(300, 8, 3)
    far = np.random.default_rng(5).standard_normal((20, 8)) * 40
    truth = np.r_[truth, np.full(20, 9)]
    names = [f"{of}/{number}.png" for number, of in enumerate(truth)]
    return write(tmp_path / "noisy", np.concatenate([points, far]), names=names), truth


def test_noise_is_told_everywhere_and_no_cluster(noisy, tmp_path, capsys):
    folder, truth = noisy
    out = tmp_path / "out"
    words = [folder, "--algorithm", "hdbscan", "--metric", "euclidean", "--labels", "folders", "--out", out]
    assert run(*words) == 0
    labels = labels_of(out)
    assert (labels[-20:] == NOISE).all()
    noise = int((labels == NOISE).sum())
    told = summary_of(out)
    assert (told["noise"], told["k"], sum(told["sizes"])) == (noise, 3, 320 - noise)
    assert told["seed"] is None
    assert "noise" in capsys.readouterr().out
    assert told["metrics"]["acc"] == pytest.approx((320 - noise) / 320)  # noise is no class, not even that of the far
    assert len(told["metrics"]["class_of_cluster"]) == 3
    assert told["picture"]["clusters"] == 4  # the noise has a row
    with Image.open(out / PICTURE) as picture:
        assert picture.height > 4 * 96
    distances = parquet.read_table(out / LABELS)["distance"].to_numpy()
    points, centroids = Store(folder).read().vectors, np.load(out / CENTROIDS)
    apart = np.linalg.norm(points[:, None] - centroids, axis=2)
    np.testing.assert_allclose(distances[labels == NOISE], apart[labels == NOISE].min(axis=1), rtol=1e-5)
    assert set(truth[labels != NOISE]) == {0, 1, 2}


def test_nothing_but_noise_is_a_result(tmp_path, capsys):
    folder = write(tmp_path / "e", np.random.default_rng(0).standard_normal((30, 16)))
    out = tmp_path / "out"
    assert run(folder, "--algorithm", "hdbscan", "--min-cluster-size", 25, "--labels", "folders", "--out", out) == 0
    assert set(labels_of(out)) == {NOISE}
    told = summary_of(out)
    assert (told["k"], told["sizes"], told["noise"], told["metrics"]["acc"]) == (0, [], 30, 0)
    assert np.load(out / CENTROIDS).shape == (0, 16)
    assert "30 images in 0 clusters" in capsys.readouterr().out


def test_members_leave_noise_out():
    points = np.array([[0, 0], [9, 9], [1, 0], [5, 5], [6, 5], [0.4, 0]], np.float32)
    found = from_labels(points, np.array([0, -1, 0, 1, 1, 0], np.int32))
    assert [rows.tolist() for rows in found.members()] == [[5, 0, 2], [3, 4]]
    assert found.noise_members().tolist() == [1]
    assert found.noise == 1
    assert found.inertia == pytest.approx(sum(found.distances[row] ** 2 for row in (0, 2, 3, 4, 5)))


def test_the_nearest_other_centroid_is_not_the_own_one():
    points, _ = blobs(200, 8, 4, spread=1.5)
    found = kmeans(points, 4)
    other, distances = nearest_other([points[:70], points[70:]], found)
    apart = np.linalg.norm(points[:, None].astype(float) - found.centroids, axis=2)
    order = apart.argsort(axis=1)
    assert np.array_equal(other, order[:, 1])
    np.testing.assert_allclose(distances, np.sort(apart, axis=1)[:, 1], rtol=1e-5)


def test_beside_a_single_centroid_there_is_no_other_but_for_noise():
    points = np.array([[0, 0], [2, 0], [9, 0]], np.float32)
    other, distances = nearest_other([points], from_labels(points, np.array([0, 0, NOISE], np.int32)))
    assert (other.tolist(), distances.tolist()) == ([0, 0, 0], [np.inf, np.inf, 8])
    nothing = from_labels(points, np.full(3, NOISE, np.int32))
    assert nearest_other([points], nothing)[1].tolist() == [np.inf] * 3


# minibatch


def test_minibatch_is_nearly_as_good_as_kmeans_on_a_store_in_order(tmp_path):
    points = np.random.default_rng(0).standard_normal((9000, 4)).astype(np.float32)
    points = points[points[:, 0].argsort()]
    reader = StoreReader(Store(write(tmp_path / "e", points)), "euclidean")
    assert minibatch(reader, 24).inertia < kmeans(points, 24).inertia * 1.05


def test_minibatch_gives_the_same_bytes_again(tmp_path):
    points, _ = blobs(5000, 8, 8, spread=0.8)
    reader = StoreReader(Store(write(tmp_path / "e", points)), "cosine")
    one, other = minibatch(reader, 8, 3), minibatch(reader, 8, 3)
    assert one.labels.tobytes() == other.labels.tobytes()
    assert one.centroids.tobytes() == other.centroids.tobytes()
    assert minibatch(reader, 8, 4).labels.tobytes() != one.labels.tobytes()


def test_minibatch_names_a_zero_embedding_by_its_row(tmp_path, capsys):
    points, _ = blobs(9000, 4, 3)
    points[8500] = 0
    folder = write(tmp_path / "e", points)
    assert run(folder, "--algorithm", "minibatch", "--k", 3, "--out", tmp_path / "out") == 2
    assert "/nowhere/8500.png (row 8500) is all zeros" in capsys.readouterr().err


PEAK = (
    "import re, sys\n"
    "from runtime.__main__ import main\n"
    "code = main(sys.argv[1:])\n"
    "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
    "sys.exit(code)\n"
)


def peak(*arguments: object) -> int:
    """Bytes that the command took at most."""
    command = [sys.executable, "-c", PEAK, "cluster", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_minibatch_never_holds_all_embeddings_and_kmeans_little_more(tmp_path):
    small, large = blobs(16_000, 1024, 4)[0], blobs(56_000, 1024, 4)[0]  # 164 MB apart
    apart = large.nbytes - small.nbytes
    few, many = write(tmp_path / "few", small), write(tmp_path / "many", large)
    growth = {}
    for algorithm in ("minibatch", "kmeans"):
        words = ["--algorithm", algorithm, "--k", 4, "--max-iter", 2, "--out", tmp_path / "out"]
        growth[algorithm] = peak(many, *words) - peak(few, *words)
    assert growth["minibatch"] < 40 * MEGABYTE, growth  # of names, mostly
    assert growth["kmeans"] > apart / 2, growth  # so that the figure above means something
    assert growth["kmeans"] < 1.2 * apart, growth


# hdbscan and agglomerative


def test_agglomerative_refuses_what_needs_too_much_memory(monkeypatch):
    monkeypatch.setattr("runtime.clustering.algorithms.MAX_AGGLOMERATIVE", 99)
    points, _ = blobs(100)
    with pytest.raises(UsageError, match=r"each two of 100 embeddings, 0\.0 GB, and takes 99 at most; use kmeans"):
        agglomerative(points, 2)


def test_ctrl_c_is_heard_while_compiled_code_computes():
    start = time.monotonic()
    ring = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    ring.start()
    with pytest.raises(KeyboardInterrupt):
        algorithms._labels(lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000), print)  # seconds, deaf
    assert time.monotonic() - start < 2


def test_what_scikit_learn_raises_comes_through():
    with pytest.raises(ValueError, match="linkage"):
        agglomerative(blobs(30)[0], 2, "none")


@pytest.mark.parametrize(("size", "samples", "message"), [(31, None, "min-cluster-size 31"), (5, 31, "min-samples 31")])
def test_hdbscan_refuses_more_neighbours_than_there_are(size, samples, message):
    with pytest.raises(UsageError, match=f"--{message}: must be from . to 30"):
        hdbscan(blobs(30)[0], size, samples)


def test_one_point_is_too_few_for_hdbscan():
    with pytest.raises(UsageError, match="--algorithm hdbscan needs 2 embeddings or more, there is 1"):
        hdbscan(np.ones((1, 3), np.float32))


def test_one_point_is_one_agglomerative_cluster():
    assert agglomerative(np.ones((1, 3), np.float32), 1).sizes.tolist() == [1]


# --k auto


@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch", "agglomerative"])
def test_k_auto_finds_the_blobs_and_shows_the_curve(stored, tmp_path, capsys, algorithm):
    out = tmp_path / "out"
    assert run(stored, "--algorithm", algorithm, "--k", "auto", "--k-range", "2:7", "--out", out) == 0
    told = summary_of(out)
    assert told["k"] == 4
    curve = told["silhouette"]
    assert curve["k"] == [2, 3, 4, 5, 6, 7]
    assert curve["points"] == 600
    assert max(curve["mean"]) == curve["mean"][2] > 0.9
    assert sorted(told["files"]) == sorted([CENTROIDS, LABELS, PICTURE])
    captured = capsys.readouterr()
    assert "k = 4 has the highest silhouette, 0.9" in captured.out
    assert "k = 5: silhouette" in captured.err
    assert run(stored, "--k", 3, "--out", out) == 0
    assert summary_of(out)["silhouette"] is None


def test_the_silhouette_picture_of_an_older_version_goes_with_its_result(stored, tmp_path):
    out = tmp_path / "out"
    assert run(stored, "--k", 3, "--out", out) == 0
    (out / "silhouette.png").write_bytes(b"old")
    assert run(stored, "--k", 4, "--out", out) == 0
    assert not (out / "silhouette.png").exists()


def test_the_silhouette_is_scikit_learns_in_the_metric_asked_for():
    from sklearn.metrics import silhouette_score

    points, truth = blobs(200, spread=0.8)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for metric in ("cosine", "euclidean"):
        curve = choose(points, metric, [4], lambda _points, _k: truth.astype(np.int32))
        assert curve.silhouettes[0] == pytest.approx(silhouette_score(points, truth, metric=metric), abs=1e-5)


def test_a_large_store_is_sampled_for_k(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.clustering.choose_k.SAMPLE", 100)
    folder = write(tmp_path / "e", blobs()[0])
    assert run(folder, "--k", "auto", "--k-range", "2:5", "--out", tmp_path / "out") == 0
    told = summary_of(tmp_path / "out")
    assert (told["silhouette"]["points"], told["k"], told["n"]) == (100, 4, 600)


def test_k_auto_stops_where_there_are_no_more_points(tmp_path):
    folder = write(tmp_path / "e", blobs(6)[0])
    assert run(folder, "--k", "auto", "--k-range", f"2:{10**15}", "--out", tmp_path / "out") == 0  # or it counts on
    assert summary_of(tmp_path / "out")["silhouette"]["k"] == [2, 3, 4, 5]


def test_k_auto_stops_where_there_are_no_more_distinct_points(tmp_path, capsys):
    folder = write(tmp_path / "e", np.repeat(np.eye(3), 4, axis=0))
    assert run(folder, "--k", "auto", "--out", tmp_path / "out") == 0
    assert summary_of(tmp_path / "out")["silhouette"]["k"] == [2, 3]
    one = write(tmp_path / "one", np.ones((5, 3)))
    assert run(one, "--k", "auto", "--out", tmp_path / "none") == 2
    assert "no k of 2 to 30 can be tried on 5 embeddings: they are all equal" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


ONE = np.random.default_rng(5).normal(size=8)
NO_K = {  # points, --k-range, the reason
    "equal": (
        np.tile(ONE, (12, 1)),
        "2:30",
        "12 embeddings: they are all equal, at least but for rounding; look whether",
    ),
    "equal by cosine": (np.outer(np.arange(1, 13), ONE), "2:30", "12 embeddings: they are all equal"),
    "rounded": (ONE + 1e-8 * np.random.default_rng(6).normal(size=(12, 8)), "2:30", "they are all equal"),
    "two": (
        np.repeat(np.eye(8)[:2], 6, axis=0),
        "5:9",
        "12 embeddings: only 2 of them are distinct; give --k or a lower",
    ),
    "few": (np.eye(8)[:2], "2:30", "2 embeddings: k must be less than their number; give more embeddings"),
    "one": (np.eye(8)[:1], "2:30", "1 embedding: k must be less than their number"),
    "range": (np.eye(8), "8:9", "8 embeddings: k must be less than their number"),
}


@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch", "agglomerative"])
@pytest.mark.parametrize(("points", "ks", "reason"), NO_K.values(), ids=NO_K)
def test_k_auto_says_why_no_k_can_be_tried(points, ks, reason, algorithm, tmp_path, capsys):
    folder = write(tmp_path / "e", points)
    arguments = ("--k", "auto", "--k-range", ks, "--algorithm", algorithm, "--out", tmp_path / "out")
    assert run(folder, *arguments) == 2
    low, high = ks.split(":")
    assert f"--k auto: no k of {low} to {high} can be tried on " in (err := capsys.readouterr().err)
    assert reason in err


def test_k_auto_takes_points_whose_distances_are_small_and_not_of_rounding():
    points = (1e-6 * blobs(40)[0]).astype(np.float32)
    curve = choose(points, "euclidean", [2, 3, 4, 5], lambda some, k: kmeans(some, k).labels)
    assert curve.best == 4


# --assign


def test_old_centroids_label_new_embeddings(stored, tmp_path, capsys):
    old, out = tmp_path / "old", tmp_path / "out"
    assert run(stored, "--k", 4, "--out", old) == 0
    points, truth = blobs(90, seed=7)
    new = write(tmp_path / "new", points[truth != 2] * 5, model_sha256="ab" * 32)
    for given in (old, old / CENTROIDS):
        assert run(new, "--assign", given, "--out", out) == 0
        labels = labels_of(out)
        blob_of = {label: of for label, of in zip(labels_of(old), blobs()[1], strict=True)}  # noqa: C416
        assert [blob_of[label] for label in labels] == truth[truth != 2].tolist()
        told = summary_of(out)
        assert (told["algorithm"], told["metric"], told["k"], told["seed"]) == ("assign", "cosine", 4, None)
        assert sorted(told["sizes"])[0] == 0  # the blob that has none
        assert told["sizes"] == np.bincount(labels, minlength=4).tolist()
        assert told["assigned"] == {"centroids": str(given), "model_sha256": "ab" * 32}
        assert np.array_equal(np.load(out / CENTROIDS), np.load(old / CENTROIDS))
    assert "it is not known" not in capsys.readouterr().err


def test_the_metric_of_the_older_run_is_taken(stored, tmp_path):
    run(stored, "--k", 4, "--metric", "euclidean", "--out", tmp_path / "old")
    assert run(stored, "--assign", tmp_path / "old", "--out", tmp_path / "out") == 0
    assert summary_of(tmp_path / "out")["metric"] == "euclidean"
    assert np.array_equal(labels_of(tmp_path / "out"), labels_of(tmp_path / "old"))


def test_bare_centroids_are_taken_with_a_warning(stored, tmp_path, capsys):
    np.save(tmp_path / "mine.npy", np.eye(4, 8, dtype=np.float32))
    assert run(stored, "--assign", tmp_path / "mine.npy", "--out", tmp_path / "out") == 0
    assert np.array_equal(labels_of(tmp_path / "out"), blobs()[1])
    assert "it is not known whether one model made both" in capsys.readouterr().err


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("runtime: ")
    return lines[-1]


def test_clusters_of_other_embeddings_are_refused(stored, tmp_path, capsys):
    old, out = tmp_path / "old", tmp_path / "out"
    run(stored, "--k", 4, "--out", old)
    narrow = write(tmp_path / "narrow", np.eye(5))
    assert "centroids of width 8, embeddings of width 5" in refused(capsys, narrow, "--assign", old, "--out", out)
    other = write(tmp_path / "other", blobs()[0], model_sha256="cd" * 32)
    said = refused(capsys, other, "--assign", old, "--out", out)
    assert "by the model abababababab..., these are by cdcdcdcdcdcd...: embed them with the same model" in said
    said = refused(capsys, stored, "--assign", old, "--metric", "euclidean", "--out", out)
    assert "was clustered by cosine: --metric euclidean doesn't fit" in said
    assert not out.exists()


@pytest.mark.parametrize(
    "case",
    ["missing", "no npy", "npz", "a pipe", "pickle", "float64", "one row", "nan", "swapped", "summary", "cut"],
)
def test_damaged_centroids_are_refused(stored, tmp_path, capsys, case):
    old, given = tmp_path / "old", tmp_path / "c.npy"
    run(stored, "--k", 4, "--out", old)
    if case in ("swapped", "summary", "cut"):
        given = old
    if case == "no npy":
        given.write_bytes(b"hello")
    elif case == "npz":
        with given.open("wb") as file:
            np.savez(file, np.eye(4, 8, dtype=np.float32))
    elif case == "a pipe":
        os.mkfifo(given)
    elif case == "pickle":
        np.save(given, np.array([{}], object))
    elif case == "swapped":
        np.save(old / CENTROIDS, np.eye(4, 8, dtype=np.float32))
    elif case == "summary":
        (old / SUMMARY).write_text('{"files": []}')
    elif case == "cut":
        (old / SUMMARY).unlink()
    elif case != "missing":
        bad = np.eye(4, 8, dtype=np.float64 if case == "float64" else np.float32)
        bad[0, 0] = np.nan if case == "nan" else 1
        np.save(given, bad[0] if case == "one row" else bad)
    assert str(given) in refused(capsys, stored, "--assign", given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 8)}", "its header speaks of 320000000000"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 8)}}", "its header speaks of"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 9)}", "holds 128 bytes of numbers, its header speaks"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -8)}", "of shape (-4, -8), expected"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 8)", "is no .npy file"),
        ("'''", "is no .npy file"),
        ("(" * 9000, "is no .npy file"),
        ("{'descr': '<f4', b'fortran_order': False, 'shape': (4, 8)}", "is no .npy file"),
    ],
    ids=["huge", "beyond int64", "one column more", "negative", "no brace", "no end", "deep", "bytes"],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(stored, tmp_path, capsys, header, message):
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4 * 4 * 8)
    (tmp_path / "c.npy").write_bytes(data)
    assert message in refused(capsys, stored, "--assign", tmp_path / "c.npy", "--out", tmp_path / "out")


def test_centroids_in_columns_are_read_as_they_are(tmp_path):
    centroids = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "c.npy", np.asfortranarray(centroids))
    assert np.array_equal(assign.load(tmp_path / "c.npy").centroids, centroids)


def test_the_older_run_is_not_overwritten_by_what_it_labels(stored, tmp_path, capsys):
    old = tmp_path / "old"
    run(stored, "--k", 4, "--out", old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    (tmp_path / "link").symlink_to(old)
    for given in (old, old / CENTROIDS, tmp_path / "link"):
        said = refused(capsys, stored, "--assign", given, "--out", old)
        assert f"--out {old} is the older run of --assign: give it a folder of its own" in said
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


# options

VALUES = {
    "k": 4,
    "k_range": "2:5",
    "seed": 1,
    "n_init": 2,
    "max_iter": 9,
    "device": "cpu",
    "min_cluster_size": 9,
    "min_samples": 3,
    "linkage": "single",
}
MISPLACED = [(algorithm, name) for algorithm in ALGORITHMS for name in VALUES if name not in TAKES[algorithm]]


@pytest.mark.parametrize(("algorithm", "name"), MISPLACED, ids=lambda value: value)
def test_an_option_is_refused_where_it_means_nothing(stored, tmp_path, capsys, algorithm, name):
    flag = "--" + name.replace("_", "-")
    words = [] if algorithm == "hdbscan" or name == "k" else ["--k", 4]
    said = refused(capsys, stored, "--algorithm", algorithm, *words, flag, VALUES[name], "--out", tmp_path / "out")
    assert f"{flag} means nothing to --algorithm {algorithm}: it is for " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*VALUES, "algorithm"])
def test_nothing_is_set_beside_assign(stored, tmp_path, capsys, name):
    flag, value = "--" + name.replace("_", "-"), {**VALUES, "algorithm": "kmeans"}[name]
    said = refused(capsys, stored, "--assign", tmp_path, flag, value, "--out", tmp_path / "out")
    assert f"{flag} means nothing beside --assign" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", 4, "--k-range", "2:5"], "--k-range is for --k auto, not for --k 4"),
        (["--k", "auto", "--k-range", "5"], "must be LOW:HIGH"),
        (["--k", "auto", "--k-range", "1:5"], "must be LOW:HIGH, LOW 2 or more"),
        (["--k", "auto", "--k-range", "6:5"], "must be LOW:HIGH"),
        (["--k", 4, "--n-init", 0], "--n-init 0: must be 1 or more"),
        (["--k", 4, "--max-iter", 0], "--max-iter 0: must be 1 or more"),
        (["--k", 4, "--device", "gpu"], "--device gpu: must be cpu, torch-cpu, cuda or cuda:N"),
        (["--k", "auto", "--device", "gpu"], "--device gpu: must be cpu, torch-cpu, cuda or cuda:N"),
        (["--k", 4, "--device", "cuda:99999999999"], "--device cuda:99999999999: must be"),
        (["--k", 4, "--n-init", 10**20], f"--n-init {10**20}: must be 10000 at most"),
        (["--k", 4, "--max-iter", 10**20], f"--max-iter {10**20}: must be 1000000 at most"),
        (["--k", 4, "--provider", "openvino"], "--provider openvino is for the --model of --report"),
        (["--algorithm", "hdbscan", "--min-cluster-size", 1], "--min-cluster-size 1: must be 2 or more"),
        (["--algorithm", "hdbscan", "--min-cluster-size", 601], "--min-cluster-size 601: must be from 2 to 600"),
        (["--algorithm", "agglomerative", "--k", 4, "--seed", 1], "--seed means nothing to --algorithm agglomerative"),
        (["--algorithm", "minibatch", "--k", 601], "--k 601: must be from 1 to 600"),
        (["--algorithm", "spectral", "--k", 4], "invalid choice: 'spectral'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_senseless_value_is_refused_and_makes_nothing(stored, tmp_path, capsys, words, message):
    assert message in refused(capsys, stored, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torch_on_the_cpu_gives_the_same_clusters(stored, tmp_path):
    pytest.importorskip("torch")
    for device in ("cpu", "torch-cpu"):
        assert run(stored, "--k", 4, "--device", device, "--out", tmp_path / device) == 0
    assert np.array_equal(labels_of(tmp_path / "cpu"), labels_of(tmp_path / "torch-cpu"))
    assert summary_of(tmp_path / "torch-cpu")["options"] == {"device": "torch-cpu"}
    told = [summary_of(tmp_path / device)["versions"].keys() for device in ("cpu", "torch-cpu")]
    assert told[1] - told[0] == {"torch"}
