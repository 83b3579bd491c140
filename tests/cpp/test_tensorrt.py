"""The TensorRT backend of C++, compiled with NVIDIA's headers and executed on stand-ins for the libraries.

The stand-ins are compiled with the same headers, so that calls, arguments and tables of functions are NVIDIA's. What no
stand-in shows is what TensorRT and a GPU do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_programs import BUILD, program
from rehash import rehash
from tensorrt_bindings import CannotHave
from tensorrt_headers import fetch_headers, stubs

from runtime.contract.golden import golden_bytes, read_golden
from runtime.contract.manifest import manifest_path, parity_path, read_manifest
from runtime.images.decode import load_image
from runtime.images.preprocess import preprocess

CPP = Path(__file__).parents[2] / "runtime" / "cpp"
STAND_INS = Path(__file__).parent / "stand_ins"
BATCH = (2, 3, 4)
VERSIONS = {"tensorrt": "10.14.1.48", "tensorrt-rtx": "1.14.1.48"}
"""Of the stand-ins: TensorRT-RTX's headers are TensorRT's here, with its own names for the version."""


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Stand-ins for installations: headers in include/, a library in lib/; and the driver."""

    tensorrt: Path
    rtx: Path
    cuda: Path
    """The folder of cuda_runtime_api.h."""
    driver: Path
    """The folder of libcuda.so.1."""


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory) -> Prefixes:
    program("itae-embed")
    folder = tmp_path_factory.mktemp("tensorrt")
    try:
        headers, cuda = fetch_headers(folder)
    except CannotHave as problem:
        pytest.skip(f"NOT COMPILED: the TensorRT backend of C++: {problem}")
    (folder / "stubs.hpp").write_text(stubs((headers / "NvInferImpl.h").read_text()))
    compile_library = ["c++", "-std=c++17", "-shared", "-fPIC", "-O1", f"-I{folder}", "-isystem", cuda]
    for name, library, macro in (
        ("tensorrt", "libnvinfer.so.10", "TRT_MAJOR_ENTERPRISE"),
        ("rtx", "libtensorrt_rtx.so.1", "TRT_MAJOR_RTX"),
    ):
        include, lib = folder / name / "include", folder / name / "lib"
        shutil.copytree(headers, include)
        lib.mkdir()
        version = include / "NvInferVersion.h"
        if name == "rtx":
            text = version.read_text().replace("_ENTERPRISE", "_RTX")
            version.write_text(text.replace(f"{macro} 10\n", f"{macro} 1\n"))
        source = STAND_INS / "nvinfer.cpp"
        subprocess.run([*compile_library, "-isystem", include, source, "-o", lib / library], check=True, timeout=300)
    (folder / "driver").mkdir()
    source, driver = STAND_INS / "cuda.cpp", folder / "driver" / "libcuda.so.1"
    subprocess.run([*compile_library, source, "-o", driver], check=True, timeout=300)
    return Prefixes(folder / "tensorrt", folder / "rtx", cuda, folder / "driver")


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", CPP, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", "-DITAE_TESTS=OFF"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def embed(prefixes, tmp_path_factory) -> Path:
    """`itae-embed` with both libraries: three sources compiled, all warnings errors, and linked with the others."""
    build = tmp_path_factory.mktemp("build")
    done = configure(
        build,
        f"-DITAE_TENSORRT_ROOT={prefixes.tensorrt}",
        f"-DITAE_TENSORRT_RTX_ROOT={prefixes.rtx}",
        f"-DITAE_CUDA_INCLUDE={prefixes.cuda}",
    )
    assert done.returncode == 0, done.stderr
    folder = "CMakeFiles/itae-objects.dir/src/backends"
    made = [f"{folder}/{name}.cpp.o" for name in ("engine", "tensorrt", "tensorrt_rtx")]
    built = subprocess.run(["ninja", "-C", build, *made], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout
    left = subprocess.run(["ninja", "-C", BUILD, "-n", "itae-embed"], capture_output=True, text=True, timeout=60)
    if "no work to do" not in left.stdout:  # objects of two states of the headers would be linked together
        pytest.fail(f"{BUILD} is older than the sources: scripts/build-cpp")
    commands = subprocess.run(
        ["ninja", "-C", BUILD, "-t", "commands", "itae-embed"], capture_output=True, text=True, check=True
    )
    link = commands.stdout.splitlines()[-1]
    ours = " ".join(shlex.quote(str(build / one)) for one in made)
    assert f"{folder}/engine.cpp.o" in link
    link = link.replace(f"{folder}/engine.cpp.o", ours).replace("-o itae-embed", f"-o {build / 'itae-embed'}")
    linked = subprocess.run(link, shell=True, cwd=BUILD, capture_output=True, text=True, timeout=300)
    assert linked.returncode == 0, linked.stderr
    return build / "itae-embed"


def computed(pixels: np.ndarray, width: int) -> np.ndarray:
    """(B, width) float32: what the stand-in computes of (B, 3, H, W)."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    weights = (7 * np.arange(flat.shape[1])[:, None] + 13 * np.arange(width)) % 11 - 5
    return (flat @ weights / 1000).astype(np.float32)


def engine_text(batch=BATCH, width: int = 48, dtype: str = "float32") -> str:
    return f"{batch[0]} {batch[1]} {batch[2]}\nin pixel_values float32 3 42 56\nout embedding {dtype} {width}\n"


@pytest.fixture
def make_engine(own):
    """Turn the model into an engine of a stand-in: `text` is the engine; the rest alters the manifest."""

    def make(builder: str = "tensorrt", *, text: str = "", options=None, **built: str) -> Path:
        path = own.with_suffix(".engine")
        old = read_manifest(own)
        golden = dataclasses.replace(read_golden(own, old), embedding=computed(read_golden(own, old).input, 48))
        path.write_text(text or engine_text())
        parity_path(path).write_bytes(golden_bytes(golden))
        update = {"name": builder, "version": VERSIONS[builder], **built}
        made = old.model_copy(
            update={
                "builder": old.builder.model_copy(update=update),
                "options": old.options.model_copy(update={"backend": builder, "batch": BATCH, **(options or {})}),
            }
        )
        manifest_path(path).write_bytes(made.to_json())
        rehash(path)
        return path

    return make


@pytest.fixture
def run(embed, prefixes, tmp_path):
    """Call the program on the stand-ins; checks what it leaves of them unless it never got there."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        report = tmp_path / "report"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [embed, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(prefixes.driver),
                "STAND_IN_REPORT": str(report),
                **environment,
            },
        )
        left = report.read_text() if report.exists() else ""
        counts = [int(part) for line in left.splitlines() for part in line.replace(",", "").split() if part.isdigit()]
        assert not any(counts), left
        done.left = left  # type: ignore[attr-defined]
        return done

    return call


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_embeds_pictures_in_batches_of_its_profile(builder, run, make_engine, pictures, tmp_path) -> None:
    engine, out = make_engine(builder), tmp_path / "e.npy"
    done = run(engine, pictures, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[builder]
    assert json.loads(done.stdout)["backend"] == f"{title} {VERSIONS[builder]} (Stand-in)"
    how = read_manifest(engine).preprocessing
    pixels = np.stack([preprocess(load_image(path), how) for path in sorted(pictures.iterdir())])
    np.testing.assert_allclose(np.load(out), computed(pixels, 48), rtol=1e-5, atol=1e-5)
    assert "streams 0" in done.left
    assert "device memory 0" in done.left
    assert done.left.count("nvinfer: objects 0") == 1  # the other library was never opened


def test_the_golden_sample_is_replayed(run, make_engine) -> None:
    done = run(make_engine(), "--verify", "--backend", "tensorrt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_program_says_what_is_built_in(run) -> None:
    assert run("--version").stdout.splitlines()[1].endswith("tensorrt, tensorrt-rtx")


FAILURES = {
    "cuInit": "the driver here fails: CUDA error 803",
    "cuDevicePrimaryCtxRetain": "CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY) of cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent": "Stand-in fails: CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY) of cuCtxPushCurrent",
    "cuStreamCreate": "Stand-in fails: CUDA error 2",
    "cuEventCreate": "(a smaller --batch takes less memory): CUDA error 2",
    "cuEventRecord": "failed on 3 images",
    "cuStreamWaitEvent": "failed on 3 images",
    "cuEventSynchronize": "failed on 3 images",
    "cuMemAlloc": "(a smaller --batch takes less memory): CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY) of cuMemAlloc",
    "cuMemHostAlloc": "failed on 3 images",
    "cuMemcpyHtoDAsync": "failed on 3 images",
    "cuMemcpyDtoHAsync": "failed on 3 images",
    "createInferRuntime": "does not start here: the stand-in refuses createInferRuntime",
    "deserializeCudaEngine": "can't load {model}: the stand-in refuses deserializeCudaEngine; it is for ",
    "getIOTensorName": "names no tensors of {model}",
    "createExecutionContext": "can't make an execution context for {model}: the stand-in refuses",
    "setInputShape": "takes no batch of 3: the stand-in refuses setInputShape",
    "setTensorAddress": "takes no memory for `pixel_values`",
    "enqueueV3": "failed on 3 images: the stand-in refuses enqueueV3; a smaller --batch",
}


@pytest.mark.parametrize(("call", "words"), FAILURES.items(), ids=FAILURES)
def test_a_call_that_fails_is_one_line_and_leaves_nothing(call, words, run, make_engine, pictures, tmp_path) -> None:
    engine, out = make_engine(), tmp_path / "e.npy"
    done = run(engine, pictures, "--out", out, "--quiet", STAND_IN_FAILS=call)
    assert done.returncode == 2, done.stderr
    assert words.format(model=engine) in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not out.exists()


def test_an_engine_is_refused_before_its_library_is_opened(run, make_engine, pictures, tmp_path) -> None:
    def refused(engine: Path, words: str, *more: str, **environment: str) -> None:
        done = run(engine, pictures, "--out", tmp_path / "e.npy", *more, **environment)
        assert done.returncode == 2, done.stdout
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert "nvinfer" not in done.left

    engine = make_engine(gpu="NVIDIA L4", compute_capability="8.9", options={"hardware_compatibility": "none"})
    refused(engine, "was built for NVIDIA L4 (compute capability 8.9), here is Stand-in (compute capability 8.9)")
    same = {"hardware_compatibility": "same-compute-capability"}
    engine = make_engine(gpu="NVIDIA L4", compute_capability="8.9", options=same)
    assert run(engine, pictures, "--out", tmp_path / "e.npy").returncode == 0
    refused(engine, "was built for GPUs of compute capability 8.9", STAND_IN_CAPABILITY="9.0")
    refused(make_engine("tensorrt-rtx"), "can't run on Stand-in (compute capability 9.0)", STAND_IN_CAPABILITY="9.0")
    refused(make_engine(), "needs an NVIDIA GPU, and the driver here finds none; or export the", STAND_IN_GPUS="0")
    refused(make_engine(), "was to run on GPU 3, the driver here has 2", "--device", "cuda:3", STAND_IN_GPUS="2")
    refused(make_engine(), "and there is no driver here (libcuda.so.1)", LD_LIBRARY_PATH="")


def test_an_engine_of_another_version_never_reaches_the_library(run, make_engine, pictures, tmp_path) -> None:
    out = tmp_path / "e.npy"
    done = run(make_engine(version="10.9.0.34"), pictures, "--out", out, STAND_IN_FAILS="createInferRuntime")
    assert "was built by TensorRT 10.9.0.34, here is 10.14.1.48: install that" in done.stderr
    older = make_engine(version="10.9.0.34", options={"version_compatible": True})
    assert run(older, pictures, "--out", out, STAND_IN_HOST_CODE="1").returncode == 0
    done = run(make_engine(), pictures, "--out", out, STAND_IN_MAJOR="11")
    assert "needs TensorRT 10, whose headers this library was built with, and found 11.14.1.48" in done.stderr
    done = run(make_engine(), pictures, "--out", out, ITAE_TENSORRT=str(tmp_path))
    assert f"needs TensorRT's library libnvinfer.so.10, which is not found ({tmp_path}" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (engine_text(width=47), "has output `embedding` as float32 (47,) per image, its manifest says"),
        (engine_text(dtype="float16"), "as float16"),
        (engine_text((2, 3, 8)), "takes batches (2, 3, 8), its manifest says (2, 3, 4)"),
        (engine_text().replace("pixel_values", "images"), "has the tensors images, embedding"),
    ],
    ids=["width", "type", "profile", "name"],
)
def test_an_engine_unlike_its_manifest_is_refused(text, words, run, make_engine, pictures, tmp_path) -> None:
    done = run(make_engine(text=text), pictures, "--out", tmp_path / "e.npy")
    assert done.returncode == 2
    assert words in done.stderr


def test_an_altered_engine_never_reaches_the_library(run, make_engine, pictures, tmp_path) -> None:
    engine = make_engine()
    engine.write_text(engine_text().replace("2 3 4", "2 3 5"))
    done = run(engine, pictures, "--out", tmp_path / "e.npy", STAND_IN_FAILS="createInferRuntime")
    assert done.returncode == 2
    assert "SHA-256" in done.stderr


def test_a_prefix_that_is_not_whole_is_refused_by_cmake(prefixes, tmp_path) -> None:
    def refused(*options: str) -> str:
        done = configure(tmp_path / f"build{len(list(tmp_path.iterdir()))}", *options)
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    cuda = f"-DITAE_CUDA_INCLUDE={prefixes.cuda}"
    assert "there is no include/NvInferVersion.h" in refused(f"-DITAE_TENSORRT_ROOT={tmp_path}", cuda)
    assert "holds no headers of TensorRT-RTX" in refused(f"-DITAE_TENSORRT_RTX_ROOT={prefixes.tensorrt}", cuda)
    bare = tmp_path / "bare"
    shutil.copytree(prefixes.tensorrt / "include", bare / "include")
    assert "is of TensorRT 10, and there is no libnvinfer.so.10" in refused(f"-DITAE_TENSORRT_ROOT={bare}", cuda)


def test_a_build_without_tensorrt_says_how_to_build_it(make_engine, pictures, tmp_path) -> None:
    command = [program("itae-embed"), make_engine(), pictures, "--out", tmp_path / "e.npy"]
    if b"tensorrt" in subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout:
        pytest.skip("this build has TensorRT")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "without which this library was built: build it again by `ITAE_TENSORRT_ROOT=DIR scripts/bui" in done.stderr
