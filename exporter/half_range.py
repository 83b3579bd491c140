"""What float16 can't hold, seen while the eager model runs.

ONNX Runtime's CPU has no float16 kernels: it computes neighbouring nodes in float32 without rounding between them, so
that a number beyond 65,504, an infinity on a GPU, passes its parity check unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from runtime.errors import WeightsError

FLOAT16_MAX = 65504.0
INTO_RESIDUAL = ("o_proj", "fc2", "down_proj")
"""Their biases are added in float32; see surgery/half_precision.py."""

Magnitudes = dict[str, float]
"""By what a layer reads or gives, such as `encoder.layer.0.mlp.fc2 reads`."""


@contextlib.contextmanager
def watch(model: torch.nn.Module) -> Iterator[Magnitudes]:
    """Collect the largest magnitude that each projection of a DINOv2 reads and gives, as long as the block runs."""
    seen: Magnitudes = {}

    def note(what: str, tensor: torch.Tensor) -> None:
        seen[what] = max(seen.get(what, 0.0), float(tensor.abs().max()))

    def watch_one(name: str, module: torch.nn.Linear | torch.nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            note(f"{name} reads", inputs[0])
            bias = module.bias if name.endswith(INTO_RESIDUAL) else None
            note(f"{name} gives", output if bias is None else output - bias)

        return module.register_forward_hook(hook)

    handles = [
        watch_one(name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def check_float16(seen: Magnitudes) -> None:
    """Refuse what float16 would turn into infinities.

    Raises:
        WeightsError: a projection reads or gives more than 65,504.
    """
    for what, magnitude in seen.items():
        if not magnitude <= FLOAT16_MAX:
            raise WeightsError(
                f"with these weights {what} {magnitude:.3g}, more than float16 can hold: "
                "use --precision bf16, whose range is float32's, or fp32"
            )
