"""Scores on resampled images: solved by hand, beside scikit-learn's, and how often chance is called a difference."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from runtime.evaluation import resampling
from runtime.evaluation.differences import over_images
from runtime.evaluation.resampling import SeedLabels, resampled_scores, seeds_used

METRICS = ("acc", "nmi", "ari")


def clustering(truth: np.ndarray, wrong: np.ndarray, rng: np.random.Generator) -> SeedLabels:
    """Labels that are the class, but any of four clusters where `wrong` says so."""
    labels = np.where(wrong, rng.integers(0, 4, len(truth)), truth).astype(np.int32)
    return SeedLabels(labels, labels == truth)


def whole(truth: np.ndarray, one: SeedLabels) -> dict[str, float]:
    return {
        "acc": float(one.is_right.mean()),
        "nmi": float(normalized_mutual_info_score(truth, one.labels)),
        "ari": float(adjusted_rand_score(truth, one.labels)),
    }


def test_the_interval_of_acc_is_the_binomials() -> None:
    # 400 images; the model is right on 60 where the baseline is wrong, and nowhere wrong where it is right.
    truth = np.zeros(400, np.int32)
    labels = np.zeros(400, np.int32)
    better, baseline = np.ones(400, np.bool_), np.arange(400) >= 60
    scores = [resampled_scores(truth, [SeedLabels(labels, right)], 0, 4_000)["acc"] for right in (better, baseline)]
    found = over_images(60 / 400, *scores, seeds=1)
    low, high = stats.binom.ppf([0.025, 0.975], 400, 60 / 400) / 400
    assert (found.low, found.high) == pytest.approx((low, high), abs=2 / 400)
    assert found.p == pytest.approx(1 / 4_001)  # no resample is so far off


def test_the_p_of_acc_is_that_of_the_normal_distribution() -> None:
    # Right alone: the model on 60 images of 400, the baseline on 45: 15 more, with a deviation of sqrt(105 - 15²/400).
    truth, labels = np.zeros(400, np.int32), np.zeros(400, np.int32)
    row = np.arange(400)
    scores = [
        resampled_scores(truth, [SeedLabels(labels, right)], 0, 4_000)["acc"]
        for right in ((row < 60) | (row >= 105), row >= 60)
    ]
    found = over_images(15 / 400, *scores, seeds=1)
    assert found.p == pytest.approx(2 * stats.norm.sf(15 / (105 - 15**2 / 400) ** 0.5), abs=0.03)


def test_scores_of_a_resample_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200).astype(np.int32)
    some = [SeedLabels(rng.integers(0, k, 200).astype(np.int32), rng.random(200) < 0.5) for k in (5, 3, 150)]
    found = resampled_scores(truth, some, 7, 5)
    generator = np.random.default_rng(7)
    for number in range(5):
        drawn = generator.integers(200, size=200)
        expected = [
            (
                one.is_right[drawn].mean(),
                normalized_mutual_info_score(truth[drawn], one.labels[drawn]),
                adjusted_rand_score(truth[drawn], one.labels[drawn]),
            )
            for one in some
        ]
        got = [found[metric][number] for metric in METRICS]
        np.testing.assert_allclose(got, np.mean(expected, axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("truth", "labels"),
    [([0, 0, 0], [0, 0, 0]), ([0, 0, 0], [0, 1, 2]), ([0], [0]), ([0, 1], [0, 0])],
    ids=["one class, one cluster", "one class", "one image", "one cluster"],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_tables_score_as_scikit_learns(truth, labels) -> None:
    truth, labels = np.array(truth, np.int32), np.array(labels, np.int32)
    found = resampled_scores(truth, [SeedLabels(labels, labels == truth)], 0, 3)
    generator = np.random.default_rng(0)
    for number in range(3):
        drawn = generator.integers(len(truth), size=len(truth))
        assert found["nmi"][number] == pytest.approx(normalized_mutual_info_score(truth[drawn], labels[drawn]))
        assert found["ari"][number] == pytest.approx(adjusted_rand_score(truth[drawn], labels[drawn]))


def ps(simulations: int, other_share: float) -> dict[str, np.ndarray]:
    """p of many sets of 300 images: a model is wrong on 0.4 of them, the baseline on another share."""
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for number in range(simulations):
        rng = np.random.default_rng(number)
        truth = rng.integers(0, 4, 300).astype(np.int32)
        hard = rng.random(300)  # the same images are hard for both, as they are in life
        models = [clustering(truth, hard + 0.3 * rng.random(300) < share + 0.15, rng) for share in (0.4, other_share)]
        scores = [resampled_scores(truth, [one], number, 150) for one in models]
        wholes = [whole(truth, one) for one in models]
        for metric in METRICS:
            difference = wholes[0][metric] - wholes[1][metric]
            found[metric].append(over_images(difference, *(one[metric] for one in scores), seeds=1).p)
    return {metric: np.array(values) for metric, values in found.items()}


def test_chance_alone_is_called_a_difference_as_often_as_p_says() -> None:
    for values in ps(120, 0.4).values():
        assert (values < 0.05).mean() < 0.12  # 0.05, and three standard errors
        assert 0.36 < (values < 0.5).mean() < 0.64


def test_a_difference_is_found() -> None:
    for values in ps(40, 0.65).values():
        assert (values < 0.05).mean() > 0.9


def test_models_that_agree_have_no_p_and_no_width() -> None:
    same = np.linspace(0, 1, 9)
    found = over_images(0.1, same + 0.1, same, 2)
    assert (found.low, found.high, found.p) == (0.1, 0.1, None)


def test_the_same_seed_draws_the_same_images_for_every_model() -> None:
    truth = np.arange(50, dtype=np.int32) % 2
    one = SeedLabels(truth, truth == 0)
    first, second = (resampled_scores(truth, [one], 3, 20)["acc"] for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, resampled_scores(truth, [one], 4, 20)["acc"])


@pytest.mark.parametrize(
    ("seeds", "images", "expected"), [(1, 10, 1), (40, 10_000, 10), (10, 50_000, 4), (10, 10**7, 1)]
)
def test_seeds_are_used_as_far_as_the_cost_is_bounded(seeds, images, expected) -> None:
    assert seeds_used(seeds, images) == expected


def test_the_cost_is_bounded() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 200, 10_000).astype(np.int32)
    some = [SeedLabels(rng.integers(0, 200, 10_000).astype(np.int32), truth > 3)] * resampling.MOST_SEEDS
    start = time.process_time()
    resampled_scores(truth, some, 0, 50)
    assert time.process_time() - start < 4  # a fifth of that as a rule; 1,000 resamples take 20 times as long
