"""The file of `--timing-cache`: how long TensorRT's kernels took, so that a second build needn't time them."""

from __future__ import annotations

from pathlib import Path

from exporter.build.build_log import BuildLog
from runtime.contract.errors import InputError, UsageError
from runtime.contract.tensorrt import TrtObject

MAX_BYTES = 256 << 20
"""A cache is a few megabytes; more is refused before it is read."""

NO_TIMINGS = "TensorRT-RTX times no kernels and gives the same engine each time"


def read(path: Path, backend: str) -> bytes:
    """The content of the file; empty if there is no file yet. TensorRT itself judges the content.

    Raises:
        UsageError: `backend` times nothing.
        InputError: it is no file, too large, or can't be read.
    """
    if backend == "tensorrt-rtx":
        raise UsageError(
            f"--timing-cache has no effect with --backend tensorrt-rtx: {NO_TIMINGS}; leave it out, or use "
            "--backend tensorrt on a machine with a GPU"
        )
    try:
        if not path.exists():
            return b""
        if not path.is_file():
            raise InputError(f"--timing-cache {path}: not a file; name a file, there or not yet there")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as reason:
        raise InputError(f"--timing-cache {path}: can't be read: {reason.strerror}") from reason
    if len(content) > MAX_BYTES:
        raise InputError(f"--timing-cache {path}: larger than {MAX_BYTES >> 20} MiB, so not a timing cache")
    return content


def attach(config: TrtObject, content: bytes | None, log: BuildLog) -> TrtObject:
    """Let the builder use the timings in `content` and add its own; returns the cache, or None if none is kept.

    Raises:
        InputError: TensorRT refuses it.
    """
    if content is None:
        return None
    before = log.complaints  # where TensorRT refuses a cache, it warns and gives an empty one
    cache = config.create_timing_cache(content)
    refused = cache is None or (content and log.complaints > before)
    if refused or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"--timing-cache: TensorRT refuses the file ({log.last_errors() or 'no reason given'}): it is damaged, "
            "or of another version or GPU; delete it, or name another"
        )
    return cache
