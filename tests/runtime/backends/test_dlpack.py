"""Tensors of other libraries in and out, where they lie. On GPUs: test_gpu_session.py with a fake, tests/gpu."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from runtime import load
from runtime.backends import tensors
from runtime.backends.ort import OrtSession
from runtime.contract.errors import CheckError, InputError, UsageError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest

torch = pytest.importorskip("torch")

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
PROVIDERS = [
    "cpu",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="pip install 'itae[openvino]'"),
    ),
]


class Foreign:
    """A tensor of a library that numpy has never heard of."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 42, 42)).astype(np.float32)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("make", [torch.from_numpy, Foreign], ids=["torch", "another library"])
@pytest.mark.parametrize("count", [1, 8, 19])
def test_a_tensor_is_embedded_as_the_same_array(count, make, provider, tiny) -> None:
    batch = images(count)
    with load(tiny, provider) as model:
        got = model.embed(make(batch))
        np.testing.assert_array_equal(torch.from_dlpack(got).numpy(), model.embed(batch))
        assert got.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_tensor_keeps_parity_with_the_golden_sample(dtype, make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL, dtype=dtype)
    golden = read_golden(path, read_manifest(path))
    with load(path) as model:
        got = torch.from_dlpack(model.embed(torch.from_numpy(golden.input), batch=3))
    np.testing.assert_allclose(got.numpy(), golden.embedding, rtol=0, atol=1e-4)


def test_onnxruntime_reads_and_writes_the_very_memory(tiny, monkeypatch) -> None:
    """By address: of the tensor that was passed, and of the embedding that comes back."""
    seen = []

    class Watched:
        def __init__(self, session) -> None:
            self.session = session

        def io_binding(self):
            binding = self.session.io_binding()
            inner = binding.bind_input, binding.bind_output
            binding.bind_input = lambda *a: (seen.append(("in", a[-1])), inner[0](*a))
            binding.bind_output = lambda *a: (seen.append(("out", a[-1])), inner[1](*a))
            return binding

        def run_with_iobinding(self, binding) -> None:
            self.session.run_with_iobinding(binding)

    batch = torch.from_numpy(images(5))
    with load(tiny) as model:
        expected = model.embed(batch.numpy(), batch=2)
        monkeypatch.setattr(model.session, "_session", Watched(model.session._session))
        got = torch.from_dlpack(model.embed(batch, batch=2))
    image, row = 3 * 42 * 42 * 4, 6 * 4
    assert [address for kind, address in seen if kind == "in"] == [batch.data_ptr() + 2 * n * image for n in range(3)]
    assert [address for kind, address in seen if kind == "out"] == [got.data_ptr() + 2 * n * row for n in range(3)]
    np.testing.assert_array_equal(got.numpy(), expected)


def test_what_comes_back_shares_its_memory_with_whoever_takes_it(tiny) -> None:
    with load(tiny) as model:
        got = model.embed(torch.from_numpy(images(2)))
    taken = torch.from_dlpack(got)
    taken[0, 0] = 42
    assert np.from_dlpack(got)[0, 0] == 42


def test_a_tensor_outlives_nothing_it_should_not(tiny) -> None:
    """The input may go as soon as the embedding is there, and the model too."""
    with load(tiny) as model:
        expected = model.embed(images(3))
        batch = torch.from_numpy(images(3).copy())
        got = model.embed(batch)
        batch.zero_()
        del batch
    np.testing.assert_array_equal(torch.from_dlpack(got).numpy(), expected)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_array_of_numpy_stays_with_numpy(provider, tiny) -> None:
    assert not tensors.is_tensor(images(1))
    with load(tiny, provider) as model:
        assert isinstance(model.embed(images(1)), np.ndarray)


CASES = {
    "half": (lambda: torch.zeros(1, 3, 42, 42, dtype=torch.float16), "dtype float16: the model takes `pixel_values`"),
    "double": (lambda: torch.zeros(1, 3, 42, 42, dtype=torch.float64), "dtype float64"),
    "bfloat16": (lambda: torch.zeros(1, 3, 42, 42, dtype=torch.bfloat16), r"can't take the tensor without a copy \("),
    "gradient": (lambda: torch.zeros(1, 3, 42, 42, requires_grad=True), r"tensor.detach\(\)"),
    "no batch": (lambda: torch.zeros(3, 42, 42), r"shape \(3, 42, 42\)"),
    "channels last": (lambda: torch.zeros(1, 42, 42, 3), r"shape \(1, 42, 42, 3\)"),
    "gaps": (lambda: torch.zeros(4, 3, 42, 42)[::2], r"not contiguous.*call \.contiguous\(\)"),
    "turned": (lambda: torch.zeros(1, 42, 42, 3).permute(0, 3, 1, 2), r"call \.contiguous\(\)"),
    "empty": (lambda: torch.zeros(0, 3, 42, 42), "no image"),
    "NaN": (lambda: torch.full((1, 3, 42, 42), float("nan")), "NaN"),
    "on a GPU": (
        lambda: Foreign(images(1), (2, 3)),
        r"is on cuda:3, the model on the CPU: call \.cpu\(\) on it, or load",
    ),
    "elsewhere": (lambda: Foreign(images(1), (8, 0)), "device 0 of DLPack's kind 8, the model on the CPU"),
}


@pytest.mark.parametrize(("tensor", "message"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_tensor_that_the_model_does_not_take_is_refused(provider, tensor, message, tiny) -> None:
    with load(tiny, provider) as model, pytest.raises(InputError, match=message) as info:
        model.embed(tensor())
    assert "\n" not in str(info.value)


def test_nan_that_comes_out_on_the_cpu_is_told(make_model, tmp_path) -> None:
    with (
        load(make_model(tmp_path, nan=True)) as model,
        pytest.raises(CheckError, match="NaN or infinity in `embedding`"),
    ):
        model.embed(torch.ones(2, 3, 42, 42))


def test_a_model_without_an_embedding_or_closed_says_so(make_model, tmp_path) -> None:
    model = load(make_model(tmp_path, outputs=("patch_tokens",)))
    with pytest.raises(UsageError, match="no output `embedding`"):
        model.embed(torch.zeros(1, 3, 42, 42))
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.embed(torch.zeros(1, 3, 42, 42))


def test_the_session_of_the_cpu_is_the_one_that_works_in_place(tiny) -> None:
    """Or the tests above would look at the way that copies."""
    with load(tiny) as model:
        assert isinstance(model.session, OrtSession)
        assert isinstance(model.session, tensors._InPlace)
        assert not isinstance(model.session, tensors._OnGpu)
