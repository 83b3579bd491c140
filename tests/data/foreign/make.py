"""Makes the small ONNX files beside it: real exports of libraries that do not install beside this project's torch.

    pip install --no-deps timm==1.0.31 open_clip_torch==3.3.0 vit-pytorch==1.26.11 einops ftfy wcwidth onnxslim==0.1.98
    python tests/data/foreign/make.py

torchvision is replaced by a stand-in, since it does not import beside a torch without it; no model uses it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

FOLDER = Path(__file__).parent


def export(name: str, model: torch.nn.Module, how: str, *, sizes: bool = False) -> None:
    """Export by TorchScript (`ts17`) or dynamo (`dynamo20`), with a dynamic batch, or dynamic height and width too."""
    model.eval()
    seed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.1)
    images, path = torch.zeros(2, 3, 32, 32), FOLDER / f"{name}-{how}.onnx"
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["out"]}
    if how.startswith("ts"):
        axes = {"image": {0: "batch", **({2: "height", 3: "width"} if sizes else {})}, "out": {0: "batch"}}
        torch.onnx.export(model, (images,), path, dynamo=False, opset_version=int(how[2:]), dynamic_axes=axes, **names)
    else:
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (images,), path, dynamo=True, opset_version=int(how[6:]), dynamic_shapes=batch, external_data=False,
            verbose=False, **names,
        )  # fmt: skip
    stored = onnx.load(path)
    for node in stored.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in stored.graph.value_info:
        del value.metadata_props[:]
    onnx.save(stored, path)


def main() -> None:
    """Make all files."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(FOLDER.parents[1] / "helpers"))
    from torchvision_stand_in import torchvision_stand_in

    with torchvision_stand_in():
        import timm.layers
        from open_clip.transformer import VisionTransformer as ClipTower
        from timm.models.vision_transformer import VisionTransformer
    import onnxslim
    from vit_pytorch import ViT
    from vit_pytorch.cct import CCT
    from vit_pytorch.simple_vit_with_register_tokens import SimpleViT

    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
    }
    for fused, name in ((True, "timm_fused"), (False, "timm_plain")):
        timm.layers.set_fused_attn(fused)
        export(name, VisionTransformer(**sizes), "ts14")
        export(name, VisionTransformer(**sizes, reg_tokens=4), "dynamo20")
    export("timm_mean", VisionTransformer(**sizes, class_token=False, global_pool="avg"), "ts17")
    timm.layers.set_fused_attn(True)
    torch.backends.mha.set_fastpath_enabled(False)
    export("open_clip", ClipTower(32, 8, 16, 2, 2, 2.0, output_dim=8), "ts17")
    of_vit: dict[str, Any] = {
        "image_size": 32, "patch_size": 8, "num_classes": 8, "dim": 16, "depth": 2, "heads": 2, "dim_head": 12,
        "mlp_dim": 32,
    }  # fmt: skip
    export("vit_pytorch", ViT(**of_vit), "ts17")
    export("vit_pytorch_registers", SimpleViT(**of_vit), "ts17")
    export("vit_pytorch_cct", CCT(
        img_size=32, embedding_dim=16, n_conv_layers=1, kernel_size=7, stride=2, padding=3, pooling_kernel_size=3,
        pooling_stride=2, pooling_padding=1, num_layers=2, num_heads=2, mlp_ratio=2.0, num_classes=8,
        positional_embedding="learnable",
    ), "ts17")  # fmt: skip
    onnxslim.slim(str(FOLDER / "timm_fused-ts14.onnx"), str(FOLDER / "timm_fused-ts14-slim.onnx"))


if __name__ == "__main__":
    main()
