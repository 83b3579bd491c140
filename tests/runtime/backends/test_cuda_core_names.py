"""Every call of cuda-core in the code is one that the real package takes. It imports without a GPU."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.gpu import CudaGpu
from runtime.contract.errors import BackendError

core = pytest.importorskip("cuda.core", reason="pip install 'itae[gpu]' or 'itae[rtx]'")
driver = pytest.importorskip("cuda.bindings.driver")
utils = pytest.importorskip("cuda.core.utils")

SOURCE = (Path(__file__).parents[3] / "runtime/backends/gpu.py").read_text()
HANDLES = {
    "core": core,
    "self._core": core,
    "core.Buffer": core.Buffer,
    "driver": driver,
    "device": core.Device,
    "stream": core.Stream,
    "event": core.Event,
    "buffer": core.Buffer,
    "resource": core.LegacyPinnedMemoryResource,
    "self._strided": utils.StridedMemoryView,
    "view": utils.StridedMemoryView,
}
"""The expressions that hold cuda-core's objects, by the house's convention, and their classes."""
NO_SIGNATURE = {"EventOptions": ("timing_enabled", "blocking_sync", "ipc_enabled"), "LegacyPinnedMemoryResource": ()}
"""Of classes in C; from their own documentation, which the test reads."""


def cuda_class() -> ast.ClassDef:
    (found,) = (
        node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ClassDef) and node.name == "CudaGpu"
    )
    return found


def uses() -> list[tuple[str, str, ast.Call | None]]:
    """Handle, attribute, and the call, of each use of a handle."""
    nodes = list(ast.walk(cuda_class()))
    called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    return [
        (ast.unparse(node.value), node.attr, called.get(id(node)))
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in HANDLES
    ]


USES = uses()


@pytest.mark.parametrize(("handle", "name", "call"), USES, ids=[f"{handle}.{name}" for handle, name, _ in USES])
def test_what_is_used_is_there_and_takes_the_arguments(handle, name, call):
    found = getattr(HANDLES[handle], name)
    if call is None or name == "StridedMemoryView":
        return
    keywords = {str(one.arg): object() for one in call.keywords}
    if name in NO_SIGNATURE:
        assert not call.args
        assert set(keywords) <= set(NO_SIGNATURE[name])
        assert all(one in str(found.__doc__) for one in keywords)
        return
    signature = inspect.signature(found)
    # A method found on its class has self before its arguments; one of a class or of none has not.
    has_self = "self" in signature.parameters
    signature.bind(*[object()] * (len(call.args) + has_self), **keywords)


def test_every_method_of_the_protocol_that_needs_cuda_is_looked_at():
    assert {"cuCtxGetCurrent", "cuCtxSetCurrent"} <= {name for handle, name, _ in USES if handle == "driver"}
    names = {f"{handle}.{name}" for handle, name, _ in USES}
    assert {"buffer.copy_from", "stream.record", "event.sync", "device.allocate", "resource.allocate"} <= names
    assert {"self._strided.from_dlpack", "self._strided.from_buffer", "core.Buffer.from_handle"} <= names


def test_a_wrong_argument_would_be_seen():
    with pytest.raises(TypeError):
        inspect.signature(core.Buffer.copy_from).bind(object(), object(), strem=object())


def test_what_a_view_tells_of_a_tensor_is_what_is_read():
    """On the CPU, where cuda-core looks at tensors too."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    view = utils.StridedMemoryView.from_dlpack(array, stream_ptr=-1)
    assert (int(view.ptr), tuple(view.shape), np.dtype(view.dtype).name) == (array.ctypes.data, (2, 3, 4), "float32")
    assert view.strides is None or tuple(view.strides) == (12, 4, 1)  # counted in elements
    turned = utils.StridedMemoryView.from_dlpack(array.transpose(0, 2, 1), stream_ptr=-1)
    assert tuple(turned.strides) == (12, 1, 4)
    assert hasattr(view, "__dlpack__")
    assert hasattr(view, "__dlpack_device__")


def test_a_gpu_that_is_not_there_is_one_error_of_ours():
    """Real cuda-core, asked past the probe."""
    with pytest.raises(BackendError, match="x: cuda-core fails on GPU 99: ") as info:
        CudaGpu(99, "x")
    assert "\n" not in str(info.value)


def test_missing_cuda_core_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    with pytest.raises(BackendError, match=r"x needs the package cuda-core: pip install 'itae\[gpu\]'"):
        CudaGpu(0, "x")
