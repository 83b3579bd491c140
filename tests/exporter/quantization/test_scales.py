"""Scales, on activations with massive channels: what a norm can hand over, and what it can't."""

import numpy as np

from exporter.quantization import scales
from exporter.quantization.observation import Seen, observe
from exporter.quantization.scales import choose
from exporter.surgery.quantize_linears import Group, Layer

C = 64


def group(gain: bool) -> Group:
    layers = {"x": (Layer("w", "b"),)}
    return Group("x" if gain else None, "gain" if gain else None, "shift" if gain else None, layers)


def tokens(massive: float) -> np.ndarray:
    """256 tokens, of which one in 32 has a massive channel."""
    found = np.random.default_rng(0).standard_normal((256, C)).astype(np.float32)
    found[::32, 5] = massive
    return found


def as_seen(found: np.ndarray) -> dict[str, Seen]:
    return {"x": Seen(np.abs(found).max(axis=0), [found[1:]], [found[:1]])}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"w": (C, 96), "b": (1, 96), "gain": (C,), "shift": (C,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def computed(chosen, found: np.ndarray, factors=1.0) -> np.ndarray:
    scale, layer = chosen.inputs["x"], chosen.layers["w"]
    rounded = np.clip(np.rint(found / factors / scale), -128, 127) * scale
    return rounded @ (layer.weight * layer.scales) + layer.bias


def off(got: np.ndarray, exact: np.ndarray) -> float:
    """Mean squared error as a share, token by token."""
    return float((np.square(got - exact).sum(axis=1) / np.square(exact).sum(axis=1)).mean())


def test_a_norm_hands_massive_channels_to_the_weights(monkeypatch):
    found, given = tokens(100.0), values()
    exact = found @ given["w"] + given["b"]
    monkeypatch.setattr(scales, "WORTH", 0.0)
    alone = choose(group(gain=False), as_seen(found), given)
    assert alone.divisors is None
    helped = choose(group(gain=True), as_seen(found), given)
    factors = given["gain"] / helped.gain
    np.testing.assert_allclose(given["shift"] / helped.shift, factors, rtol=1e-5)
    assert off(computed(helped, found, factors), exact) < 3e-3
    assert off(computed(alone, found), exact) > 10 * off(computed(helped, found, factors), exact)


def test_without_a_norm_channels_are_divided_where_that_is_worth_it():
    found, given = tokens(100.0), values()
    exact = found @ given["w"] + given["b"]
    divided = choose(group(gain=False), as_seen(found), given)
    assert divided.gain is None
    assert off(computed(divided, found, divided.divisors), exact) < 3e-3
    assert choose(group(gain=False), as_seen(tokens(3.0)), given).divisors is None


def test_a_bias_takes_the_mean_change():
    found, given = tokens(3.0) + 0.3, values()
    chosen = choose(group(gain=False), as_seen(found), given)
    exact = found[1:] @ given["w"] + given["b"]
    bias = chosen.layers["w"].bias
    change = (computed(chosen, found[1:]) - exact).mean(axis=0)
    plain = change + given["b"].reshape(-1) - bias
    assert np.abs(change).max() < 1e-3 < np.abs(plain).max()


class _Session:
    """Gives its input back under two names."""

    def get_inputs(self):
        return [type("Input", (), {"name": "in"})]

    def run(self, names, feed):
        return [feed["in"] * factor for factor, _ in zip((1, -2), names, strict=True)]


def test_ranges_are_those_of_all_tokens_and_pictures():
    rng = np.random.default_rng(2)
    batches = [rng.standard_normal((2, 40, 8)).astype(np.float32) for _ in range(3)]
    found = observe(_Session(), ["a", "b"], batches)
    everything = np.abs(np.concatenate(batches)).max(axis=(0, 1))
    np.testing.assert_array_equal(found["a"].largest, everything)
    np.testing.assert_array_equal(found["b"].largest, 2 * everything)
    assert np.abs(found["a"].tokens).max() == everything.max()  # the largest token is kept
    first = [tuple(picture[0]) for batch in batches for picture in batch]
    assert set(first) <= set(map(tuple, found["a"].tokens))
