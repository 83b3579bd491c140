"""Every TensorRT name in the code is a real one: found in the source, looked up in real bindings.

The bindings are TensorRT-RTX's, which install anywhere. Those of TensorRT 10 and 11 come from NVIDIA's own
index: for them the names are held against one table, read off the bindings' source in NVIDIA/TensorRT.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import tensorrt_rtx

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

IN_TENSORRT_10_AND_11 = {
    "__version__",
    "Builder",
    "Builder.build_serialized_network",
    "Builder.create_builder_config",
    "Builder.create_network",
    "Builder.create_optimization_profile",
    "BuilderFlag.TF32",
    "EngineInspector.get_engine_information",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.profiling_verbosity",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.create_engine_inspector",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_profile_shape",
    "ICudaEngine.get_tensor_shape",
    "ICudaEngine.num_io_tensors",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
    "IHostMemory.nbytes",
    "ILogger",
    "ILogger.__init__",
    "ILogger.log",
    "INetworkDefinition.get_input",
    "INetworkDefinition.get_output",
    "INetworkDefinition.num_inputs",
    "INetworkDefinition.num_outputs",
    "IOptimizationProfile.set_shape",
    "IProgressMonitor",
    "IProgressMonitor.__init__",
    "IProgressMonitor.phase_finish",
    "IProgressMonitor.phase_start",
    "IProgressMonitor.step_complete",
    "ITensor.dtype",
    "ITensor.name",
    "ITensor.shape",
    "ITimingCache.serialize",
    "LayerInformationFormat.JSON",
    "MemoryPoolType.WORKSPACE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",  # needed in 10; in 11 deprecated, kept, without effect
    "OnnxParser",
    "OnnxParser.get_error",
    "OnnxParser.num_errors",
    "OnnxParser.parse_from_file",
    "ParserError.desc",
    "ParserError.node_operator",
    "ProfilingVerbosity.DETAILED",
    "Runtime",
    "Runtime.deserialize_cuda_engine",
}
ONLY_IN_TENSORRT_RTX = {
    "ICudaEngine.create_runtime_config",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
}
"""What is called for its engines alone."""
ONLY_IN_TENSORRT: set[str] = set()
"""Of these, the ones that TensorRT-RTX lacks: none so far."""
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


def in_bindings(name: str) -> bool:
    found = tensorrt_rtx
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


USED = set().union(*(trt_names((ROOT / file).read_text()) for file in FILES))


@pytest.mark.parametrize("name", sorted(USED - ONLY_IN_TENSORRT))
def test_name_is_in_the_real_bindings(name):
    assert in_bindings(name)


def test_names_used_are_the_ones_looked_up_for_tensorrt_10_and_11():
    assert USED == IN_TENSORRT_10_AND_11 | ONLY_IN_TENSORRT_RTX


@pytest.mark.parametrize("name", sorted(ONLY_IN_TENSORRT | GONE_FROM_TENSORRT_11))
def test_name_that_is_said_to_be_absent_is_absent(name):
    assert not in_bindings(name)


def test_no_name_that_is_gone_is_used():
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


def is_accepted(name: str, positional: int, keywords: tuple[str, ...]) -> bool:
    """Whether an overload of a method takes such a call, as pybind11 documents them."""
    kind, _, method = name.partition(".")
    documented = str(getattr(getattr(tensorrt_rtx, kind), method or "__init__").__doc__)
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


@pytest.mark.parametrize("call", sorted(call for call in CALLS if call[0] not in OURS), ids=lambda call: call[0])
def test_call_has_the_arguments_that_the_real_bindings_take(call):
    assert is_accepted(*call)


def test_calls_are_found_and_wrong_ones_seen():
    assert ("IExecutionContext.set_tensor_address", 2, ()) in CALLS
    assert ("IRuntimeConfig.set_runtime_cache", 1, ()) in CALLS
    assert ("Runtime", 1, ()) in CALLS
    assert is_accepted("ICudaEngine.create_execution_context", 0, ())
    assert is_accepted("IExecutionContext.execute_async_v3", 0, ("stream_handle",))
    assert not is_accepted("IExecutionContext.execute_async_v3", 0, ("stream",))
    assert not is_accepted("IExecutionContext.execute_async_v3", 0, ())
    assert not is_accepted("IExecutionContext.set_tensor_address", 3, ())


def test_the_search_finds_what_is_wrong():
    source = (
        "class Sink(trt.ILogger):\n"
        "    def lgo(self): ...\n"
        "config.set_flag(trt.BuilderFlag.FP16)\n"
        "def f(network): return [t.name for t in network.get_inptu(0)]\n"
    )
    wrong = {name for name in trt_names(source) if not in_bindings(name)}
    assert wrong == {"ILogger.lgo", "BuilderFlag.FP16", "INetworkDefinition.get_inptu"}


def test_bindings_are_reached_under_no_other_name():
    """Or names would escape the search above: `getattr`, another alias, another file."""
    for path in [*(ROOT / "exporter").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]:
        source = path.read_text()
        assert "import tensorrt" not in source, path
        if str(path.relative_to(ROOT)) not in FILES:
            assert "trt." not in source, path
        else:
            assert "getattr(trt" not in source, path
