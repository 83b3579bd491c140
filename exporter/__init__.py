"""DINOv2 with ITAE as a TensorRT engine or an ONNX file, proven against eager PyTorch.

from exporter import ExportSpec, export
result = export(ExportSpec("itae.onnx", size="vits14", weights="random:0"))
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING


def _check_runtime() -> None:
    """Check that `runtime` is ours, before anything of it is imported, without running what is there instead.

    Raises:
        ImportError: it is another: a user's own file of that name is found first.
        SystemExit: the same, where this package is run as a command.
    """
    found = importlib.util.find_spec("runtime")
    place = None if found is None or found.origin is None else Path(found.origin)
    if place is not None and place.resolve().parent == Path(__file__).resolve().parents[1] / "runtime":
        return
    line = (
        f"the package `runtime` beside this one is needed, and {place or 'nothing'} is found in its place: rename that "
        "file or folder, or call `itae-export`, which does not look into the current folder"
    )
    if Path((sys.argv or [""])[0]).name in ("-m", "itae-export"):  # "-m" while Python looks for `python -m exporter`
        print(f"exporter: {line}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    raise ImportError(line)


_check_runtime()

from exporter.methods.itae.options import ItaeConfig  # noqa: E402
from exporter.options import ExportSpec  # noqa: E402
from exporter.result import ExportResult  # noqa: E402
from runtime.contract.errors import UsageError  # noqa: E402

if TYPE_CHECKING:
    from exporter.steps import Progress

__all__ = ["ExportResult", "ExportSpec", "ItaeConfig", "export"]


def export(spec: ExportSpec, progress: Progress | None = None) -> ExportResult:
    """Export a model as `python -m exporter` does.

    Args:
        spec: the options of the export.
        progress: shows the steps; None shows nothing.

    Raises:
        ItaeError: one of the kinds of `runtime.contract.errors`.
    """
    from runtime.contract.machine import require_supported_platform

    require_supported_platform()
    if not isinstance(spec, ExportSpec):
        raise UsageError(f"export takes an ExportSpec, not {type(spec).__name__}")
    from exporter.steps import Progress as Shown

    if progress is not None and not isinstance(progress, Shown):
        raise UsageError(f"progress must be an exporter.steps.Progress or None, not {type(progress).__name__}")
    from exporter import pipeline  # torch takes seconds to import: not for --help

    return pipeline.export(spec, progress or Shown(quiet=True))
