"""Real headers of TensorRT and CUDA from wheels on PyPI, to compile against; nothing of them is linked or shipped."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tensorrt_bindings import MINUTE, CannotHave

WHEELS = ("kernel-lens==2.0.1", "nvidia-cuda-runtime==13.5.37", "nvidia-cuda-crt==13.5.37")
"""A copy of TensorRT 10.14's headers, and what they include: 3 MB."""


def fetch_headers(folder: Path) -> tuple[Path, Path]:
    """Unpack the headers into `folder`; return the folders of NvInfer.h and of cuda_runtime_api.h.

    Raises:
        CannotHave: there is no package registry here, or it does not have them.
    """
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    download += ["--only-binary", ":all:", "--retries", "1", "--timeout", "15", "--dest", str(folder), *WHEELS]
    try:
        done = subprocess.run(download, capture_output=True, text=True, timeout=2 * MINUTE)
    except subprocess.TimeoutExpired as error:
        raise CannotHave(f"no headers of TensorRT within {error.timeout} s") from error
    if done.returncode:
        raise CannotHave(f"no headers of TensorRT here: {done.stderr.strip().splitlines()[-1:]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/include/" in name])
    return folder / "kernel_lens" / "include" / "tensorrt", folder / "nvidia" / "cu13" / "include"


STUBBED = {"VRuntime": "RuntimeStub", "VCudaEngine": "EngineStub", "VExecutionContext": "ContextStub"}


def stubs(header: str) -> str:
    """C++ classes that fill in every pure virtual function of `NvInferImpl.h` by one that ends the process."""
    classes = []
    for base, name in STUBBED.items():
        body = re.search(rf"class {base} : public VRoot\s*\{{(.*?)\n\}};", header, re.DOTALL)
        assert body is not None, base
        code = re.sub(r"//.*|#if ENABLE_(.|\n)*?#endif", "", body[1])  # what NVIDIA's own builds turn on is left out
        functions = re.findall(r"virtual ([^;]*?) = 0;", code)
        assert len(functions) > 10, base
        filled = "\n".join(f"    {one} override {{ std::abort(); }}" for one in functions)
        classes.append(f"struct {name} : {base} {{\n{filled}\n}};")
    return "#pragma once\n#include <cstdlib>\nnamespace nvinfer1::apiv {\n" + "\n".join(classes) + "\n}\n"
