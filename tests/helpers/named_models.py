"""Small seeded models of transformers, saved as their users have them: a task's checkpoint, not the bare model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16, "image_size": 64,
    "intermediate_size": 64,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 9,
}
_BIAS = {"use_relative_position_bias": True}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**SIZES)),
    "deit": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**SIZES)),
    "beit": (hf.BeitForImageClassification, hf.BeitConfig(**SIZES, **_BIAS)),
    "data2vec": (hf.Data2VecVisionForImageClassification, hf.Data2VecVisionConfig(**SIZES, **_BIAS)),
    "clip": (hf.CLIPModel, hf.CLIPConfig(text_config=TEXT, vision_config=SIZES)),
    "siglip": (hf.SiglipModel, hf.SiglipConfig(text_config=TEXT, vision_config=SIZES)),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**SIZES, mlp_ratio=2)),
    "registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4)),
    "ijepa": (hf.IJepaModel, hf.IJepaConfig(**SIZES)),
}
"""By name: the class that is saved, and its configuration; the architectures are those of the published models."""
WHOLE: dict[str, tuple[Any, Any]] = {
    "blip": (hf.BlipModel, hf.BlipConfig(text_config={**TEXT, "encoder_hidden_size": 32}, vision_config=SIZES)),
    "git": (hf.GitModel, hf.GitConfig(**TEXT, vision_config=SIZES)),
    "aimv2": (hf.Aimv2Model, hf.Aimv2Config(text_config=TEXT, vision_config=SIZES)),
    "owlvit": (hf.OwlViTModel, hf.OwlViTConfig(text_config=TEXT, vision_config=SIZES)),
}
"""Models whose tower that sees pictures has a class of its own, or lies under a prefix in their checkpoints."""
CLASSIFIER = {"do_resize": True, "size": 64, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
"""The preprocessor_config.json of Google's ViT, but for its numbers."""


def save(folder: Path, family: str, processor: dict[str, Any] | None = None) -> Any:
    """Save a model whose weights are no defaults into `folder`; gives the part that sees pictures, in eval mode."""
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config).eval()
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.15)
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if hasattr(model, "vision_model"):
        return model.vision_model
    return model if kind.__name__.endswith("Model") else getattr(model, model.base_model_prefix)
