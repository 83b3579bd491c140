"""DINOv2 with ITAE as a TensorRT engine or an ONNX file, proven against eager PyTorch.

from exporter import ExportSpec, export
result = export(ExportSpec("itae.onnx", size="vits14", weights="random:0"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.itae import ItaeConfig
from exporter.result import ExportResult
from exporter.spec import ExportSpec

if TYPE_CHECKING:
    from exporter.progress import Progress

__all__ = ["ExportResult", "ExportSpec", "ItaeConfig", "export"]


def export(spec: ExportSpec, progress: Progress | None = None) -> ExportResult:
    """Export a model as `python -m exporter` does.

    Args:
        spec: what to export.
        progress: tells what is going on; None: silence.

    Raises:
        ItaeError: one of the kinds of `runtime.errors`.
    """
    from exporter import pipeline  # torch takes seconds to import: not for --help
    from exporter.progress import Progress as Silence

    return pipeline.export(spec, progress or Silence(quiet=True))
