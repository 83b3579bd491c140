"""Who is timed, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.methods.itae.options import ItaeConfig
from runtime.contract.errors import UsageError

Device = Literal["cpu", "cuda"]

WEIGHTS = "random:0"
"""Speed doesn't depend on them, and no network is needed."""
PLAIN = "transformers"
"""The graph of transformers' DINOv2, exported by torch.onnx as its documentation says."""
OURS: dict[str, ItaeConfig | None] = {
    "itae-last": ItaeConfig(),
    "itae-mask-all": ItaeConfig("all", attenuate="mask"),
    "itae-min-all": ItaeConfig("all"),
    "itae-mean-all": ItaeConfig("all", attenuate="mean"),
    "itae-scale-all": ItaeConfig("all", attenuate="scale:0.1"),
    "plain-cls": None,
}
"""Our graphs: ITAE's options of each."""


@dataclass(frozen=True)
class Contestant:
    """One model on one engine."""

    name: str
    label: str
    """For tables and plots."""
    engine: str
    """A key of `runners.RUNNERS`."""
    graph: str | None = None
    """The file that it runs, a key of `OURS` or `PLAIN`; None for PyTorch."""
    device: Device = "cpu"
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """The precision that it computes in."""
    by_name_only: bool = False
    """Whether it takes part only where `--contestants` names it."""

    @property
    def ours(self) -> bool:
        """Whether it runs a graph that this project made."""
        return self.graph in OURS

    @property
    def file(self) -> str:
        """The name of the file that it runs; two contestants with one file share it."""
        suffix = ".engine" if self.engine == "tensorrt" else ".onnx"
        rounded = self.ours and self.precision != "fp32"  # transformers' export is float32 whatever computes it
        return f"{self.graph}{f'-{self.precision}' if rounded else ''}{suffix}"


CONTESTANTS = (
    Contestant("itae-last", "ITAE, last layer · ONNX Runtime", "ours", "itae-last"),
    Contestant("itae-mask-all", "ITAE, mask in all layers · ONNX Runtime", "ours", "itae-mask-all"),
    Contestant("plain-cls", "plain, CLS only · ONNX Runtime", "ours", "plain-cls"),
    *(
        Contestant(f"itae-{how}-all", f"ITAE, {how} in all layers · ONNX Runtime", "ours", f"itae-{how}-all",
                   by_name_only=True)
        for how in ("min", "mean", "scale")
    ),
    Contestant("openvino-itae-last", "ITAE, last layer · OpenVINO", "openvino", "itae-last"),
    Contestant("openvino-transformers", "transformers · OpenVINO", "openvino", PLAIN),
    Contestant("openvino-itae-last-bf16", "ITAE, last layer · OpenVINO bf16", "openvino", "itae-last",
               precision="bf16", by_name_only=True),
    Contestant("openvino-transformers-bf16", "transformers · OpenVINO bf16", "openvino", PLAIN,
               precision="bf16", by_name_only=True),
    Contestant("torch-eager", "transformers · PyTorch eager", "torch"),
    Contestant("torch-compile", "transformers · torch.compile", "torch-compile"),
    Contestant("transformers", "transformers · ONNX Runtime", "onnxruntime", PLAIN),
    Contestant("itae-last-trt", "ITAE, last layer · TensorRT fp16", "tensorrt", "itae-last", "cuda", "fp16"),
    Contestant("itae-mask-all-trt", "ITAE, mask, all · TensorRT fp16", "tensorrt", "itae-mask-all", "cuda", "fp16"),
    Contestant("plain-cls-trt", "plain, CLS only · TensorRT fp16", "tensorrt", "plain-cls", "cuda", "fp16"),
    Contestant("itae-last-cuda", "ITAE, last · ORT CUDA fp16", "onnxruntime-cuda", "itae-last", "cuda", "fp16"),
    Contestant("itae-last-trt-bf16", "ITAE, last layer · TensorRT bf16", "tensorrt", "itae-last", "cuda", "bf16"),
    Contestant("torch-compile-fp16", "transformers · torch.compile fp16", "torch-compile", None, "cuda", "fp16"),
    Contestant("torch-fp16", "transformers · PyTorch SDPA fp16", "torch", None, "cuda", "fp16"),
    Contestant("torch-compile-bf16", "transformers · torch.compile bf16", "torch-compile", None, "cuda", "bf16"),
    Contestant("torch-bf16", "transformers · PyTorch SDPA bf16", "torch", None, "cuda", "bf16"),
)  # fmt: skip
REFERENCE: dict[Device, str] = {"cpu": "transformers", "cuda": "torch-fp16"}
"""Whose time is 1.00."""


def choose(names: Sequence[str] | None, device: Device) -> tuple[Contestant, ...]:
    """The contestants of a device, all or those named, and always its reference.

    Raises:
        UsageError: there is no contestant of that name.
    """
    known = [contestant.name for contestant in CONTESTANTS]
    for name in names or ():
        if name not in known:
            raise UsageError(f"--contestants {name}: choose from {', '.join(known)}")
    everyone = [contestant.name for contestant in CONTESTANTS if not contestant.by_name_only]
    wanted = {*(names or everyone), REFERENCE[device]}
    return tuple(one for one in CONTESTANTS if one.device == device and one.name in wanted)
