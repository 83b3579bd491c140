"""The GPU session on a stand-in for a GPU: slots, limits of profiles, threads, errors, closing, tensors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_gpu import FakeGpu, FakeProgram

from runtime.backends.gpu_session import GpuSession
from runtime.backends.session import run_in_batches
from runtime.backends.tensors import embed_tensor
from runtime.contract.errors import BackendError, CheckError, InputError, UsageError
from runtime.contract.manifest import read_manifest

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


class Made:
    """A session on a fake GPU, and what is behind it."""

    def __init__(self, path, weights, seed: int = 0) -> None:
        self.manifest = read_manifest(path)
        self.gpu = FakeGpu(seed)
        self.nan = False
        self._weights = weights
        self.session = GpuSession(self.manifest, self.gpu, self._load)

    def _load(self, stream: int) -> FakeProgram:
        self.program = FakeProgram(self.gpu, self.manifest, self.compute)
        return self.program

    def compute(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        results = self._weights.outputs(batch)
        if self.nan:
            results["embedding"][0] = np.nan
        return results


@pytest.fixture
def make(make_model, tiny_weights, tmp_path):
    def made(seed: int = 0, **options) -> Made:
        options = {"outputs": ALL, "builder": "tensorrt", "batch": (2, 4, 6)} | options
        return Made(make_model(tmp_path / "engine", "tiny.engine", **options), tiny_weights, seed)

    return made


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 42, 42)).astype(np.float32)


def assert_same(got, expected) -> None:
    assert set(got) <= set(expected)
    for name, array in got.items():
        np.testing.assert_array_equal(array, expected[name])


# Batches


@pytest.mark.parametrize("seed", range(20))
def test_streams_give_what_run_gives_in_whatever_order_the_gpu_works(seed, make) -> None:
    made = make(seed)
    batches = [images(count, count) for count in (2, 6, 3, 5, 6, 2, 4)]
    streamed = list(made.session.stream(iter(batches)))
    assert len(streamed) == len(batches)
    for batch, got in zip(batches, streamed, strict=True):
        assert tuple(got) == ALL
        assert_same(got, made.compute(batch))
    assert_same(made.session.run(batches[3]), made.compute(batches[3]))


def test_a_stream_asks_for_the_next_batch_while_one_is_on_the_gpu(make) -> None:
    made = make()
    asked = []

    def source():
        for number in range(4):
            asked.append(number)
            yield images(2, number)

    streamed = made.session.stream(source())
    seen = [len(asked) for _ in streamed]
    assert seen == [2, 3, 4, 4]  # the next is there before the first is given, and never a third


def test_only_the_outputs_asked_for_are_given(make) -> None:
    got = make().session.run(images(2), ["artifact_mask", "embedding"])
    assert tuple(got) == ("artifact_mask", "embedding")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_input_and_outputs_have_the_manifests_dtypes(dtype, make) -> None:
    made = make(dtype=dtype, outputs=("embedding", "artifact_mask"))
    made.program.compute = lambda batch: {
        "embedding": batch.reshape(len(batch), -1)[:, :6].astype(np.float32),
        "artifact_mask": np.arange(len(batch) * 9).reshape(len(batch), 1, 9) % 2 > 0,
    }
    batch = images(3) if dtype == "float32" else np.arange(3 * 42 * 42 * 3).reshape(3, 42, 42, 3).astype(np.uint8)
    got = made.session.run(batch)
    assert (got["embedding"].dtype, got["artifact_mask"].dtype) == (np.float32, np.bool_)
    assert_same(got, made.program.compute(batch))


def test_images_beyond_the_profile_are_split_and_the_last_batch_padded(make) -> None:
    made = make()
    inputs = images(9)
    got = run_in_batches(made.session, inputs)
    assert made.program.batches == [4, 4, 2]
    assert_same(got, made.compute(inputs))


@pytest.mark.parametrize("count", [1, 7])
def test_a_batch_outside_the_profile_never_reaches_the_gpu(count, make) -> None:
    made = make()
    with pytest.raises(InputError, match="takes 2 to 6"):
        made.session.run(images(count))
    assert made.program.batches == []


def test_slots_are_used_again_and_grow_to_the_largest_batch(make) -> None:
    made = make()
    for count in (2, 6, 3, 6, 4):
        list(made.session.stream(images(count) for _ in range(5)))
    tensors = 1 + len(ALL)
    assert made.gpu.held == 2 * 2 * tensors  # two slots, pinned and on the GPU


# Threads


def test_threads_share_a_session_and_keep_their_results_apart(make) -> None:
    made = make()
    batches = [images(2 + number % 5, number) for number in range(8)]
    expected = [made.compute(batch) for batch in batches]

    def work(number: int) -> None:
        for _ in range(5):
            assert_same(made.session.run(batches[number]), expected[number])
            for got in made.session.stream([batches[number]] * 3):
                assert_same(got, expected[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    made.session.close()
    assert made.gpu.held == 0


def test_a_slot_that_another_thread_takes_at_once_does_no_harm(make, monkeypatch) -> None:
    made = make()
    batch = images(4)
    expected = made.compute(batch)
    give = made.session._give

    def give_and_lose(slot) -> None:
        give(slot)
        slot.samples, slot.names = 6, ()  # as the next thread's `_start` does

    monkeypatch.setattr(made.session, "_give", give_and_lose)
    assert_same(made.session.run(batch), expected)
    (got,) = made.session.stream([batch])
    assert_same(got, expected)


def test_a_thread_that_closes_leaves_the_others_their_results_or_a_clear_no(make) -> None:
    made = make()
    batch = images(4)
    expected = made.compute(batch)
    ended = threading.Event()

    def work(_: int) -> str:
        try:
            while not ended.is_set():
                assert_same(made.session.run(batch), expected)
        except UsageError as error:
            return str(error)
        return "never refused"

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(work, range(4))
        made.session.close()
        assert set(answers) == {"the session is closed"}
        ended.set()
    assert made.gpu.held == 0


# Errors


def test_a_failing_run_is_one_error_of_ours_and_the_session_goes_on(make) -> None:
    made = make()
    batch = images(3)
    made.program.error = RuntimeError("CUDA_ERROR_OUT_OF_MEMORY\n  somewhere")
    with pytest.raises(BackendError, match=r"Fake 1.0 \(Fake GPU\) failed on 3 images .*OUT_OF_MEMORY somewhere"):
        made.session.run(batch)
    assert_same(made.session.run(batch), made.compute(batch))


def test_a_failing_batch_of_a_stream_comes_after_the_ones_before_it(make) -> None:
    made = make()
    batches = [images(2, seed) for seed in range(3)]

    def source():
        yield batches[0]
        yield batches[1]
        made.program.error = BackendError("TensorRT failed")
        yield batches[2]

    streamed = made.session.stream(source())
    for batch in batches[:2]:
        assert_same(next(streamed), made.compute(batch))
    with pytest.raises(BackendError, match="TensorRT failed"):
        next(streamed)
    made.session.close()
    assert made.gpu.held == 0


def test_nan_is_an_error_of_run_and_left_to_the_caller_in_a_stream(make) -> None:
    made = make()
    made.nan = True
    with pytest.raises(CheckError, match="NaN or infinity in `embedding` for 1 of 2"):
        made.session.run(images(2))
    (got,) = made.session.stream([images(2)])
    assert np.isnan(got["embedding"]).any(axis=1).tolist() == [True, False]


def test_a_program_that_does_not_load_leaves_nothing_open(make_model, tmp_path) -> None:
    manifest = read_manifest(make_model(tmp_path, "e.engine", builder="tensorrt", batch=(1, 1, 1)))
    gpu = FakeGpu()

    def load(stream: int):
        raise ValueError("not an engine")

    with pytest.raises(BackendError, match=r"Fake GPU \(GPU 0\) fails: not an engine"):
        GpuSession(manifest, gpu, load)
    assert gpu.log == ["close stream"] * 3


# Closing


def test_closing_waits_and_frees_the_program_then_memory_then_streams(make) -> None:
    made = make()
    made.session.run(images(2))
    made.gpu.log.clear()
    made.session.close()
    made.session.close()
    assert made.gpu.log == ["close program", *["free memory"] * 10, *["close stream"] * 3]
    assert made.gpu.held == 0


def test_a_stream_that_is_left_gives_its_slots_back(make) -> None:
    made = make()
    streamed = made.session.stream(images(2) for _ in range(9))
    next(streamed)
    streamed.close()
    made.session.close()
    assert made.gpu.held == 0


def test_a_stream_ends_with_its_pending_batch_and_an_error_when_the_session_is_closed_under_it(make) -> None:
    made = make()
    batches = [images(2, seed) for seed in range(4)]
    streamed = made.session.stream(iter(batches))
    next(streamed)
    made.session.close()
    assert_same(next(streamed), made.compute(batches[1]))
    with pytest.raises(UsageError, match="closed"):
        next(streamed)
    assert made.gpu.held == 0


# Tensors on the GPU


def test_a_tensor_is_read_where_it_lies_and_its_embedding_stays_there(make) -> None:
    made = make()
    inputs = images(6)
    tensor = made.gpu.upload(inputs)
    got = embed_tensor(made.session, tensor, 6)
    assert made.program.inputs == [tensor.address]
    assert made.program.outputs == [got.address]
    assert got.__dlpack_device__() == (2, 0)
    np.testing.assert_array_equal(got.array, made.compute(inputs)["embedding"])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [1, 2, 5, 9, 13])
def test_tensors_of_any_length_and_address_are_embedded(count, seed, make) -> None:
    made = make(seed)
    inputs = images(count)
    tensor = made.gpu.upload(inputs, offset=64)  # no address that TensorRT takes
    got = embed_tensor(made.session, tensor)
    np.testing.assert_array_equal(got.array, made.compute(inputs)["embedding"])
    made.session.close()
    assert made.gpu.held == 2  # the caller's two tensors


def test_a_tensor_of_too_few_images_is_padded_with_its_last(make) -> None:
    made = make()
    batches = []
    compute, made.program.compute = made.program.compute, lambda batch: batches.append(batch) or compute(batch)
    inputs = images(5)
    embed_tensor(made.session, made.gpu.upload(inputs))
    np.testing.assert_array_equal(batches[1], inputs[[4, 4]])


def test_a_tensor_is_asked_for_on_the_stream_that_reads_it(make) -> None:
    made = make()
    tensor = made.gpu.upload(np.zeros((2, 3, 42, 42), np.float32))
    inputs = images(2)

    def producer() -> None:
        """Fills the tensor at last, on the stream of the one who asks."""
        made.gpu.put(
            made.session._computing, lambda: tensor_bytes.__setitem__(slice(None), inputs.view(np.uint8).ravel())
        )

    tensor_bytes = made.gpu.bytes_at(tensor.address, inputs.nbytes)
    tensor.ready = producer
    np.testing.assert_array_equal(embed_tensor(made.session, tensor).array, made.compute(inputs)["embedding"])


def test_a_failing_run_of_a_tensor_frees_its_embedding(make) -> None:
    made = make()
    tensor = made.gpu.upload(images(4))
    made.program.error = RuntimeError("no kernel")
    with pytest.raises(BackendError, match="no kernel"):
        embed_tensor(made.session, tensor)
    made.session.close()
    assert made.gpu.held == 1


WRONG = {
    "another GPU": ((2, 1), images(2), r"the tensor is on cuda:1, the model on cuda:0: move it to cuda:0"),
    "the CPU": ((1, 0), images(2), r"the tensor is on the CPU, the model on cuda:0: move it to cuda:0"),
    "another kind": ((10, 0), images(2), r"device 0 of DLPack's kind 10"),
    "dtype": ((2, 0), images(2).astype(np.float16), "dtype float16: the model takes `pixel_values` as float32"),
    "shape": ((2, 0), images(2).transpose(0, 2, 3, 1), r"shape \(2, 42, 42, 3\)"),
    "gaps": ((2, 0), images(4)[::2], r"not contiguous.*\.contiguous\(\)"),
    "empty": ((2, 0), images(0), "no image"),
}


@pytest.mark.parametrize(("device", "array", "message"), WRONG.values(), ids=WRONG)
def test_tensors_that_the_model_does_not_take_are_refused(device, array, message, make) -> None:
    made = make()
    tensor = made.gpu.upload(array)
    tensor.device, tensor.array = device, array
    with pytest.raises(InputError, match=message) as info:
        embed_tensor(made.session, tensor)
    assert "\n" not in str(info.value)
    assert made.program.batches == []


def test_a_closed_session_takes_no_tensor(make) -> None:
    made = make()
    tensor = made.gpu.upload(images(2))
    made.session.close()
    with pytest.raises(UsageError, match="closed"):
        embed_tensor(made.session, tensor)
