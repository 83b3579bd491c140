"""Every backend follows one protocol, and refuses with a clear message."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_driver import FakeDriver, no_driver
from fake_gpu import FakeGpu, FakeProgram
from rehash import rehash

from runtime import load
from runtime.backends import PROVIDERS as PROVIDERS_ASKED
from runtime.backends import open_session, ort_cuda, resolve_provider, trt, uses_gpu
from runtime.backends.checked_model import CheckedModel
from runtime.backends.gpu_session import GpuSession
from runtime.backends.session import (
    batch_limits,
    check_batch,
    check_names,
    check_outputs,
    chosen_batch,
    run_in_batches,
)
from runtime.contract.driver import require_gpu
from runtime.contract.errors import BackendError, CheckError, InputError, ManifestError, UsageError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import manifest_path, read_manifest, record_file, verified_manifest

ROOT = Path(__file__).parents[3]
ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
TOLERANCE = 1e-4
"""Of float32 sums over 588 products against float64; the figures are of order 1."""


class FakeSession:
    """A `Session` that gives each image's mean as its embedding, and remembers the batches it was given."""

    name, compute = "fake", "fp32"

    def __init__(self, manifest) -> None:
        self.manifest = manifest
        self.batches: list[int] = []
        self.closed = False

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        if self.closed:
            raise UsageError("the session is closed")
        names = check_names(self.manifest, outputs)
        check_batch(self.manifest, batch)
        self.batches.append(len(batch))
        value = batch.reshape(len(batch), -1).mean(axis=1, dtype=np.float32)
        width = self.manifest.outputs[0].shape[1]
        results = {name: np.repeat(value[:, None], width, axis=1) for name in names}
        check_outputs(self.manifest, len(batch), results)
        return results

    def stream(self, batches, outputs=None):
        for batch in batches:
            yield self.run(batch, outputs)

    def close(self) -> None:
        self.closed = True


NEEDS_OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'itae[openvino]'"
)
PROVIDERS = ["cpu", pytest.param("openvino", marks=NEEDS_OPENVINO)]
on_each_provider = pytest.mark.parametrize("provider", PROVIDERS)


def on_fake_gpu(path) -> GpuSession:
    """The session of GPUs, on one that is not there; ONNX Runtime computes."""
    gpu, manifest = FakeGpu(), verified_manifest(path)
    compute = open_session(path, "cpu").run
    return GpuSession(manifest, gpu, lambda _: FakeProgram(gpu, manifest, compute))


@pytest.fixture(params=[*PROVIDERS, "fake", "fake GPU"])
def session(request, tiny):
    if request.param == "fake":
        made = FakeSession(verified_manifest(tiny))
    else:
        made = on_fake_gpu(tiny) if request.param == "fake GPU" else open_session(tiny, request.param)
    with closing(made):
        yield made


def images(count: int, side: int = 42) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


# Conformance: every backend


@pytest.mark.parametrize("count", [1, 2, 5])
def test_session_embeds_each_image_of_a_batch_by_itself(session, count) -> None:
    batch = images(count)
    got = session.run(batch)
    assert got["embedding"].shape == (count, 6)
    assert got["embedding"].dtype == np.float32
    for row in range(count):
        alone = session.run(batch[row : row + 1])["embedding"][0]
        np.testing.assert_allclose(got["embedding"][row], alone, rtol=0, atol=TOLERANCE)


WRONG_BATCHES = {
    "no image": (np.empty((0, 3, 42, 42), np.float32), "0 images"),
    "other size": (images(1, 56), r"shape \(1, 3, 56, 56\)"),
    "no batch dimension": (images(1)[0], r"shape \(3, 42, 42\)"),
    "channels last": (images(1).transpose(0, 2, 3, 1), r"shape \(1, 42, 42, 3\)"),
    "float64": (images(1).astype(np.float64), "float64"),
    "uint8": (images(1).astype(np.uint8), "uint8"),
    "NaN": (np.full((1, 3, 42, 42), np.nan, np.float32), "NaN"),
    "a list": ([[1.0]], "not list"),
}


@pytest.mark.parametrize(("batch", "message"), WRONG_BATCHES.values(), ids=WRONG_BATCHES)
def test_session_refuses_what_the_model_does_not_take(session, batch, message) -> None:
    with pytest.raises(InputError, match=message):
        session.run(batch)


def test_session_names_the_outputs_there_are_when_asked_for_another(session) -> None:
    with pytest.raises(UsageError, match="no output `patch_tokens`, only embedding"):
        session.run(images(1), ["patch_tokens"])


def test_session_can_be_closed_twice_and_then_refuses_to_run(session) -> None:
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(images(1))


def test_session_has_the_manifest_and_a_name(session, tiny) -> None:
    assert session.manifest == read_manifest(tiny)
    assert session.name


def test_session_runs_for_several_threads_at_once_and_keeps_their_results_apart(session) -> None:
    batches = [images(count) * np.float32(count) for count in range(1, 7)]
    alone = [session.run(batch)["embedding"].copy() for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for expected, got in zip(alone, pool.map(session.run, batches), strict=True):
                np.testing.assert_allclose(got["embedding"], expected, rtol=0, atol=TOLERANCE)


def test_session_streams_batches_in_order_each_as_run_gives_it(session) -> None:
    batches = [images(count) * np.float32(count) for count in (3, 1, 4, 1)]
    streamed = list(session.stream(iter(batches), ["embedding"]))
    assert len(streamed) == 4
    for batch, got in zip(batches, streamed, strict=True):
        np.testing.assert_array_equal(got["embedding"], session.run(batch)["embedding"])


def test_session_gives_what_came_before_a_batch_that_it_refuses(session) -> None:
    batches = [images(2), images(1), images(1, 56), images(3)]
    streamed = session.stream(iter(batches))
    for batch in batches[:2]:
        np.testing.assert_array_equal(next(streamed)["embedding"], session.run(batch)["embedding"])
    with pytest.raises(InputError, match=r"shape \(1, 3, 56, 56\)"):
        next(streamed)
    assert session.run(images(1))["embedding"].shape == (1, 6)


def test_session_gives_what_came_before_its_source_fails(session) -> None:
    def source():
        yield images(2)
        raise OSError("the disk is gone")

    streamed = session.stream(source())
    np.testing.assert_array_equal(next(streamed)["embedding"], session.run(images(2))["embedding"])
    with pytest.raises(OSError, match="the disk is gone"):
        next(streamed)


def test_session_may_run_batches_while_one_of_its_streams_waits(session) -> None:
    batches = [images(count) * np.float32(count) for count in (3, 1, 4)]
    streams = [session.stream(iter(batches)) for _ in range(3)]
    for batch in batches:
        expected = session.run(batch)["embedding"]
        for streamed in streams:
            np.testing.assert_array_equal(next(streamed)["embedding"], expected)


def test_session_leaves_earlier_results_alone(session) -> None:
    got = session.run(images(2))["embedding"]
    before = got.copy()
    session.run(images(2) + np.float32(1))
    np.testing.assert_array_equal(got, before)


def test_session_takes_a_batch_however_it_lies_in_memory(session) -> None:
    batch = images(6)
    expected = session.run(batch[::2].copy())["embedding"]
    np.testing.assert_allclose(session.run(batch[::2])["embedding"], expected, rtol=0, atol=TOLERANCE)
    batch.flags.writeable = False
    np.testing.assert_allclose(
        session.run(np.asfortranarray(batch[::2]))["embedding"], expected, rtol=0, atol=TOLERANCE
    )


# ONNX Runtime and OpenVINO


@on_each_provider
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_model_gives_every_output_as_expected(dtype, provider, make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL, dtype=dtype)
    golden = read_golden(path, read_manifest(path))
    with closing(open_session(path, provider)) as session:
        got = session.run(golden.input)
    assert tuple(got) == ALL
    for name, expected in golden.outputs().items():
        assert got[name].dtype == expected.dtype
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=TOLERANCE)


@on_each_provider
def test_a_model_gives_only_the_outputs_asked_for(provider, make_model, tmp_path) -> None:
    with closing(open_session(make_model(tmp_path, outputs=ALL), provider)) as session:
        assert tuple(session.run(images(1), ["artifact_norm", "embedding"])) == ("artifact_norm", "embedding")


@on_each_provider
def test_nan_is_told_and_in_how_many_images(provider, make_model, tmp_path) -> None:
    dark, bright = -np.ones((1, 3, 42, 42), np.float32), np.ones((1, 3, 42, 42), np.float32)
    with closing(open_session(make_model(tmp_path, nan=True), provider)) as session:
        session.run(dark)
        with pytest.raises(CheckError, match=r"tiny.onnx gave NaN or infinity in `embedding` for 1 of 2") as info:
            session.run(np.concatenate([dark, bright]))
    assert info.value.exit_code == 1


def test_an_output_of_another_shape_than_the_manifest_says_is_told(make_model, tmp_path) -> None:
    manifest = read_manifest(make_model(tmp_path))
    with pytest.raises(CheckError, match=r"float32 \(2, 5\), its manifest says float32 \(2, 6\)"):
        check_outputs(manifest, 2, {"embedding": np.zeros((2, 5), np.float32)})
    with pytest.raises(CheckError, match="float16"):
        check_outputs(manifest, 2, {"embedding": np.zeros((2, 6), np.float16)})


@on_each_provider
def test_external_weights_are_found_beside_the_model_from_any_folder(
    provider, make_model, tmp_path, monkeypatch
) -> None:
    path = make_model(tmp_path / "model", outputs=ALL)
    data = path.with_name("tiny.onnx.data")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=100)
    assert data.stat().st_size > 0
    rehash(path, external_data=record_file(data))
    monkeypatch.chdir(tmp_path)
    golden = read_golden(path, read_manifest(path))
    with closing(open_session(Path("model/tiny.onnx"), provider)) as session:
        got = session.run(golden.input)
    np.testing.assert_allclose(got["embedding"], golden.embedding, rtol=0, atol=TOLERANCE)


@on_each_provider
def test_a_path_may_have_any_letters_that_are_utf8(provider, make_model, tmp_path) -> None:
    with closing(open_session(make_model(tmp_path / "λ ü #", "a b.onnx"), provider)) as session:
        assert session.run(images(1))["embedding"].shape == (1, 6)


@on_each_provider
def test_a_model_that_cannot_be_loaded_is_one_error_of_ours(provider, make_model, tmp_path) -> None:
    path = make_model(tmp_path)
    path.write_bytes(b"not ONNX at all")
    rehash(path)
    with pytest.raises(BackendError, match=r"(ONNX Runtime|OpenVINO) can't load .*tiny.onnx") as info:
        open_session(path, provider)
    assert "\n" not in str(info.value)


# ONNX Runtime


def test_cuda_is_refused_where_this_onnxruntime_has_none(tiny) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider: .*itae\[gpu\]"):
        open_session(tiny, "cuda")


class FakeOrt:
    """Stands for an `onnxruntime` whose CUDA provider is built in; `started` are those that come up."""

    def __init__(self, started: list[str]) -> None:
        self.started = started
        self.asked = None

    def InferenceSession(self, source, settings, providers):  # noqa: N802
        assert isinstance(source, bytes)
        self.asked = providers
        return types.SimpleNamespace(get_providers=lambda: self.started)

    def __getattr__(self, name):
        if name == "get_available_providers":
            return lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return getattr(onnxruntime, name)


@pytest.fixture
def fake_gpu(monkeypatch) -> FakeGpu:
    gpu = FakeGpu(number=1)
    monkeypatch.setattr(ort_cuda, "open_gpu", lambda number, what: gpu)
    return gpu


def test_cuda_that_quietly_falls_back_to_the_cpu_is_refused(tiny, monkeypatch, fake_gpu) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt(["CPUExecutionProvider"]))
    with pytest.raises(BackendError, match="CUDAExecutionProvider does not start here"):
        open_session(tiny, "cuda")
    assert all(stream.closed for stream in fake_gpu.streams)


def test_cuda_is_asked_for_without_tf32_on_the_stream_of_the_session(tiny, monkeypatch, fake_gpu) -> None:
    fake = FakeOrt(["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    session = open_session(tiny, "cuda", device=1)
    assert "CUDA" in session.name
    options = {"device_id": "1", "use_tf32": "0", "user_compute_stream": str(fake_gpu.address(session._computing))}
    assert fake.asked == [("CUDAExecutionProvider", options)]


def test_a_program_of_onnxruntime_reads_and_writes_the_addresses_it_is_given(make_model, tmp_path, monkeypatch) -> None:
    """On the CPU, whose addresses stand for the GPU's: IO binding is the same."""
    path = make_model(tmp_path, outputs=ALL, dtype="uint8")
    model = CheckedModel(path)
    golden = read_golden(path, model.manifest)

    class Binding:
        def __init__(self, session) -> None:
            self.real = session.real.io_binding()

        def bind_input(self, name, kind, number, *rest) -> None:
            assert (kind, number) == ("cuda", 1)
            self.real.bind_input(name, "cpu", 0, *rest)

        def bind_output(self, name, kind, number, *rest) -> None:
            assert (kind, number) == ("cuda", 1)
            self.real.bind_output(name, "cpu", 0, *rest)

    class Session:
        real = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def io_binding(self):
            return Binding(self)

        def run_with_iobinding(self, binding, options) -> None:
            assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
            self.real.run_with_iobinding(binding.real, options)

    monkeypatch.setattr(ort_cuda, "load_model", lambda *_: Session())
    program = ort_cuda.OrtProgram(onnxruntime, model, 1, 7)
    expected = golden.outputs()
    got = {name: np.full_like(array, 1) for name, array in expected.items()}
    addresses = {name: array.ctypes.data for name, array in got.items()}
    program.enqueue(len(golden.input), {"images": golden.input.ctypes.data, **addresses}, 7)
    for name in ALL:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=TOLERANCE)
    program.close()


@pytest.mark.parametrize("threads", [1, 2])
@on_each_provider
def test_the_number_of_threads_reaches_the_library(provider, threads, tiny) -> None:
    with closing(open_session(tiny, provider, threads=threads)) as session:
        if provider == "cpu":
            assert session._session.get_session_options().intra_op_num_threads == threads
        else:
            compiled = session._request.get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert session.run(images(2))["embedding"].shape == (2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": 1}, "device 1: must be 0 on a CPU"),
        ({"device": -1}, "device -1"),
        ({"threads": 0}, "threads 0: must be from 1 to"),
        ({"provider": "cuda", "threads": 2}, "a GPU takes no number of threads"),
        ({"provider": "cuda", "device": -1}, "device -1: must be 0 or more"),
    ],
)
def test_devices_and_threads_that_mean_nothing_are_refused(options, message, tiny) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(tiny, **options)


def test_importing_onnxruntime_leaves_nothing_in_the_home_folder(tmp_path) -> None:
    code = "from runtime.backends.ort import import_onnxruntime\nimport_onnxruntime('x.onnx').InferenceSession\n"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_missing_onnxruntime_says_what_to_install(tiny, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what import takes for "not there"
    with pytest.raises(BackendError, match=r"pip install 'itae\[cpu\]'"):
        open_session(tiny)


def test_unknown_provider_is_refused(tiny) -> None:
    with pytest.raises(UsageError, match="no provider 'gpu': choose from auto, cpu, cuda, openvino"):
        open_session(tiny, "gpu")


# Files are checked before any parser sees them


def flip(path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("builder", ["onnx", "tensorrt"])
def test_model_altered_by_one_bit_is_refused(builder, where, make_model, tmp_path) -> None:
    path = make_model(tmp_path, builder=builder)
    flip(path, where)
    with pytest.raises(ManifestError, match="SHA-256"):
        open_session(path)


def test_truncated_model_is_refused(tiny) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-1])
    with pytest.raises(ManifestError, match="bytes"):
        open_session(tiny)


@pytest.mark.parametrize("what", ["model", "external data"])
def test_without_its_hash_a_model_is_taken_as_it_is_but_not_one_of_another_size(what, make_model, tmp_path) -> None:
    path = make_model(tmp_path, builder="tensorrt", batch=(1, 1, 1))
    altered = path
    if what == "external data":
        altered = path.with_name("tiny.onnx.data")
        altered.write_bytes(b"weights")
        rehash(path, external_data=record_file(altered))
    flip(altered, 0.5)
    with pytest.raises(ManifestError, match="SHA-256"):
        verified_manifest(path)
    assert verified_manifest(path, check_hash=False) == read_manifest(path)
    altered.write_bytes(altered.read_bytes() + b"!")
    with pytest.raises(ManifestError, match="bytes, not the"):
        verified_manifest(path, check_hash=False)


def test_without_its_hash_a_model_is_loaded_only_where_that_was_asked_for(tiny) -> None:
    tiny.write_bytes(tiny.read_bytes().replace(b"average", b"averagf"))  # another name inside, the same model
    with pytest.raises(ManifestError, match="SHA-256"):
        load(tiny)
    with load(tiny, verify_hash=False) as model:
        assert model.embed(images(1)).shape == (1, 6)


def test_the_manifest_must_be_whole_even_without_the_hash(tiny) -> None:
    flip(manifest_path(tiny), 0.5)
    with pytest.raises(ManifestError):
        open_session(tiny, verify_hash=False)


def test_model_swapped_for_another_is_refused(tiny, make_model, tmp_path) -> None:
    other = make_model(tmp_path / "other", outputs=ALL)
    tiny.write_bytes(other.read_bytes())
    with pytest.raises(ManifestError, match="export it again"):
        open_session(tiny)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_manifest_altered_by_one_bit_is_refused(where, tiny) -> None:
    flip(manifest_path(tiny), where)
    with pytest.raises(ManifestError):
        open_session(tiny)


@pytest.mark.parametrize("missing", ["model", "manifest"])
def test_missing_file_is_named(missing, tiny) -> None:
    (tiny if missing == "model" else manifest_path(tiny)).unlink()
    with pytest.raises(ManifestError, match="no such model file" if missing == "model" else "no manifest"):
        open_session(tiny)


# Engines


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request, make_model, tmp_path):
    return make_model(tmp_path, "tiny.engine", builder=request.param, batch=(2, 4, 4))


DRIVERS = {
    "no driver": (no_driver, "there is no driver here"),
    "no device": (lambda name: FakeDriver((), status=100), "finds none"),
    "no device, driver starts": (lambda name: FakeDriver(()), "finds none"),
    "driver of another version": (lambda name: FakeDriver(("8.6",), status=803), "CUDA error 803"),
    "not a driver": (lambda name: object(), "there is no driver here"),
}


@pytest.mark.parametrize(("driver", "message"), DRIVERS.values(), ids=DRIVERS)
def test_engine_is_refused_in_one_line_before_tensorrt_is_touched(driver, message, engine, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", driver)
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # an import would fail with another message
    with pytest.raises(BackendError, match=message) as info:
        open_session(engine)
    assert "needs an NVIDIA GPU" in str(info.value)
    assert "\n" not in str(info.value)
    assert info.value.exit_code == 2


def test_engine_without_its_library_says_what_to_install(engine, monkeypatch) -> None:
    monkeypatch.setattr(trt, "open_gpu", lambda number, what: FakeGpu())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(("8.6",)))
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=r"pip install 'itae\[(gpu|rtx)\]'; or export the .onnx twin"):
        open_session(engine)


def test_engine_for_a_gpu_that_is_not_there_says_how_many_are(engine, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(("8.6", "8.6")))
    with pytest.raises(BackendError, match="was to run on GPU 2, the driver here has 2, numbered from 0"):
        open_session(engine, device=2)


def test_gpus_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(("8.6", "8.6", "9.0")))
    assert require_gpu("a test") == 3


def test_engine_takes_no_provider(engine) -> None:
    with pytest.raises(UsageError, match="takes no provider 'cpu'"):
        open_session(engine, "cpu")


def test_a_provider_is_resolved_to_the_name_that_stores_have(tiny, engine) -> None:
    onnx_model, engine_model = read_manifest(tiny), read_manifest(engine)
    expected = {"auto": "cpu", "cpu": "cpu", "cuda": "cuda", "openvino": "openvino"}
    assert {name: resolve_provider(onnx_model, name) for name in PROVIDERS_ASKED} == expected
    built_by = engine_model.builder.name
    assert resolve_provider(engine_model, "auto") == resolve_provider(engine_model, built_by) == built_by
    with pytest.raises(UsageError, match=f"no provider '{built_by}': choose from auto"):
        resolve_provider(onnx_model, built_by)
    assert [name for name in (*expected.values(), built_by) if uses_gpu(name)] == ["cuda", built_by]


# Batches


def test_batches_of_an_engine_keep_to_its_profile_and_are_padded(engine) -> None:
    session = FakeSession(verified_manifest(engine))
    assert batch_limits(session.manifest) == (2, 4, 4)
    inputs = images(9)
    got = run_in_batches(session, inputs)["embedding"]
    assert session.batches == [4, 4, 2]  # one image is left, the profile begins at 2
    np.testing.assert_array_equal(got[:, 0], inputs.reshape(9, -1).mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize(("asked", "size"), [(None, 4), (1, 2), (2, 2), (3, 3), (4, 4)])
def test_chosen_batch_of_an_engine_is_within_its_profile(asked, size, engine) -> None:
    assert chosen_batch(read_manifest(engine), asked) == size


@pytest.mark.parametrize("asked", [-1, 0, 5])
def test_batch_beyond_the_profile_is_refused(asked, engine) -> None:
    with pytest.raises(UsageError, match=f"a batch of {asked}: the model takes 1 to 4"):
        chosen_batch(read_manifest(engine), asked)


@pytest.mark.parametrize("count", [1, 5])
def test_engine_refuses_a_batch_outside_its_profile(count, engine) -> None:
    with pytest.raises(InputError, match=f"a batch of {count} images: the model takes 2 to 4"):
        check_batch(read_manifest(engine), images(count))


@pytest.mark.parametrize(("asked", "size"), [(None, 8), (1, 1), (1000, 1000)])
def test_batch_of_onnx_is_free(asked, size, tiny) -> None:
    assert chosen_batch(read_manifest(tiny), asked) == size


def test_running_no_image_at_all_is_refused(tiny) -> None:
    with closing(open_session(tiny)) as session, pytest.raises(InputError, match="0 images"):
        run_in_batches(session, images(0))
