"""The nodes that find artifacts, alone, on given norms: ties at the threshold, equal norms, odd and even medians."""

import itae_in_numpy as oracle
import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import over

from exporter.methods.itae.graph.detect import find_artifacts
from exporter.methods.itae.graph.median import median_and_mad
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.edit import Editor

SIDES = ("high", "low", "both")


def session_of(graph: gs.Graph) -> onnxruntime.InferenceSession:
    model = gs.export_onnx(graph.toposort(), do_type_check=False)
    model.ir_version = 10
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def norms_in(P: int, prefix: int) -> tuple[gs.Variable, gs.Graph]:
    norm = gs.Variable("norm", np.float32, ["batch", prefix + P])
    return norm, gs.Graph(inputs=[norm], opset=20)


def with_prefix(norms: np.ndarray, prefix: int, seed: int = 0) -> np.ndarray:
    """Norms of patches (B, P) as those of all tokens (B, N), CLS and registers far out on either side."""
    others = np.random.default_rng(seed).choice(np.float32([0, 1e-3, 1e6]), (len(norms), prefix))
    return np.concatenate([others, norms], axis=1).astype(np.float32)


def detector(itae: ItaeConfig, P: int, prefix: int = 1):
    """A function (B, P) norms -> (B, P) flags, by a graph over all tokens."""
    norm, graph = norms_in(P, prefix)
    graph.outputs = [find_artifacts(Editor(graph, "test"), norm, itae, prefix)]
    session = session_of(graph)

    def flags(norms: np.ndarray) -> np.ndarray:
        (found,) = session.run(None, {"norm": with_prefix(norms, prefix)})
        assert not found[:, :prefix].any()  # CLS and registers never are
        return found[:, prefix:]

    return flags


def flags_of(itae: ItaeConfig, norms: list[list[float]]) -> list[list[bool]]:
    array = np.array(norms, np.float32)
    return detector(itae, array.shape[1])(array).tolist()


def test_a_norm_at_an_absolute_threshold_is_low_and_not_high():
    norms = [[1.0, 2.0, 3.0]]
    assert flags_of(ItaeConfig(threshold="absolute:2", side="high"), norms) == [[False, False, True]]
    assert flags_of(ItaeConfig(threshold="absolute:2", side="low"), norms) == [[True, True, False]]


@pytest.mark.parametrize(
    ("threshold", "norms"),
    [
        ("zscore:0", [3.0, 3.0, 3.0, 3.0]),  # z = 0 at λ = 0
        ("mad:0", [3.0, 3.0, 3.0, 3.0]),
        ("ratio:2", [1.0, 2.0, 4.0]),  # median 2: 4 is not above 4, 1 is not below 1
        ("ratio:2", [1.0, 2.0, 2.0, 4.0]),
    ],
)
def test_a_score_at_its_threshold_is_no_artifact(threshold, norms):
    assert not np.any(flags_of(ItaeConfig(threshold=threshold, side="both"), [norms]))


@pytest.mark.parametrize(("off", "flagged"), [(2e-6, False), (8e-6, True)])
def test_without_any_spread_the_epsilon_decides(off, flagged):
    # MAD is 0: z = off / 1e-6, so that 2e-6 is under λ = 5 and 8e-6 over it. Near 2 ** -10, float32 resolves 1e-10.
    norms = [[2**-10, 2**-10, 2**-10, 2**-10 + off]]
    assert flags_of(ItaeConfig(threshold="mad:5", side="high"), norms) == [[False, False, False, flagged]]


@over(threshold=("mad:1.5", "zscore:1", "ratio:1.25", "absolute:1.5"), side=SIDES, P=(1, 2, 3, 4, 7, 8))
def test_flags_equal_the_formulas(threshold, side, P):
    if threshold.startswith("absolute") and side == "both":
        side = "high"
    detect = detector(ItaeConfig(threshold=threshold, side=side), P, prefix=1 if P % 4 else 5)
    values = st.integers(1, 64).map(lambda n: n / 16)  # exact in float32, and often equal

    @given(st.lists(st.lists(values, min_size=P, max_size=P), min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def equal(norms):
        array = np.array(norms, np.float32)
        flags = detect(array)
        for row, got in zip(array.astype(np.float64), flags, strict=True):
            want = oracle.is_artifact(row, threshold, side)
            near = oracle.is_artifact(row * (1 + 1e-6), threshold, side) == oracle.is_artifact(
                row, threshold.partition(":")[0] + f":{float(threshold.partition(':')[2]) * (1 + 1e-6)}", side
            )
            exact = threshold.startswith("absolute")
            np.testing.assert_array_equal(got[near | exact], want[near | exact])

    equal()


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("P", [1, 2, 3, 4, 5, 8, 9, 20])
def test_median_and_mad_equal_numpys_to_the_last_bit(P, prefix):
    norm, graph = norms_in(P, prefix)
    graph.outputs = list(median_and_mad(Editor(graph, "test"), norm, prefix))
    assert sum(node.op == "TopK" for node in graph.nodes) == 1  # one sort for both
    session = session_of(graph)
    # Of few bits, so that numpy's float64 and the graph's float32 agree exactly.
    values = st.integers(0, 64).map(lambda n: n / 16)

    @given(st.lists(values, min_size=P, max_size=P))
    @settings(max_examples=100, deadline=None)
    def equal(norms):
        x = np.array([norms])
        middle, mad = session.run(None, {"norm": with_prefix(x, prefix)})
        assert middle.item() == np.median(x)
        assert mad.item() == np.median(np.abs(x - np.median(x)))

    equal()


@pytest.mark.parametrize("P", [3839, 3840, 7679])
def test_more_patches_than_one_topk_sorts_are_still_right(P):
    x = np.random.default_rng(P).gamma(3, 1, (2, P)).astype(np.float32)
    norm, graph = norms_in(P, 1)
    graph.outputs = list(median_and_mad(Editor(graph, "test"), norm, 1))
    counts = [int(node.inputs[1].values.item()) for node in graph.nodes if node.op == "TopK"]
    assert len(counts) == (1 if P == 3839 else 2)
    assert max(counts) <= 3840
    middle, mad = session_of(graph).run(None, {"norm": with_prefix(x, 1)})
    want = np.median(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(middle, want)
    np.testing.assert_array_equal(mad, np.median(np.abs(x - want), axis=1, keepdims=True))


@over(
    threshold=(
        *("mad:0", "mad:0.67", "mad:0.68", "mad:5"),
        *("zscore:0", "zscore:0.99", "zscore:1.01"),
        *("ratio:1.001", "ratio:2"),
    ),
    P=(1, 2, 3, 4, 6),
    side=SIDES,
)
def test_images_without_a_normal_patch_are_only_ruled_out_where_there_are_none(threshold, P, side):
    itae = ItaeConfig(threshold=threshold, side=side)
    detect = detector(itae, P)
    values = st.one_of(st.integers(0, 16).map(float), st.floats(0, 2**10, width=32))

    @given(st.lists(values, min_size=P, max_size=P))
    @settings(max_examples=150, deadline=None)
    def ruled_out(norms):
        assert itae.may_flag_all(P) or not detect(np.array([norms], np.float32)).all()

    ruled_out()


@pytest.mark.parametrize(
    ("itae", "norms"),
    [
        (ItaeConfig(threshold="mad:0.6", side="both"), [1.0, 2.0]),
        (ItaeConfig(threshold="zscore:0.9", side="both"), [1.0, 2.0]),
        (ItaeConfig(threshold="ratio:1.2", side="both"), [1.0, 2.0]),
        (ItaeConfig(threshold="absolute:3", side="low"), [1.0, 2.0, 3.0]),
    ],
)
def test_images_without_a_normal_patch_are_found(itae, norms):
    assert np.all(flags_of(itae, [norms]))
    assert itae.may_flag_all(len(norms))
