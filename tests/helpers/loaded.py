"""The modules that a fresh Python has loaded after some code."""

import subprocess
import sys

HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "sklearn",
    "scipy",
    "pyarrow",
)
"""Libraries that take long to import, or that not every user has."""


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
