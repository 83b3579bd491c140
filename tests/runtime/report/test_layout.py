"""The map: PCA against a computation by hand, samples by seed, UMAP where it is installed."""

import importlib.util

import numpy as np
import pytest

from runtime.report import layout
from runtime.report.layout import MOST_POINTS, draw_map, sample_rows


def key(row: int) -> tuple[str, str]:
    return "/root", str(row)


def draw(points: np.ndarray, **more):
    return draw_map(points.astype(np.float32).__getitem__, np.zeros(len(points), np.int32), key, **more)


def test_pca_finds_the_axes_that_vary_most():
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((200, 2)) * (5, 2)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    points = np.hstack([plane, 0.01 * rng.standard_normal((200, 4))]) @ turn + 3
    found = draw(points).layouts[0]
    assert found.name == "PCA"
    assert found.note == "the two axes hold 100% of the variance"
    plane -= plane.mean(axis=0)
    _, _, axes = np.linalg.svd(plane, full_matrices=False)
    expected = plane @ axes.T
    signs = np.sign((found.positions * expected).sum(axis=0))
    np.testing.assert_allclose(found.positions * signs, expected, atol=0.1)
    assert found.positions[:, 0].std() > found.positions[:, 1].std()


def test_share_of_variance_is_of_the_whole():
    points = np.eye(8)[np.arange(800) % 8]  # seven directions that vary alike
    assert draw(points).layouts[0].note == "the two axes hold 29% of the variance"


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1), (4, 2)], ids=str)
def test_few_points_or_columns_are_no_trouble(shape):
    found = draw(np.random.default_rng(1).standard_normal(shape))
    assert found.layouts[0].positions.shape == (shape[0], 2)
    assert np.isfinite(found.layouts[0].positions).all()


def test_equal_points_lie_on_one_spot():
    assert not draw(np.ones((7, 3))).layouts[0].positions.any()


def test_many_points_are_sampled_by_seed():
    n = MOST_POINTS + 500
    points = np.random.default_rng(2).standard_normal((n, 3))
    first, again, other = draw(points, seed=1), draw(points, seed=1), draw(points, seed=2)
    assert len(first.keys) == MOST_POINTS
    assert first.total == n
    assert first.keys == again.keys != other.keys
    np.testing.assert_array_equal(first.layouts[0].positions, again.layouts[0].positions)
    rows = sample_rows(n, MOST_POINTS, 1)
    assert (np.diff(rows) > 0).all()


def test_few_points_are_all_there_with_their_classes_and_clusters():
    labels = np.array([2, 0, 1])
    found = draw_map(np.eye(3, dtype=np.float32).__getitem__, labels, key, classes=["x", "y", "z"])
    assert found.keys == [key(0), key(1), key(2)]
    assert found.clusters == [2, 0, 1]
    assert found.labels == ["x", "y", "z"]


def test_without_umap_there_is_pca_alone(monkeypatch):
    monkeypatch.setattr(layout.importlib.util, "find_spec", lambda name: None)
    assert [one.name for one in draw(np.random.default_rng(3).standard_normal((40, 4))).layouts] == ["PCA"]


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed (extra umap)")
def test_umap_keeps_groups_apart_and_repeats_itself():
    rng = np.random.default_rng(4)
    group = np.repeat([0, 1], 40)
    points = rng.standard_normal((80, 5)) + 20 * group[:, None]
    _, found = draw(points).layouts
    assert found.name == "UMAP"
    centres = [found.positions[group == one].mean(axis=0) for one in (0, 1)]
    spread = max(found.positions[group == one].std() for one in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > spread
    np.testing.assert_array_equal(found.positions, draw(points).layouts[1].positions)
