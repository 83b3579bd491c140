"""Runs that need a GPU: engines and ONNX Runtime's CUDA against the golden sample, streams, threads, tensors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from gpu_marks import ENGINES, needs_rtx

from exporter import ExportSpec, export
from runtime import load
from runtime.backends import open_session
from runtime.backends.gpu import CudaGpu
from runtime.backends.gpu_session import GpuSession
from runtime.backends.kernel_cache import cache_path
from runtime.backends.session import batch_limits
from runtime.checks.doctor import examine
from runtime.checks.verify import verify
from runtime.contract.driver import require_gpu
from runtime.contract.errors import InputError, UsageError

pytestmark = pytest.mark.gpu

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
PROFILE = (1, 8, 64)

needs_cuda_provider = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="pip uninstall onnxruntime, then pip install onnxruntime-gpu, to try it",
)


@pytest.fixture(autouse=True)
def gpu() -> int:
    """Fails, and does not skip, where there is none: these tests were asked for."""
    return require_gpu("scripts/gpu-check")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def make(folder: Path, backend: str, precision: str = "fp32", **options) -> Path:
    """A vits14 of random weights with every output, made once; `none` is ONNX."""
    name = "-".join([backend, precision, *map(str, options.values())])
    path = folder / f"{name}.{'onnx' if backend == 'none' else 'engine'}"
    if not path.exists():
        engine = {} if backend == "none" else {"backend": backend, "batch": PROFILE}
        spec = ExportSpec(path, "vits14", "random:0", precision=precision, outputs=ALL, **engine, **options)
        export(spec)
    return path


@pytest.fixture(params=[*ENGINES, pytest.param("cuda", marks=needs_cuda_provider)])
def model(request, folder) -> tuple[Path, str]:
    """A model and its provider."""
    if request.param == "cuda":
        return make(folder, "none"), "cuda"
    return make(folder, request.param), "auto"


@pytest.fixture
def session(model):
    with closing(open_session(*model)) as opened:
        assert isinstance(opened, GpuSession)
        yield opened


def images(session: GpuSession, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *session.manifest.input.shape[1:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])


# Parity


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_keeps_parity_in_every_precision(backend, precision, folder) -> None:
    result = verify(make(folder, backend, precision))
    assert result.failures == ()
    assert result.parity.max_abs > 0


@needs_cuda_provider
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_cuda_keeps_parity(precision, folder) -> None:
    result = verify(make(folder, "none", precision), "cuda")
    assert result.failures == ()
    assert "CUDA" in result.backend


@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_that_takes_uint8_keeps_parity(backend, folder) -> None:
    assert verify(make(folder, backend, input="uint8")).failures == ()


def test_the_doctor_finds_that_it_runs(model) -> None:
    diagnosis = examine(model[0])
    assert {one.provider: one.passed for one in diagnosis.attempts}[model[1]]
    assert diagnosis.machine.driver is not None
    assert diagnosis.machine.faults == ()


# Batches


@pytest.mark.parametrize("count", [1, 7, 8, 64])
def test_batches_of_the_profile_run_alone_and_together(count, session) -> None:
    batch = images(session, count)
    got = session.run(batch, ["embedding"])["embedding"]
    alone = session.run(batch[-1:], ["embedding"])["embedding"][0]
    assert got.shape[0] == count
    cosine = got[-1] @ alone / np.linalg.norm(got[-1]) / np.linalg.norm(alone)
    assert cosine > 0.9999


def test_a_batch_beyond_the_profile_is_refused(session) -> None:
    if batch_limits(session.manifest)[2] is None:
        pytest.skip("ONNX takes any")
    with pytest.raises(InputError, match="takes 1 to 64"):
        session.run(images(session, 65))


def test_a_stream_gives_what_run_gives(session) -> None:
    batches = [images(session, count, count) for count in (8, 1, 64, 3, 8, 8, 2)]
    for batch, got in zip(batches, session.stream(iter(batches)), strict=True):
        assert_same(got, session.run(batch))


def test_threads_keep_their_results_apart(session) -> None:
    batches = [images(session, 1 + number, number) for number in range(4)]
    expected = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for got, wanted in zip(pool.map(session.run, batches), expected, strict=True):
                assert_same(got, wanted)


def test_a_session_is_closed_twice_and_then_says_no(model) -> None:
    session = open_session(*model)
    batch = images(session, 1)
    session.run(batch)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(batch)


def test_sessions_come_and_go_without_keeping_memory(model) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("counts the GPU's memory with torch, which has no CUDA here")
    free = []
    for _ in range(4):
        with closing(open_session(*model)) as session:
            list(session.stream(images(session, 64) for _ in range(3)))
        free.append(torch.cuda.mem_get_info()[0])
    assert free[1] - free[-1] < 64 << 20  # the first keeps what the libraries load once


def test_every_gpu_runs(model, gpu) -> None:
    """One alone where the machine has one."""
    expected = None
    for device in range(gpu):
        with closing(open_session(*model, device=device)) as session:
            got = session.run(images(session, 3), ["embedding"])["embedding"]
        expected = got if expected is None else expected
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-2)


def test_a_thread_keeps_the_context_that_it_had(model) -> None:
    from cuda.bindings import driver

    def look() -> tuple[int, int]:
        _, before = driver.cuCtxGetCurrent()
        with closing(open_session(*model)) as session:
            session.run(images(session, 1))
        _, after = driver.cuCtxGetCurrent()
        return int(before), int(after)

    with ThreadPoolExecutor(1) as pool:  # a new thread: it has none
        before, after = pool.submit(look).result()
    assert before == after == 0


# Tensors


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return found


def test_a_cuda_tensor_is_embedded_where_it_lies(model, torch, monkeypatch) -> None:
    with load(*model) as loaded:
        batch = images(loaded.session, 8)
        expected = loaded.session.run(batch, ["embedding"])["embedding"]
        seen = []
        program = loaded.session._program
        real = program.enqueue
        monkeypatch.setattr(program, "enqueue", lambda n, at, stream: (seen.append(dict(at)), real(n, at, stream)))
        tensor = torch.from_numpy(batch).cuda()
        got = torch.from_dlpack(loaded.embed(tensor))
    assert got.device.type == "cuda"
    np.testing.assert_array_equal(got.cpu().numpy(), expected)
    (addresses,) = seen
    assert addresses[loaded.manifest.input.name] == tensor.data_ptr()
    assert addresses["embedding"] == got.data_ptr()


def test_a_tensor_still_being_computed_is_waited_for(model, torch) -> None:
    with load(*model) as loaded:
        batch = images(loaded.session, 8)
        expected = loaded.session.run(batch, ["embedding"])["embedding"]
        with torch.cuda.stream(torch.cuda.Stream()):
            slow = torch.randn(4096, 4096, device="cuda")
            tensor = torch.zeros(batch.shape, device="cuda")
            source = torch.from_numpy(batch).cuda()
            for _ in range(50):
                slow = slow @ slow / 64
            tensor += source + slow.mean() * 0
            got = torch.from_dlpack(loaded.embed(tensor.nan_to_num()))
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [1, 9, 70])
def test_tensors_of_any_length_and_address_are_embedded(count, model, torch) -> None:
    with load(*model) as loaded:
        batch = images(loaded.session, count)
        expected = loaded.embed(batch)
        memory = torch.zeros(batch.size + 1, device="cuda")
        memory[1:] = torch.from_numpy(batch).cuda().flatten()  # 4 bytes off every alignment
        got = torch.from_dlpack(loaded.embed(memory[1:].view(batch.shape)))
        np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=0, atol=1e-3)


def test_tensors_of_another_device_are_refused(model, torch) -> None:
    with load(*model) as loaded, pytest.raises(InputError, match="the tensor is on the CPU, the model on cuda:0"):
        loaded.embed(torch.zeros(1, *loaded.manifest.input.shape[1:]))


# Memory and the kernels that TensorRT-RTX keeps


def test_copies_events_and_pinned_memory_do_what_they_say() -> None:
    gpu = CudaGpu(0, "a test")
    with gpu.current():
        first, second = gpu.stream(), gpu.stream()
        source, back = gpu.pinned_memory(1 << 20), gpu.pinned_memory(1 << 20)
        there = gpu.device_memory(1 << 20, first)
        assert there.address % 256 == 0
        source.host[:] = np.arange(1 << 20, dtype=np.uint32).astype(np.uint8)
        back.host[:] = 0
        gpu.copy(there.address, source.address, 1 << 20, first)
        gpu.after(second, gpu.mark(first))
        gpu.copy(back.address + 256, there.address, 1024, second)
        gpu.wait(gpu.mark(second))
        np.testing.assert_array_equal(back.host[256:1280], source.host[:1024])
        assert not back.host[:256].any()
        assert not back.host[1280:].any()
        for memory in (source, back, there):
            gpu.free(memory)
        for stream in (first, second):
            gpu.close_stream(stream)


@needs_rtx
def test_kernels_are_kept_and_taken_again(folder, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = make(folder, "tensorrt-rtx")
    cache_path(path).unlink(missing_ok=True)
    results = []
    for _ in range(2):
        with closing(open_session(path)) as session:
            results.append(session.run(images(session, 8)))
        assert cache_path(path).stat().st_size > 1000
    assert_same(*results)
    assert caplog.records == []
    data = bytearray(cache_path(path).read_bytes())
    data[-1] ^= 1
    cache_path(path).write_bytes(data)
    with closing(open_session(path)) as session:
        assert_same(session.run(images(session, 8)), results[0])
    assert "not used, kernels are compiled again" in caplog.text
