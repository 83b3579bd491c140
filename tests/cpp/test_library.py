"""The library itae: its C interface called by ctypes, its symbols, and another project that finds it by CMake."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from cpp_programs import BUILD, program
from onnx import numpy_helper
from rehash import rehash

import runtime
from runtime.checks.verify import verify
from runtime.contract.manifest import parity_path

ROOT = Path(__file__).parents[2]
CPP = ROOT / "runtime" / "cpp"
OK, USAGE, MODEL, IMAGE, BACKEND, IO, MISMATCH = range(7)
"""Numbers of `itae_status`."""


class Options(ctypes.Structure):
    """`itae_options`."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("backend", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("ort_library", ctypes.c_char_p),
        ("batch", ctypes.c_int64),
        ("threads", ctypes.c_int),
        ("workers", ctypes.c_int),
    )


class Verified(ctypes.Structure):
    """`itae_verification`."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("samples", ctypes.c_int64),
        ("left_out", ctypes.c_int64),
        ("max_abs", ctypes.c_double),
        ("min_cosine", ctypes.c_double),
        ("norm_relative", ctypes.c_double),
        ("flags_differing", ctypes.c_int64),
        ("batch_rows", ctypes.c_int64),
        ("batch_distance", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def itae() -> ctypes.CDLL:
    library = ctypes.CDLL(str(program("libitae.so")))
    library.itae_version.restype = ctypes.c_char_p
    library.itae_last_error.restype = ctypes.c_char_p
    library.itae_manifest_sha256.restype = ctypes.c_char_p
    library.itae_width.restype = ctypes.c_int64
    for name in ("itae_width", "itae_free", "itae_manifest_sha256"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.itae_embed_files.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    library.itae_embed_contents.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_size_t, ctypes.c_void_p]
    library.itae_verify.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.itae_embed_pixels.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
    return library


@contextmanager
def loaded(itae: ctypes.CDLL, path: Path) -> Iterator[ctypes.c_void_p]:
    found = ctypes.c_void_p()
    assert itae.itae_load(os.fsencode(path), None, ctypes.byref(found)) == OK, itae.itae_last_error()
    yield found
    itae.itae_free(found)


@pytest.fixture
def handle(itae, tiny):
    """A loaded model."""
    with loaded(itae, tiny) as found:
        yield found


def paths_of(pictures: Path) -> list[Path]:
    return sorted(pictures.iterdir())


def expected(model: Path, paths: list[Path]) -> np.ndarray:
    with runtime.load(model) as python:
        return python.embed(paths)


def test_the_c_interface_gives_pythons_embeddings(itae, handle, tiny, pictures):
    paths = paths_of(pictures)
    width = itae.itae_width(handle)
    assert (width, len(itae.itae_manifest_sha256(handle))) == (48, 64)
    names = (ctypes.c_char_p * len(paths))(*map(os.fsencode, paths))
    contents = [path.read_bytes() for path in paths]
    sizes = (ctypes.c_size_t * len(paths))(*map(len, contents))
    by_path, by_content = np.empty((2, len(paths), width), np.float32)
    assert itae.itae_embed_files(handle, names, len(paths), by_path.ctypes.data) == OK
    pointers = (ctypes.c_char_p * len(paths))(*contents)
    assert itae.itae_embed_contents(handle, pointers, sizes, len(paths), by_content.ctypes.data) == OK
    np.testing.assert_allclose(by_path, expected(tiny, paths), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(by_path, by_content)
    assert itae.itae_embed_files(handle, None, 0, None) == OK


def test_decoded_pixels_give_pythons_embedding(itae, handle, tiny):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    vector = np.empty((1, itae.itae_width(handle)), np.float32)
    assert itae.itae_embed_pixels(handle, pixels.ctypes.data, 70, 50, vector.ctypes.data) == OK
    with runtime.load(tiny) as python:
        np.testing.assert_allclose(vector, python.embed([pixels]), rtol=0, atol=1e-5)


def test_failures_are_numbers_and_one_line(itae, handle, tiny, tmp_path):
    found = ctypes.c_void_p(1)
    assert itae.itae_load(os.fsencode(tmp_path / "none.onnx"), None, ctypes.byref(found)) == MODEL
    assert found.value is None
    assert b"no such model file" in itae.itae_last_error()
    assert itae.itae_load(None, None, ctypes.byref(found)) == USAGE
    assert itae.itae_load(b"x", None, None) == USAGE
    assert itae.itae_embed_files(None, None, 0, None) == USAGE
    assert itae.itae_last_error() == b"model is NULL"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"rubbish")
    names = (ctypes.c_char_p * 1)(os.fsencode(bad))
    vector = np.empty(48, np.float32)
    assert itae.itae_embed_files(handle, names, 1, vector.ctypes.data) == IMAGE
    assert itae.itae_last_error().startswith(os.fsencode(bad))
    assert b"\n" not in itae.itae_last_error()
    assert itae.itae_embed_pixels(handle, vector.ctypes.data, 1 << 40, 1 << 40, vector.ctypes.data) == USAGE
    itae.itae_free(None)


def test_a_model_is_verified_with_the_figures_of_python(itae, model):
    expected = verify(model)
    found = Verified(ctypes.sizeof(Verified))
    with loaded(itae, model) as one:
        assert itae.itae_verify(one, ctypes.byref(found)) == OK, itae.itae_last_error()
        assert itae.itae_verify(one, None) == OK
    figures = {name: getattr(found, name) for name, _ in Verified._fields_[1:]}
    parity = expected.parity
    assert figures == {
        "samples": expected.samples,
        "left_out": len(parity.left_out),
        "max_abs": pytest.approx(parity.max_abs, rel=1e-6),
        "min_cosine": pytest.approx(parity.min_cosine, rel=1e-12),
        "norm_relative": pytest.approx(parity.norm_relative, rel=1e-6),
        "flags_differing": parity.flags_differing if parity.flags_checked else -1,
        "batch_rows": expected.batches.rows,
        "batch_distance": pytest.approx(expected.batches.distance, rel=1e-6),
    }


def test_a_model_that_is_off_is_a_mismatch_with_its_figures_and_the_reasons(itae, own):
    model = onnx.load(own)
    scale = next(one for one in model.graph.initializer if one.dims == [48])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    onnx.save(model, own)
    rehash(own)
    found = Verified(ctypes.sizeof(Verified))
    with loaded(itae, own) as one:
        assert itae.itae_verify(one, ctypes.byref(found)) == MISMATCH
        assert found.samples == 2
        assert found.max_abs > 1e-3
        error = itae.itae_last_error().decode()
        assert error.startswith(f"{own} does not give the results of its golden sample: ")
        assert "\n" not in error
        parity_path(own).unlink()
        assert itae.itae_verify(one, ctypes.byref(found)) == MODEL
        assert found.samples == 0


def test_a_struct_of_another_size_is_not_written_to(itae, handle):
    found = Verified(8, 77)
    assert itae.itae_verify(handle, ctypes.byref(found)) == USAGE
    assert found.samples == 77
    assert b"struct_bytes" in itae.itae_last_error()
    assert itae.itae_verify(None, None) == USAGE


def test_options_are_those_of_the_header(itae, tiny):
    options = Options()
    assert itae.itae_default_options(ctypes.byref(options)) == OK
    assert (options.struct_bytes, options.backend) == (ctypes.sizeof(Options), b"auto")
    options.backend = b"abacus"
    found = ctypes.c_void_p()
    assert itae.itae_load(os.fsencode(tiny), ctypes.byref(options), ctypes.byref(found)) == USAGE
    options.backend, options.struct_bytes = b"auto", 8
    assert itae.itae_load(os.fsencode(tiny), ctypes.byref(options), ctypes.byref(found)) == USAGE
    assert b"struct_bytes" in itae.itae_last_error()


def test_versions_are_those_of_the_project(itae):
    header = (CPP / "include/itae/version.h").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'#define ITAE_VERSION "{version}"' in header
    assert itae.itae_version().decode() == version
    assert f"#define ITAE_ABI_VERSION {itae.itae_abi_version()}\n" in header
    about = subprocess.run(["readelf", "-d", BUILD / "libitae.so"], capture_output=True, text=True, check=True).stdout
    assert f"Library soname: [libitae.so.{itae.itae_abi_version()}]" in about
    assert "onnxruntime" not in about  # it is opened at run time


def test_only_our_symbols_are_visible(itae):
    command = ["nm", "-DC", "--defined-only", BUILD / "libitae.so"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split(maxsplit=2)[2] for line in lines]
    assert "itae_load" in names
    ours = re.compile(r"itae_|itae::|(typeinfo( name)?|vtable) for itae::")
    assert [name for name in names if not ours.match(name)] == []
    declared = set(re.findall(r"^ITAE_C_EXPORT .*?(itae_\w+)\(", (CPP / "include/itae.h").read_text(), re.MULTILINE))
    assert {name for name in names if name.startswith("itae_")} == declared


def test_the_header_is_c(itae, tmp_path):
    source = tmp_path / "program.c"
    source.write_text("#include <itae.h>\nint main(void) { return itae_abi_version() != ITAE_ABI_VERSION; }\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{CPP / 'include'}"]
    out = tmp_path / "program"
    subprocess.run(["cc", *flags, source, "-o", out, f"-L{BUILD}", "-litae", f"-Wl,-rpath,{BUILD}"], check=True)
    subprocess.run([out], check=True)


def test_another_project_finds_the_library_and_embeds_an_image(itae, tiny, pictures, tmp_path):
    """With the code and the CMake of the README."""
    readme = (CPP / "README.md").read_text()
    for name, language in (("main.cpp", "cpp"), ("CMakeLists.txt", "cmake")):
        assert f"```{language}\n{(CPP / 'example' / name).read_text()}```" in readme
    prefix, build = tmp_path / "installed", tmp_path / "build"
    options = {"check": True, "capture_output": True, "timeout": 300}
    subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], **options)
    subprocess.run(["cmake", "-S", CPP / "example", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"], **options)
    subprocess.run(["cmake", "--build", build], **options)
    (picture,) = [path for path in paths_of(pictures) if path.name == "0.jpg"]
    shutil.copytree(tiny.parent, tmp_path / "work")
    for name in ("m.onnx", "m.onnx.json"):
        (tmp_path / "work" / name).rename(tmp_path / "work" / name.replace("m.onnx", "itae.onnx"))
    shutil.copy(picture, tmp_path / "work" / "cat.jpg")
    variables = {**os.environ, "ITAE_ONNXRUNTIME": str(BUILD)}
    done = subprocess.run([build / "example"], cwd=tmp_path / "work", env=variables, **options)
    vector = np.array(done.stdout.split(), np.float32)
    np.testing.assert_allclose(vector[None], expected(tiny, [picture]), rtol=0, atol=1e-5)
    (tmp_path / "work" / "cat.jpg").unlink()
    refused = subprocess.run([build / "example"], cwd=tmp_path / "work", env=variables, capture_output=True, timeout=60)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)


def test_the_tests_of_cpp_pass():
    done = subprocess.run([program("itae-tests")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
