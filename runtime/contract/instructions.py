"""The CPU: its name, and those of its instructions that decide how fast a model can run."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
GIVES = {
    "avx2": "float32, 8 numbers at a time",
    "avx512f": "float32, 16 numbers at a time",
    "avx512_bf16": "bf16 in about half of float32's time, by --provider openvino: --precision bf16, or --compute bf16",
    "amx_bf16": "bf16 in about a third of float32's time or less: the same",
    "avx_vnni": "int8 in about a third of float32's time",
    "avx512_vnni": "int8 in about a third of float32's time",
    "amx_int8": "int8 in about a quarter of float32's time or less",
    "avx512_fp16": "fp16 without conversion; no library that we use needs it",
    "asimdhp": "fp16 without conversion (Arm)",
    "bf16": "bf16 (Arm)",
    "i8mm": "int8 (Arm)",
    "sve": "vectors of any length (Arm)",
}
"""By instruction, as Linux calls it: what it gives a model. The shares are of matrix products alone."""


def cpu_name() -> str:
    """Return the CPU's own name, which `platform` doesn't know on Linux."""
    return next(iter(_values("model name")), "") or platform.processor() or platform.machine()


def cpu_instructions() -> tuple[str, ...]:
    """Return the names in `GIVES` of the instructions that this CPU has, in that order."""
    flags = _flags()
    return tuple(name for name in GIVES if name in flags)


def has_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16; True if the system doesn't list those of an x86."""
    flags = _flags("flags")
    return not flags or bool(flags & {"avx512_bf16", "amx_bf16"})


def _flags(*keys: str) -> set[str]:
    return {flag for key in keys or ("flags", "Features") for flag in " ".join(_values(key)[:1]).split()}


def _values(key: str) -> list[str]:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key]
