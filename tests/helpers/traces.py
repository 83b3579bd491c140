"""Traces of models that several tests export: torch's tracing is four fifths of the time to export a small model."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def traced_once(kept: Path) -> Iterator[None]:
    """Keep what torch makes of a model in `kept`, and use it again for a model of the same weights, bit by bit."""
    from exporter import trace
    from exporter.graph_facts import GraphFacts

    real = trace.to_onnx

    def to_onnx(model: Any, facts: GraphFacts, folder: Path) -> Path:
        place = kept / _identity(model, facts)
        if not place.exists():
            work = Path(tempfile.mkdtemp(dir=kept))
            real(model, facts, work)
            with contextlib.suppress(OSError):  # another process was quicker
                work.rename(place)
        model.set_attn_implementation(trace.ATTENTION)  # as the real one does
        for file in place.iterdir():
            shutil.copy(file, folder)
        return folder / "traced.onnx"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "to_onnx", to_onnx)
        yield


def _identity(model: Any, facts: Any) -> str:
    """A hash of everything that a trace depends on."""
    found = hashlib.sha256(repr((type(model), model.training, facts, model.config.to_dict())).encode())
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()
