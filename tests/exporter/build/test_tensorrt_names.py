"""Every TensorRT name in the code is a real one: found in the source, looked up in real bindings.

TensorRT-RTX's are installed; those of the oldest TensorRT that is supported and of the newest are downloaded.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tensorrt_bindings import CannotHave, names_of, names_of_wheel

from runtime.contract.tensorrt import LIBRARIES

ROOT = Path(__file__).parents[3]
FILES = (
    "exporter/build/engine.py",
    "exporter/build/build_log.py",
    "exporter/build/timing_cache.py",
    "runtime/backends/kernel_cache.py",
    "runtime/backends/trt.py",
    "runtime/contract/tensorrt.py",
)

HANDLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "serialized": "IHostMemory",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
"""The variables that hold TensorRT's objects, by the house's convention, and their classes."""

FOR_TENSORRT_RTX = {
    "ICudaEngine.create_runtime_config",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
}
"""What is called for its engines alone, so that TensorRT needn't have it."""
LATER_IN_TENSORRT = {"ICudaEngine.create_runtime_config"}
"""Of these, the ones that newer versions of TensorRT have: it is there from 10.11 on."""
USED_AS_TEXT = {
    "DataType.BF16",
    "DataType.FLOAT",
    "DataType.HALF",
    "ILogger.ERROR",
    "ILogger.INTERNAL_ERROR",
    "ILogger.WARNING",
    "TensorIOMode.INPUT",
}
"""Members whose `name` the code compares with a text."""
GONE_FROM_TENSORRT_11 = {
    "BuilderFlag.BF16",
    "BuilderFlag.FP16",
    "BuilderFlag.FP8",
    "BuilderFlag.INT8",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "IBuilderConfig.int8_calibrator",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
}
"""Names of TensorRT 10 that must not come back."""

OLDEST = ".".join(map(str, LIBRARIES["tensorrt"].oldest))
WHEELS = {"oldest": f"tensorrt-cu12-bindings~={OLDEST}.0", "newest": "tensorrt-cu13-bindings"}
Names = dict[str, str]


@pytest.fixture(scope="module")
def rtx() -> Names:
    """The names and docstrings of TensorRT-RTX, as installed."""
    return names_of("tensorrt_rtx")


@pytest.fixture(scope="module", params=WHEELS)
def full(request, tmp_path_factory) -> tuple[str, Names]:
    """`oldest` or `newest`, with the names and docstrings of that TensorRT."""
    try:
        return request.param, names_of_wheel(WHEELS[request.param], tmp_path_factory.mktemp("wheel"))
    except CannotHave as reason:
        pytest.skip(str(reason))


def trt_names(source: str) -> set[str]:
    """`Class.attribute` for each attribute of a handle, and for each method that overrides TensorRT's."""
    names = set()
    nodes = list(ast.walk(ast.parse(source)))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}  # `a.b` of `a.b.c`
    for node in nodes:
        if isinstance(node, ast.Attribute) and not (id(node) in inner and ast.unparse(node)[:4] == "trt."):
            root, *path = ast.unparse(node).split(".")
            if root == "trt":
                names.add(".".join(path[:2]))
            elif root in HANDLES:
                names.add(f"{HANDLES[root]}.{path[0]}")
        elif isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                if base.startswith("trt."):
                    names |= {f"{base.removeprefix('trt.')}.{method}" for method in methods}
    return names


USED = set().union(*(trt_names((ROOT / file).read_text()) for file in FILES))


def test_names_are_in_the_bindings_of_tensorrt_rtx(rtx):
    assert (USED | USED_AS_TEXT) - rtx.keys() == set()
    assert not GONE_FROM_TENSORRT_11 & rtx.keys()


def test_names_are_in_the_bindings_of_tensorrt_oldest_and_newest(full):
    which, names = full
    absent = FOR_TENSORRT_RTX - (LATER_IN_TENSORRT if which == "newest" else set())
    assert (USED | USED_AS_TEXT) - names.keys() == absent


def test_the_bindings_are_those_that_were_asked_for(full):
    which, names = full
    version = names["__version__"]
    assert version.startswith(f"{OLDEST}.") if which == "oldest" else int(version.partition(".")[0]) >= 11


def test_no_name_that_is_gone_is_used(full):
    which, names = full
    assert GONE_FROM_TENSORRT_11 & names.keys() == (GONE_FROM_TENSORRT_11 if which == "oldest" else set())
    assert not USED & GONE_FROM_TENSORRT_11


Call = tuple[str, int, tuple[str, ...]]
"""`Class.method` (or a class), how many positional arguments, and the names of the others."""


def calls(source: str) -> set[Call]:
    """Each call of a handle's method or of a class."""
    return {
        (name, len(node.args), tuple(str(one.arg) for one in node.keywords))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and not any(isinstance(one, ast.Starred) for one in node.args)
        for name in trt_names(ast.unparse(node.func))
    }


def is_accepted(names: Names, name: str, positional: int, keywords: tuple[str, ...]) -> bool:
    """Whether an overload of a method takes such a call, as pybind11 documents them."""
    documented = names[name if "." in name else f"{name}.__init__"]
    for arguments in re.findall(r"^(?:\d+\. )?\w+\((self: .*)\) -> .*$", documented, re.MULTILINE):
        parts = re.split(r", (?=\w+: )", arguments)[1:]
        rest = {part.partition(":")[0]: " = " in part for part in parts[positional:]}
        missing = [one for one, optional in rest.items() if not optional and one not in keywords]
        if positional <= len(parts) and set(keywords) <= set(rest) and not missing:
            return True
    return False


CALLS = set().union(*(calls((ROOT / file).read_text()) for file in FILES))
OURS = ("ILogger.__init__", "IProgressMonitor.__init__")
"""Called with self, as pybind11 wants it of subclasses."""


def refused(names: Names) -> list[Call]:
    """The calls in the code that these bindings would not take."""
    return [call for call in sorted(CALLS) if call[0] not in OURS and not is_accepted(names, *call)]


def test_calls_have_the_arguments_that_tensorrt_rtx_takes(rtx):
    assert refused(rtx) == []


def test_calls_have_the_arguments_that_tensorrt_oldest_and_newest_take(full):
    _, names = full
    absent = dict.fromkeys(FOR_TENSORRT_RTX - names.keys(), "")
    assert [call for call in refused(names | absent) if call[0] not in absent] == []


def test_calls_are_found_and_wrong_ones_seen(rtx):
    assert ("IExecutionContext.set_tensor_address", 2, ()) in CALLS
    assert ("IRuntimeConfig.set_runtime_cache", 1, ()) in CALLS
    assert ("Runtime", 1, ()) in CALLS
    assert is_accepted(rtx, "ICudaEngine.create_execution_context", 0, ())
    assert is_accepted(rtx, "IExecutionContext.execute_async_v3", 0, ("stream_handle",))
    assert not is_accepted(rtx, "IExecutionContext.execute_async_v3", 0, ("stream",))
    assert not is_accepted(rtx, "IExecutionContext.execute_async_v3", 0, ())
    assert not is_accepted(rtx, "IExecutionContext.set_tensor_address", 3, ())


def test_the_search_finds_what_is_wrong(rtx):
    source = (
        "class Sink(trt.ILogger):\n"
        "    def lgo(self): ...\n"
        "config.set_flag(trt.BuilderFlag.FP16)\n"
        "def f(network): return [t.name for t in network.get_inptu(0)]\n"
    )
    assert trt_names(source) - rtx.keys() == {"ILogger.lgo", "BuilderFlag.FP16", "INetworkDefinition.get_inptu"}


def test_bindings_are_reached_under_no_other_name():
    """Or names would escape the search above: `getattr`, another alias, another file."""
    for path in [*(ROOT / "exporter").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]:
        source = path.read_text()
        assert "import tensorrt" not in source, path
        if str(path.relative_to(ROOT)) not in FILES:
            assert "trt." not in source, path
        else:
            assert "getattr(trt" not in source, path
