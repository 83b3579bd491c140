import numpy as np

from exporter.calibration.tally import BINS, LEVELS, Tally, bins, edges

L, S, P = 3, 4, 7


def batch(n, seed):
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(0, 1.5, (n, L, S, P))).astype(np.float32)
    return norms, rng.random((n, L, P)).astype(np.float32)


def test_a_tally_counts_patches_images_places_and_attention():
    norms, attention = batch(9, 0)
    tally = Tally.empty(L, S, P)
    for rows in (slice(0, 4), slice(4, 9)):
        tally.add(norms[rows], attention[rows])
    assert tally.seen == 9
    ratio = norms / np.median(norms, axis=-1, keepdims=True)
    assert (tally.counts.sum(axis=-1) == 9 * P).all()
    for layer, source, number in ((0, 1, 0), (2, 3, 6), (1, 0, 9)):
        high = ratio[:, layer, source] > LEVELS[number]
        np.testing.assert_array_equal(tally.places[layer, source, 0, number], high.sum(axis=0))
        assert tally.images[layer, source, 0, number] == high.any(axis=1).sum()
        low = ratio[:, layer, source] < 1 / LEVELS[number]
        np.testing.assert_array_equal(tally.places[layer, source, 1, number], low.sum(axis=0))
        inside = bins(ratio[:, layer, source]) > BINS // 2 + 10
        for later in range(layer, L):
            wanted = attention[:, later][inside].sum()
            np.testing.assert_allclose(tally.attention[layer, source, BINS // 2 + 11 :, later].sum(), wanted, rtol=1e-5)
    assert not tally.attention[2, :, :, 0].any()  # a later layer's norms say nothing about an earlier one
    np.testing.assert_allclose(tally.extremes[:9, :, :, 0], ratio.max(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(tally.extremes[:9, :, :, 1], 1 / ratio.min(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(tally.medians, np.median(norms, axis=-1).sum(axis=0), rtol=1e-5)


def test_memory_does_not_grow_with_the_images():
    tally = Tally.empty(L, S, P)
    before = [value.nbytes for value in vars(tally).values() if isinstance(value, np.ndarray)]
    for seed in range(300):
        tally.add(*batch(8, seed))
    assert tally.seen == 2400
    assert before == [value.nbytes for value in vars(tally).values() if isinstance(value, np.ndarray)]


def test_extreme_ratios_lie_in_the_outer_bins():
    assert bins(np.float32([0, 1e-30, 1, 1e30, np.inf])).tolist() == [0, 0, BINS // 2, BINS - 1, BINS - 1]
    assert len(edges()) == BINS + 1
    zeros = np.zeros((1, 1, 1, P), np.float32)
    tally = Tally.empty(1, 1, P)
    tally.add(zeros, np.zeros((1, 1, P), np.float32))
    assert tally.counts[0, 0, BINS // 2] == P
