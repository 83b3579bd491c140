"""How TensorRT is imported and what its log keeps, the same for the exporter and the runtime."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.contract import tensorrt
from runtime.contract.errors import BackendError
from runtime.contract.tensorrt import MAX_ERROR_CHARS, LibraryLog, import_library, numpy_name, shortened


def test_a_library_that_is_too_old_or_does_not_load_is_reported(monkeypatch) -> None:
    monkeypatch.setattr(tensorrt.importlib, "import_module", lambda name: SimpleNamespace(__version__="9.3.0"))
    wanted = r"x needs tensorrt 10 or newer, 9\.3\.0 is too old: pip install 'itae\[gpu\]' --upgrade"
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
