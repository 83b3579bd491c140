"""DINOv2 with ITAE as a TensorRT engine or an ONNX file, proven against eager PyTorch.

from exporter import ExportSpec, export
result = export(ExportSpec("itae.onnx", size="vits14", weights="random:0"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec
from exporter.result import ExportResult
from runtime.contract.errors import UsageError

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
    from exporter import pipeline  # torch takes seconds to import: not for --help
    from exporter.steps import Progress as Silence

    return pipeline.export(spec, progress or Silence(quiet=True))
