"""Every TensorRT name in the code is a real one: found in the source, looked up in real bindings.

The bindings are TensorRT-RTX's, which install anywhere. Those of TensorRT 10 and 11 come from NVIDIA's own
index: for them the names are held against one table, read off the bindings' source in NVIDIA/TensorRT.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tensorrt_rtx

ROOT = Path(__file__).parents[2]
FILES = ("exporter/engine.py", "exporter/engine_log.py", "exporter/timing_cache.py", "runtime/backends/trt.py")

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
    assert USED == IN_TENSORRT_10_AND_11


@pytest.mark.parametrize("name", sorted(ONLY_IN_TENSORRT | GONE_FROM_TENSORRT_11))
def test_name_that_is_said_to_be_absent_is_absent(name):
    assert not in_bindings(name)


def test_no_name_that_is_gone_is_used():
    assert not USED & GONE_FROM_TENSORRT_11


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
