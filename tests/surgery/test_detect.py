"""The nodes that find artifacts, alone, on given norms: ties at the threshold, equal norms, odd and even medians."""

import itae_in_numpy as oracle
import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.itae import ItaeConfig
from exporter.surgery.detect import find_artifacts
from exporter.surgery.edit import Editor


def detector(itae: ItaeConfig, P: int) -> onnxruntime.InferenceSession:
    """A graph (B, P) norms -> (B, P) flags."""
    norm = gs.Variable("norm", np.float32, ["batch", P])
    graph = gs.Graph(inputs=[norm], opset=20)
    flags = find_artifacts(Editor(graph, "test"), norm, itae)
    graph.outputs = [flags]
    model = gs.export_onnx(graph.toposort(), do_type_check=False)
    model.ir_version = 10
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def flags_of(itae: ItaeConfig, norms: list[list[float]]) -> list[list[bool]]:
    array = np.array(norms, np.float32)
    (flags,) = detector(itae, array.shape[1]).run(None, {"norm": array})
    return flags.tolist()


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


@pytest.mark.parametrize("P", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("side", ["high", "low", "both"])
@pytest.mark.parametrize("threshold", ["mad:1.5", "zscore:1", "ratio:1.25", "absolute:1.5"])
def test_flags_equal_the_formulas(threshold, side, P):
    if threshold.startswith("absolute") and side == "both":
        side = "high"
    session = detector(ItaeConfig(threshold=threshold, side=side), P)
    values = st.integers(1, 64).map(lambda n: n / 16)  # exact in float32, and often equal

    @given(st.lists(st.lists(values, min_size=P, max_size=P), min_size=1, max_size=3))
    @settings(max_examples=60)
    def equal(norms):
        array = np.array(norms, np.float32)
        (flags,) = session.run(None, {"norm": array})
        for row, got in zip(array.astype(np.float64), flags, strict=True):
            want = oracle.is_artifact(row, threshold, side)
            near = oracle.is_artifact(row * (1 + 1e-6), threshold, side) == oracle.is_artifact(
                row, threshold.partition(":")[0] + f":{float(threshold.partition(':')[2]) * (1 + 1e-6)}", side
            )
            exact = threshold.startswith("absolute")
            np.testing.assert_array_equal(got[near | exact], want[near | exact])

    equal()
