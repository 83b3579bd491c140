"""Engines as far as they can be tested without a GPU, by the real bindings or by stand-ins for their objects."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from fake_driver import FakeDriver
from fake_gpu import FakeGpu

from runtime.backends import trt as engines
from runtime.backends.checked_model import CheckedModel
from runtime.backends.gpu_session import GpuSession
from runtime.backends.kernel_cache import KEY_VARIABLE, MAGIC, KernelCache, cache_path, secret_path
from runtime.contract.errors import BackendError, ManifestError
from runtime.contract.manifest import Replay, read_manifest
from runtime.contract.tensorrt import shared_logger

bindings = pytest.importorskip("tensorrt_rtx", reason="pip install 'itae[rtx]'")

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


@pytest.fixture
def engine_file(make_model, tmp_path) -> Path:
    return make_model(tmp_path, "tiny.engine", outputs=ALL, builder="tensorrt-rtx", batch=(2, 4, 6))


# The real bindings


def test_an_engine_that_is_none_is_refused_in_the_librarys_own_words(engine_file, capfd) -> None:
    """Real TensorRT-RTX, with a GPU or without: it gives None, and tells its logger why."""
    model, gpu = CheckedModel(engine_file), FakeGpu()
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.\S+ can't load .*tiny\.engine: IRuntime::deseri") as info:
        GpuSession(model.manifest, gpu, lambda _: engines.TrtProgram(bindings, model, gpu))
    assert "for test and the GPU that it was built for, here is Fake GPU: build it again here" in str(info.value)
    assert "\n" not in str(info.value)
    assert gpu.log == ["close stream"] * 3
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_the_log_of_the_process_takes_what_its_logger_is_given_and_forgets_it(caplog) -> None:
    log, logger = shared_logger(bindings).log, shared_logger(bindings).logger
    log.forget()
    with caplog.at_level(logging.DEBUG):
        logger.log(bindings.ILogger.Severity.WARNING, "not this")
        logger.log(bindings.ILogger.Severity.ERROR, "second\n  line")
        logger.log(bindings.ILogger.Severity.INTERNAL_ERROR, "third")
    assert log.last_errors() == "second line; third"
    assert [one.args[0] for one in caplog.records] == ["warning", "error", "internal error"]
    log.forget()
    assert log.last_errors() == ""


# The GPU

REPLAY = Replay(
    backend="TensorRT 10", gpu="NVIDIA L4", compute_capability="8.9", driver=None, samples=2, max_abs=0.1,
    min_cosine=1.0, batch_sizes=(2, 3), batch_distance=0.0,
)  # fmt: skip


def test_an_engine_that_its_exporter_never_ran_says_so_once(opened, caplog) -> None:
    opened(["9.0"], "tensorrt", "10.16.1.11", ran=False)
    assert [one.getMessage().partition(" was ")[2] for one in caplog.records] == [
        "never run by its exporter; check it on this GPU by `verify`"
    ]


@pytest.fixture
def opened(monkeypatch, make_model, tmp_path):
    """Open an engine of a builder on a machine with GPUs of these compute capabilities, as far as to its program."""

    def run(
        gpus: list[str],
        builder: str,
        version: str,
        device: int = 0,
        precision: str = "fp32",
        *,
        ran: bool = True,
        here: str | None = None,
        built: dict[str, str | None] | None = None,
        **options_of_it: object,
    ):
        monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(gpus))
        monkeypatch.setattr(engines, "open_gpu", lambda number, _: FakeGpu(number=number))
        monkeypatch.setattr(engines, "import_library", lambda *_: SimpleNamespace(__version__=here or version))
        monkeypatch.setattr(engines, "GpuSession", lambda manifest, gpu, _: gpu)
        model = CheckedModel(make_model(tmp_path, "tiny.engine", builder=builder, batch=(1, 2, 4)))
        options = model.manifest.options.model_copy(update={"precision": precision, **options_of_it})
        built_by = model.manifest.builder.model_copy(update={"version": version, **(built or {})})
        update = {"builder": built_by, "options": options, "replay": REPLAY if ran else None}
        model.manifest = model.manifest.model_copy(update=update)
        return engines.open_engine(model, device)

    return run


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "10.0"])
def test_an_engine_of_tensorrt_rtx_is_refused_on_a_gpu_that_it_does_not_support(capability, opened) -> None:
    with pytest.raises(BackendError, match=rf"can't run on NVIDIA GPU 11 \(compute capability {capability}\)") as info:
        opened(["8.9", capability], "tensorrt-rtx", "1.7", device=1)
    assert "\n" not in str(info.value)
    assert "--backend tensorrt, or export the .onnx twin" in str(info.value)
    assert opened(["8.9", capability], "tensorrt-rtx", "1.7").number == 0


GPU_10 = {"gpu": "NVIDIA GPU 10", "compute_capability": "8.9"}
"""An engine's builder: on the first GPU of the stand-in for the driver."""


@pytest.mark.parametrize(
    ("level", "gpus", "device", "words"),
    [
        ("none", ["8.9"], 0, None),
        ("none", ["8.9", "8.9"], 1, r"was built for NVIDIA GPU 10 \(compute capability 8\.9\), here is NVIDIA GPU 11 "),
        ("none", ["9.0"], 0, r"here is NVIDIA GPU 10 \(compute capability 9\.0\): build it again here"),
        ("same-compute-capability", ["8.0", "8.9"], 1, None),
        (
            "same-compute-capability",
            ["8.6"],
            0,
            r"was built for GPUs of compute capability 8\.9, here is NVIDIA GPU 10",
        ),
        ("ampere-plus", ["12.0", "8.0"], 1, None),
        ("ampere-plus", ["10.0"], 0, None),
        ("ampere-plus", ["7.5"], 0, r"was built for GPUs from compute capability 8\.0 on, here is NVIDIA GPU 10"),
    ],
)
def test_an_engine_is_refused_on_a_gpu_that_it_was_not_built_for(level, gpus, device, words, opened) -> None:
    def open_it(**more: object):
        version = "10.16.1.11"
        return opened(gpus, "tensorrt", version, device, hardware_compatibility=level, **more)

    assert open_it(built={"gpu": None, "compute_capability": None}).number == device  # of an older exporter
    if words is None:
        assert open_it(built=GPU_10).number == device
        return
    with pytest.raises(BackendError, match=words) as info:
        open_it(built=GPU_10)
    assert "\n" not in str(info.value)
    assert "--hardware-compatibility, or export the .onnx twin" in str(info.value)


@pytest.mark.parametrize(
    ("builder", "built", "here", "compatible", "runs"),
    [
        ("tensorrt", "10.14.1.48", "10.14.1.48", False, True),
        ("tensorrt", "10.14.1.48", "10.14.1.49", False, False),
        ("tensorrt", "10.14.1.48", "10.14.1.48.post1", True, False),
        ("tensorrt", "10.14.1.48", "10.16.1.11", True, True),
        ("tensorrt", "10.9.0.34", "10.14.1.48", True, True),
        ("tensorrt", "10.9.0.34", "11.0.0.114", True, True),
        ("tensorrt", "10.16.1.11", "10.14.1.48", True, False),
        ("tensorrt-rtx", "1.6", "1.7.1.116", None, False),
    ],
)
def test_an_engine_of_another_version_is_refused_before_the_library_sees_it(
    builder, built, here, compatible, runs, opened
) -> None:
    def open_it():
        return opened(["8.9"], builder, built, here=here, version_compatible=compatible)

    if runs:
        assert open_it().number == 0
        return
    with pytest.raises(BackendError, match=rf"was built by TensorRT(-RTX)? {built}, here is {here}: install ") as info:
        open_it()
    assert "\n" not in str(info.value)
    assert ("--version-compatible" in str(info.value)) is (not compatible)


def test_an_engine_of_tensorrt_is_opened_on_a_data_centre_gpu(opened, caplog) -> None:
    assert opened(["9.0"], "tensorrt", "10.16.1.11", precision="fp16").number == 0
    assert caplog.text == ""


def test_public_reports_about_an_engine_and_its_gpu_are_quoted_when_it_is_opened(opened, caplog) -> None:
    opened(["12.0"], "tensorrt", "10.16.1.11", precision="fp16")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "tiny.engine: TensorRT 10.16.1.11 on compute capability 12.0: fused attention" in record.getMessage()


# An engine's tensors


class Engine:
    """What an engine tells of its tensors, as the bindings give it."""

    def __init__(self, manifest) -> None:
        kinds = {"float32": "FLOAT", "uint8": "UINT8", "bool": "BOOL"}
        self.tensors = {
            one.name: [one is manifest.input, kinds[one.dtype], (-1, *one.shape[1:])]
            for one in (manifest.input, *manifest.outputs)
        }
        self.profile = [(size, 3, 42, 42) for size in manifest.options.batch]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str):
        return bindings.TensorIOMode.INPUT if self.tensors[name][0] else bindings.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str):
        return getattr(bindings.DataType, self.tensors[name][1])

    def get_tensor_shape(self, name: str):
        return bindings.Dims(self.tensors[name][2])

    def get_tensor_profile_shape(self, name: str, index: int):
        assert index == 0
        return [bindings.Dims(shape) for shape in self.profile]


def test_an_engine_like_its_manifest_is_taken(engine_file) -> None:
    manifest = read_manifest(engine_file)
    engines._check_tensors(engine_file, manifest, Engine(manifest))


OTHERS = {
    "half": (lambda e: e.tensors["embedding"].__setitem__(1, "HALF"), "output `embedding` as float16"),
    "wider": (lambda e: e.tensors["embedding"].__setitem__(2, (-1, 7)), r"float32 \(7,\) per image, its manifest says"),
    "longer": (lambda e: e.tensors["embedding"].__setitem__(2, (-1, 6, 1)), r"\(6, 1\) per image"),
    "turned": (lambda e: e.tensors["embedding"].__setitem__(0, True), "input `embedding`"),
    "one less": (lambda e: e.tensors.pop("embedding"), "has the tensors"),
    "renamed": (lambda e: e.tensors.update(images=e.tensors.pop("pixel_values")), "has the tensors"),
    "profile": (lambda e: e.profile.__setitem__(2, (9, 3, 42, 42)), r"takes batches \(2, 4, 9\), .* \(2, 4, 6\)"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_an_engine_unlike_its_manifest_is_refused(change, message, engine_file) -> None:
    manifest = read_manifest(engine_file)
    engine = Engine(manifest)
    change(engine)
    with pytest.raises(ManifestError, match=message):
        engines._check_tensors(engine_file, manifest, engine)


# Runs


@pytest.fixture
def program(engine_file):
    """A program as a loaded engine would leave it; its context has the real one's names."""
    made = engines.TrtProgram.__new__(engines.TrtProgram)
    made._manifest = read_manifest(engine_file)
    made.name = "TensorRT-RTX 1"
    made._log = shared_logger(bindings).log
    made._context = create_autospec(bindings.IExecutionContext, instance=True)
    for name in ("set_input_shape", "set_tensor_address", "execute_async_v3"):
        setattr(made._context, name, create_autospec(lambda *_: True, return_value=True))
    made._engine = made._runtime = made._cache = None
    return made


def test_a_run_sets_the_batchs_shape_and_every_address_and_then_starts(program) -> None:
    program.enqueue(3, {"pixel_values": 256, "embedding": 512}, 77)
    program._context.set_input_shape.assert_called_once_with("pixel_values", (3, 3, 42, 42))
    assert [call.args for call in program._context.set_tensor_address.call_args_list] == [
        ("pixel_values", 256),
        ("embedding", 512),
    ]
    program._context.execute_async_v3.assert_called_once_with(77)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("set_input_shape", "takes no batch of 3: it said so"),
        ("set_tensor_address", "takes no address 0x100 for `pixel_values`: it said so"),
        ("execute_async_v3", "failed on 3 images: it said so; a smaller --batch takes less memory"),
    ],
)
def test_a_run_that_is_refused_says_so_in_the_librarys_own_words(method, message, program) -> None:
    def refuse(*_: object) -> bool:
        program._log.record("error", "it said so")
        return False

    setattr(program._context, method, refuse)
    program._log.record("error", "something earlier")
    with pytest.raises(BackendError, match=f"TensorRT-RTX 1 {message}"):
        program.enqueue(3, {"pixel_values": 256}, 77)


def test_closing_lets_go_of_the_context_then_the_engine_then_the_runtime(program) -> None:
    gone = []

    class Held:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            gone.append(self.name)

    program._runtime, program._engine, program._context = Held("runtime"), Held("engine"), Held("context")
    program._cache = SimpleNamespace(save=lambda: gone.append("kernels"))
    program.close()
    assert gone == ["kernels", "context", "engine", "runtime"]


# Kernels that are kept


class Cache:
    """A stand-in for the library's cache: it takes what `fits`, and ends with `made`."""

    def __init__(self, *, fits: bool = True, made: bytes | None = b"kernels") -> None:
        self.fits, self.made = fits, made
        self.loaded: list[bytes] = []

    def deserialize(self, blob: bytes) -> bool:
        self.loaded.append(blob)
        return self.fits

    def serialize(self):
        return None if self.made is None else memoryview(self.made)


class Config:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.set: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        return self.cache

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.set = cache
        return True


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def use(model: Path, sha256: str = "a" * 64, **options) -> Cache:
    """One session's way with the kernels of `model`: load, run, keep."""
    cache, kernels = Cache(**options), KernelCache(model, sha256)
    config = Config(cache)
    kernels.attach(config)
    assert config.set is cache
    kernels.save()
    return cache


def test_kernels_are_kept_and_taken_again(tmp_path, caplog) -> None:
    model = tmp_path / "x.engine"
    assert use(model).loaded == []
    assert cache_path(model) == tmp_path / "x.engine.cache"
    before = cache_path(model).stat()
    assert use(model).loaded == [b"kernels"]
    after = cache_path(model).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # the same is not written again
    assert use(model, made=b"more kernels").loaded == [b"kernels"]
    assert use(model).loaded == [b"more kernels"]
    assert caplog.records == []


def test_kernels_of_another_version_or_gpu_are_replaced(tmp_path, caplog) -> None:
    model = tmp_path / "x.engine"
    use(model)
    assert use(model, fits=False, made=b"other").loaded == [b"kernels"]
    assert "is of another version, driver or GPU: not used" in caplog.text
    assert use(model).loaded == [b"other"]


def foreign(data: bytes, home: Path) -> bytes:
    """The same kernels as another user's or machine's secret would sign them."""
    return data[: len(MAGIC)] + bytes(32) + data[len(MAGIC) + 32 :]


HOSTILE = {
    "garbage": lambda data, home: os.urandom(100),
    "empty": lambda data, home: b"",
    "header alone": lambda data, home: MAGIC,
    "truncated": lambda data, home: data[:-1],
    "longer": lambda data, home: data + b"!",
    "one bit of the kernels": lambda data, home: data[:-1] + bytes([data[-1] ^ 1]),
    "one bit of the code": lambda data, home: (
        data[: len(MAGIC)] + bytes([data[len(MAGIC)] ^ 1]) + data[len(MAGIC) + 1 :]
    ),
    "written elsewhere": foreign,
}


@pytest.mark.parametrize("alter", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_was_not_written_here_never_reaches_the_library(alter, tmp_path, home, caplog) -> None:
    model = tmp_path / "x.engine"
    use(model)
    path = cache_path(model)
    path.write_bytes(alter(path.read_bytes(), home))
    assert use(model, made=b"new").loaded == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "not used, kernels are compiled again" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert use(model).loaded == [b"new"]


def test_kernels_of_another_engine_are_not_read(tmp_path, caplog) -> None:
    model = tmp_path / "x.engine"
    use(model, "a" * 64)
    assert use(model, "b" * 64).loaded == []
    assert "not written here for this engine" in caplog.text


def test_a_folder_or_unreadable_file_in_its_place_is_no_error(tmp_path, caplog) -> None:
    model = tmp_path / "x.engine"
    cache_path(model).mkdir()
    assert use(model).loaded == []
    assert "can't be read" in caplog.text
    assert "kernels are compiled again next time" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, caplog) -> None:
    use(tmp_path / "missing" / "x.engine")
    assert "kernels are compiled again next time" in caplog.text


def test_without_a_home_nothing_is_kept_and_nothing_fails(tmp_path, caplog, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    use(tmp_path / "x.engine")
    assert not cache_path(tmp_path / "x.engine").exists()
    assert "kernels are not kept" in caplog.text


def test_the_secret_is_this_users_alone(tmp_path, caplog) -> None:
    model = tmp_path / "x.engine"
    use(model)
    assert secret_path().stat().st_mode & 0o777 == 0o600
    secret_path().chmod(0o644)
    assert use(model).loaded == []
    assert "is not a secret of this user alone" in caplog.text


def test_containers_that_share_a_key_share_their_kernels(tmp_path, home, caplog, monkeypatch) -> None:
    """As an image holds the engine and its cache, read-only; each container's home is new and the key is mounted."""
    model, key = tmp_path / "x.engine", tmp_path / "key"
    key.write_bytes(os.urandom(32))
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    use(model)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another container"))
    assert use(model).loaded == [b"kernels"]
    assert caplog.records == []
    assert not home.exists()
    assert not (tmp_path / "another container").exists()
    key.write_bytes(os.urandom(32))
    assert use(model).loaded == []
    assert "was not written here for this engine" in caplog.text


@pytest.mark.parametrize("key", [None, b"", b"x" * 31, b"x" * 4097], ids=["missing", "empty", "short", "long"])
def test_a_shared_key_that_is_none_is_never_replaced_by_ones_own(key, tmp_path, home, caplog, monkeypatch) -> None:
    if key is not None:
        (tmp_path / "key").write_bytes(key)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    use(tmp_path / "x.engine")
    assert not cache_path(tmp_path / "x.engine").exists()
    assert not home.exists()
    assert "kernels are not kept: " in caplog.text
    assert KEY_VARIABLE in caplog.text


def test_a_library_that_gives_nothing_leaves_no_file(tmp_path) -> None:
    use(tmp_path / "x.engine", made=None)
    assert not cache_path(tmp_path / "x.engine").exists()
