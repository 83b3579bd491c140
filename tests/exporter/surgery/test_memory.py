"""PyTorch's copy of the weights is released after the trace, before ONNX Runtime makes its own copy."""

import gc
import weakref

from exporter import trace
from exporter.models import position, weights
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec


def test_no_weight_outlives_its_model_after_the_trace(tmp_path):
    arch = Architecture("tiny", width=32, heads=2, depth=2, swiglu=True)
    spec = ExportSpec("unused.onnx", size=arch, image_size=28)
    loaded = weights.load(arch, "random:0")
    position.bake_position_embedding(loaded.model, spec.grid, spec.pos_embed)
    alive = [weakref.ref(parameter) for parameter in loaded.model.parameters()]
    trace.to_onnx(loaded.model, spec, tmp_path)
    del loaded
    gc.collect()
    assert len(alive) > 30
    assert not [one for one in alive if one() is not None]
