"""How pictures become a model's input, as the exporter's manifests say it."""

from __future__ import annotations

from exporter import ExportSpec
from runtime.contract.manifest import Preprocessing


def standard_preprocessing(
    image_size: tuple[int, int], dtype: str, fit: str = "crop", resize_filter: str = "bicubic"
) -> Preprocessing:
    made = ExportSpec("unused.onnx", image_size=image_size, input=dtype, fit=fit).preprocessing()
    return made.model_copy(update={"resize_filter": resize_filter})
