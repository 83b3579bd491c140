"""How TensorRT is imported and what its log keeps, the same for the exporter and the runtime."""

from __future__ import annotations

import ctypes
import re
from types import SimpleNamespace

import gpu_marks
import pytest
from fake_driver import FakeDriver, no_driver

from runtime.contract import tensorrt
from runtime.contract.errors import BackendError
from runtime.contract.tensorrt import (
    KNOWN_FAULTS,
    MAX_ERROR_CHARS,
    LibraryLog,
    import_library,
    known_faults,
    numpy_name,
    shortened,
)


def test_a_library_that_is_too_old_or_does_not_load_is_reported(monkeypatch) -> None:
    monkeypatch.setattr(tensorrt.importlib, "import_module", lambda name: SimpleNamespace(__version__="10.8.0.43"))
    wanted = r"x needs tensorrt 10\.9 or newer, 10\.8\.0\.43 is too old: pip install 'itae\[gpu\]' --upgrade"
    with pytest.raises(BackendError, match=wanted):
        import_library("tensorrt", "x")

    def broken(name: str):
        assert name == "tensorrt_rtx"
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load \(libnvinfer.so.10.*pip install 'itae\[rtx\]'"):
        import_library("tensorrt-rtx", "x")


def test_types_have_numpys_names() -> None:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "UINT8": "uint8", "BOOL": "bool"}
    assert {name: numpy_name(SimpleNamespace(name=name)) for name in names} == names


def test_last_errors_are_one_line_the_latest_and_each_once():
    log = LibraryLog()
    log.record("warning", "not an error")
    for text in ["first", "again\n  and again", "third", "again and again", "internal"]:
        log.record("internal error" if text == "internal" else "error", text)
    assert log.last_errors() == "third; again and again; internal"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(
            "K is\n  too large\n[x] cudaError 35: no driver",
            "K is too large",
            id="complaint beside the cause",
        ),
        pytest.param("[x] cudaError 35: no driver", "[x] cudaError 35: no driver", id="complaint alone"),
        pytest.param("a" * 5000, "a" * MAX_ERROR_CHARS + "...", id="very long"),
    ],
)
def test_error_becomes_one_line_about_its_cause(text, line):
    assert shortened(text) == line


def test_the_oldest_versions_are_taken(monkeypatch) -> None:
    for name, library in tensorrt.LIBRARIES.items():
        module = SimpleNamespace(__version__=".".join(map(str, (*library.oldest, 0))))
        monkeypatch.setattr(tensorrt.importlib, "import_module", lambda _, module=module: module)
        assert import_library(name, "x") is module


@pytest.mark.parametrize(
    ("library", "version", "capability", "precision", "issues"),
    [
        ("tensorrt", "10.16.1.11", "12.0", "bf16", ["4837"]),
        ("tensorrt", "10.16.1.11", "12.0", "fp32", []),
        ("tensorrt", "10.16.1.11", "9.0", "fp16", []),
        ("tensorrt", "10.16.1.11", "8.9", "fp16", ["4796"]),
        ("tensorrt", "11.1.0.106", "12.0", "fp32", ["4853", "4813"]),
        ("tensorrt", "11.10.0.1", "12.0", "fp32", []),
        ("tensorrt-rtx", "11.1.0", "12.0", "fp32", []),
    ],
)
def test_public_reports_are_quoted_for_their_versions_gpus_and_precisions(
    library, version, capability, precision, issues
) -> None:
    found = known_faults(library, version, capability, precision)
    assert [re.search(r"NVIDIA/TensorRT/issues/(\d+)\)", one).group(1) for one in found] == issues
    assert all(f"TensorRT {version} on compute capability {capability}: " in one for one in found)


def test_reports_are_about_versions_that_are_supported() -> None:
    for fault in KNOWN_FAULTS:
        assert min(fault.versions) >= tensorrt.LIBRARIES["tensorrt"].oldest
        assert fault.source.startswith("https://")


@pytest.mark.parametrize(("gpus", "reason"), [(["9.0"], "NVIDIA GPU 10 (compute capability 9.0)"), (["8.9"], None)])
def test_the_gpu_tests_of_tensorrt_rtx_are_skipped_with_the_reason(gpus, reason, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(gpus))
    found = gpu_marks.rtx_refuses()
    assert found is None if reason is None else reason in found


def test_the_gpu_tests_are_not_skipped_where_there_is_no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert gpu_marks.rtx_refuses() is None
