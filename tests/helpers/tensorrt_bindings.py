"""The names and signatures of TensorRT's real Python bindings, also where its libraries can't be installed.

The bindings of full TensorRT are small wheels of their own. They are imported in a process of their own, beside
stand-ins for the libraries that they are linked to, compiled here: functions that do nothing, for names alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

MINUTE = 60
DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {"__version__": str(module.__version__)}
for name in set(dir(module)) - set(found):
    kind = getattr(module, name)
    found[name] = str(kind.__doc__)
    if isinstance(kind, type):
        found |= {f"{name}.{part}": str(getattr(getattr(kind, part), "__doc__", "")) for part in dir(kind)}
json.dump(found, sys.stdout)
"""
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getInferLibVersion", "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
"""The functions that the bindings want of the libraries, of which they call none while they are imported."""


class CannotHave(Exception):  # noqa: N818  # a reason to skip
    """The bindings can't be had here; says why."""


def names_of(module: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Docstrings by `Class`, `Class.attribute` and `function`; `__version__` is the version itself."""
    command = [sys.executable, "-W", "ignore", "-c", DUMP, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * MINUTE, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names_of_wheel(requirement: str, folder: Path) -> dict[str, str]:
    """Download bindings such as `tensorrt-cu13-bindings==11.4.0.106` into `folder`; see `names_of`.

    Raises:
        CannotHave: no wheel or no C compiler can be had here.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotHave("no C compiler here, for the libraries' stand-ins")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    download += ["--only-binary", ":all:", "--retries", "1", "--timeout", "15", "--dest", folder, requirement]
    try:
        done = subprocess.run(download, capture_output=True, text=True, timeout=2 * MINUTE)
    except subprocess.TimeoutExpired as error:
        raise CannotHave(f"no wheel of {requirement} within {error.timeout} s") from error
    if done.returncode:
        raise CannotHave(f"no wheel of {requirement} here: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("*.whl")
    unpacked, libraries = folder / "unpacked", folder / "libraries"
    libraries.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    major = wheel.name.split("-")[1].partition(".")[0]
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = libraries / f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=MINUTE)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(unpacked)}
    return names_of("tensorrt_bindings", environment)
