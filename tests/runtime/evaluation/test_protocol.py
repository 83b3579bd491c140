"""The protocol: scores of sets solved by hand, and changes that must have no effect."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from runtime.contract.errors import InputError
from runtime.contract.manifest import read_manifest
from runtime.evaluation.cache import EmbeddedDataset, of_common_images
from runtime.evaluation.datasets import Dataset
from runtime.evaluation.protocol import METRICS, compare, evaluate

EXACT = 1e-12


@pytest.fixture(scope="module")
def manifest(make_model, tmp_path_factory):
    return read_manifest(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def embed(manifest):
    """Vectors and labels as a data set that was embedded."""

    def make(vectors, labels, classes=("ant", "bee", "cow", "dog"), name="x.onnx") -> EmbeddedDataset:
        n = len(labels)
        keys = tuple(("/data", f"{row}.png") for row in range(n))
        data = Dataset("folder", "set", Path("/data"), tuple(classes), np.array(labels, np.int32), keys, None, "0" * 64)
        vectors = np.array(vectors, np.float32)
        return EmbeddedDataset(name, manifest, data, np.arange(n), vectors, (), None, n, 0.0)

    return make


def entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares if share)


def six_points() -> np.ndarray:
    """Two clusters of three, which k-means can't miss."""
    return np.array([[9, 0], [9, 1], [9, 2], [-9, 0], [-9, 1], [-9, 2]], np.float32)


def test_six_points_with_one_astray_score_as_by_hand(embed) -> None:
    # Classes of 4 and 2, clusters of 3 and 3: as in test_metrics.py.
    found = evaluate(embed(six_points(), [0, 0, 0, 0, 1, 1], ("ant", "bee")), "raw", range(3))
    assert found.k == 2
    half, thirds = entropy(1 / 2, 1 / 2), entropy(2 / 3, 1 / 3)
    mutual = thirds + half - entropy(1 / 2, 1 / 6, 1 / 3)
    assert found.mean("acc") == pytest.approx(5 / 6, abs=EXACT)
    assert found.mean("nmi") == pytest.approx(mutual / ((half + thirds) / 2), abs=EXACT)
    assert found.mean("ari") == pytest.approx((4 - 2.8) / (6.5 - 2.8), abs=EXACT)
    assert found.confusion.tolist() == [[3, 1], [0, 2]]
    assert found.class_of_cluster[found.clustering.labels].tolist() == [0, 0, 0, 1, 1, 1]
    assert [one.seed for one in found.scores] == [0, 1, 2]
    assert found.deviation("acc") == pytest.approx(0, abs=EXACT)
    assert evaluate(embed(six_points(), [0, 0, 0, 0, 1, 1]), "raw", [5]).deviation("acc") is None


def noisy(seed: int, spread: float, n: int = 240, k: int = 4) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % k)
    return np.eye(8)[labels] + spread * rng.standard_normal((n, 8)), labels.tolist()


def test_accuracy_is_the_trace_of_the_confusion_matrix_and_the_seed_is_the_median(embed) -> None:
    vectors, labels = noisy(0, 1.0)
    found = evaluate(embed(vectors, labels), "raw", range(5))
    values = found.values("acc")
    assert len(set(values.tolist())) > 1  # so that the next line can fail
    assert values[found.median] == np.median(values)
    assert np.trace(found.confusion) / len(labels) == pytest.approx(values[found.median], abs=EXACT)
    assert found.confusion.sum(axis=1).tolist() == np.bincount(labels).tolist()
    predicted = found.class_of_cluster[found.clustering.labels]
    assert (predicted == found.truth).mean() == pytest.approx(values[found.median], abs=EXACT)
    assert sorted(found.class_of_cluster.tolist()) == [0, 1, 2, 3]
    assert found.mean("acc") == pytest.approx(values.mean())
    assert found.deviation("acc") == pytest.approx(np.std(values, ddof=1))


def test_other_numbers_and_names_of_classes_change_no_score(embed) -> None:
    vectors, labels = noisy(1, 0.5)
    one = evaluate(embed(vectors, labels), "l2", range(3))
    other = evaluate(embed(vectors, [[2, 0, 3, 1][label] for label in labels], ("w", "z", "a", "b")), "l2", range(3))
    for metric in METRICS:
        assert other.values(metric) == pytest.approx(one.values(metric), abs=EXACT)


def test_classes_that_do_not_occur_do_not_count(embed) -> None:
    found = evaluate(embed(six_points(), [1, 1, 1, 3, 3, 3]), "raw", [0])
    assert (found.k, found.classes, found.truth.tolist()) == (2, ("bee", "dog"), [0, 0, 0, 1, 1, 1])
    assert found.mean("acc") == 1


def test_normalising_takes_the_length_away(embed) -> None:
    direction, length = np.repeat([[1, 0.01], [0.01, 1]], 20, axis=0), np.tile([1, 100], 20)[:, None]
    jitter = 1e-3 * np.random.default_rng(0).standard_normal((40, 2))
    data = embed((direction + jitter) * length, [0] * 20 + [1] * 20, ("ant", "bee"))
    assert evaluate(data, "l2", [0]).mean("acc") == 1
    assert evaluate(data, "raw", [0]).mean("acc") < 0.9
    assert data.vectors[1, 0] > 50  # the embeddings themselves are left alone


def test_a_seed_gives_the_same_whatever_others_are_asked_for(embed) -> None:
    vectors, labels = noisy(3, 0.6)
    data = embed(vectors, labels)
    assert evaluate(data, "raw", range(5)).scores[3] == evaluate(data, "raw", [3]).scores[0]


def test_the_better_model_wins_and_the_test_says_so(embed) -> None:
    labels = noisy(4, 0)[1]
    better, worse = (embed(noisy(4, spread)[0], labels, name=str(spread)) for spread in (0.45, 0.6))
    found = compare(evaluate(better, "raw", range(8)), evaluate(worse, "raw", range(8)))
    for metric in METRICS:
        seeds, images = found.over_seeds[metric], found.over_images[metric]
        assert seeds.low > 0
        assert seeds.t_p is None or seeds.t_p < 0.01
        assert images.low > 0
        assert images.p < 0.05
        assert images.seeds == 8
    back = compare(found.baseline, found.model)
    assert back.over_seeds["acc"].mean == pytest.approx(-found.over_seeds["acc"].mean)
    forth_again, back_again = found.over_images["acc"], back.over_images["acc"]
    assert (back_again.low, back_again.high) == pytest.approx((-forth_again.high, -forth_again.low), abs=0.01)


def test_models_are_compared_on_the_images_that_all_could_embed(embed) -> None:
    vectors, labels = noisy(5, 0.3)
    whole = embed(vectors, labels)
    rows = np.delete(np.arange(len(labels)), [3, 7])
    part = dataclasses.replace(whole, rows=rows, vectors=whole.vectors[rows], left_out=(whole.keys[3], whole.keys[7]))
    one, other = of_common_images([whole, part])
    assert one.rows.tolist() == other.rows.tolist() == rows.tolist()
    assert np.array_equal(one.vectors, other.vectors)
    with pytest.raises(ValueError, match="other images"):
        compare(evaluate(whole, "raw", [0]), evaluate(part, "raw", [0]))


def test_each_seed_is_the_best_of_as_many_starts_as_are_asked_for(embed) -> None:
    vectors, labels = noisy(6, 1.0, n=120)
    data = embed(vectors, labels)
    one, many = (evaluate(data, "raw", range(6), n_init=n_init) for n_init in (1, 20))
    assert (one.starts, many.starts) == (1, 20)
    pairs = list(zip(one.scores, many.scores, strict=True))
    assert all(best.inertia <= single.inertia for single, best in pairs)  # the first start is the same
    assert any(best.inertia < single.inertia for single, best in pairs)


def test_a_single_class_is_refused_as_every_score_would_be_1(embed) -> None:
    with pytest.raises(InputError, match=r"^set, x\.onnx, raw: all 6 images are of one class, 'bee'"):
        evaluate(embed(six_points(), [1] * 6), "raw", [0])


def test_what_cannot_be_clustered_is_told_with_model_and_data_set(embed) -> None:
    same = embed([[1, 1]] * 4, [0, 1, 0, 1])
    with pytest.raises(InputError, match=r"^set, x\.onnx, raw: can't be clustered into 2 \(.* only 1 distinct ones"):
        evaluate(same, "raw", [0])
    zero = embed([[1, 1], [0, 0], [2, 1]], [0, 1, 0])
    with pytest.raises(InputError, match=r"the embedding of /data/1\.png \(row 1\) is all zeros"):
        evaluate(zero, "l2", [0])


def test_progress_is_told_of_each_seed_and_start(embed, monkeypatch) -> None:
    for name in ("FIRST_LINE", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(f"runtime.contract.progress.{name}", -1.0)
    said: list[str] = []
    evaluate(embed(six_points(), [0, 0, 0, 1, 1, 1]), "raw", range(3), n_init=2, tell=said.append)
    assert said[0] == "set, x.onnx, raw: seed 1 of 3, start 1 of 2: choosing centroids"
    last = r"set, x\.onnx, raw: seed 3 of 3, start 2 of 2: iteration \d, 0 of 6 embeddings changed their cluster"
    assert re.fullmatch(last, said[-1])
