"""A watch on the eager model's run for numbers that float16 can't hold.

ONNX Runtime's CPU has no float16 kernels: it computes neighbouring nodes in float32 without rounding between them. So
a number beyond 65,504, which is infinite on a GPU, passes its parity check unnoticed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from runtime.contract.errors import WeightsError

FLOAT16_MAX = 65504.0
INTO_RESIDUAL = ("o_proj", "fc2", "down_proj")
"""Their biases are added in float32; see surgery/half_precision.py."""

Magnitudes = dict[str, float]
"""By what a layer reads or gives, such as `encoder.layer.0.mlp.fc2 reads`; NaN where one was NaN."""


@contextlib.contextmanager
def watch(model: Any) -> Iterator[Magnitudes]:  # noqa: ANN401  # transformers' class has no useful type
    """Collect the largest magnitude of what each projection of a DINOv2 reads and gives, and of attention's logits.

    As long as the block runs.
    """
    seen: Magnitudes = {}
    halves: dict[str, dict[str, torch.Tensor]] = {}
    heads = int(model.config.num_attention_heads)

    def note(what: str, tensor: torch.Tensor) -> None:
        largest, before = float(tensor.abs().max()), seen.get(what, 0.0)
        if not (math.isnan(before) or largest <= before):
            seen[what] = largest

    def note_logits(name: str, projected: torch.Tensor) -> None:
        """Note the logits of an attention once its query and its key, (B, N, C) each, have both been seen."""
        attention, _, part = name.rpartition(".")
        waiting = halves.setdefault(attention, {})
        waiting[part] = projected
        if len(waiting) == 2:
            by_token = [waiting[part].reshape(*projected.shape[:2], heads, -1) for part in ("q_proj", "k_proj")]
            q, k = (one.transpose(1, 2) for one in by_token)  # (B, H, N, d)
            note(f"{attention}'s logits reach", q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]))
            del halves[attention]

    def watch_one(name: str, module: torch.nn.Linear | torch.nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            note(f"{name} reads", inputs[0])
            bias = module.bias if name.endswith(INTO_RESIDUAL) else None
            note(f"{name} gives", output if bias is None else output - bias)
            if name.endswith(("q_proj", "k_proj")):
                note_logits(name, output)

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
        WeightsError: a projection reads or gives more than 65,504, or a logit is more.
    """
    for what, magnitude in seen.items():
        if not magnitude <= FLOAT16_MAX:
            raise WeightsError(
                f"with these weights {what} {magnitude:.3g}, more than float16 can hold: "
                "use --precision bf16, whose range is float32's, or fp32"
            )
