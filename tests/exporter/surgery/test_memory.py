"""PyTorch's copy of the weights is released after the trace, before ONNX Runtime makes its own copy."""

import gc
import weakref

from exporter import pipeline
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec


def test_no_weight_outlives_its_model_after_the_trace(tmp_path):
    arch = Architecture("tiny", width=32, heads=2, depth=2, swiglu=True)
    spec = ExportSpec("unused.onnx", size=arch, weights="random:0", image_size=28)
    loaded, _ = pipeline.load_and_trace(spec, tmp_path)
    alive = [weakref.ref(parameter) for parameter in loaded.model.parameters()]
    del loaded
    gc.collect()
    assert len(alive) > 30
    assert not [one for one in alive if one() is not None]
