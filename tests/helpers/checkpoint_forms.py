"""DINOv2 checkpoints in the forms in which people own them, made from a seed; the names are written out by hand.

As a script it prints the table of forms and what becomes of each: `python tests/helpers/checkpoint_forms.py`.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from exporter.models import weights
from exporter.models.architecture import Architecture
from runtime.contract.errors import WeightsError, one_line

PLAIN = Architecture("tiny", width=12, heads=3, depth=4)
REGISTERS = Architecture("tiny_reg", width=12, heads=3, depth=4, registers=4)
SWIGLU = Architecture("tiny_swiglu", width=12, heads=3, depth=2, swiglu=True)
SEED = 7
Tensors = dict[str, torch.Tensor]


def meta(arch: Architecture = PLAIN, *, seed: int = SEED, side: int | None = None) -> Tensors:
    """As Meta publishes them, with the position embedding of a grid of `side`."""
    tensors = {name: tensor.clone() for name, tensor in weights.random_tensors(arch, seed).items()}
    if side is not None:
        tensors["pos_embed"] = tensors["pos_embed"][:, : 1 + side * side].clone()
    return tensors


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def chunked(tensors: Tensors, size: int = 2) -> Tensors:
    """`block_chunks` of Meta's training: blocks.5 lies in chunk 2, as blocks.2.5."""
    return {
        re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", name): tensor
        for name, tensor in tensors.items()
    }


def dino_head(prefix: str = "dino_head.") -> Tensors:
    rng = np.random.default_rng(1)
    shapes = {
        "mlp.0.weight": (20, 12),
        "mlp.0.bias": (20,),
        "mlp.2.weight": (8, 20),
        "last_layer.weight_g": (30, 1),
        "last_layer.weight_v": (30, 8),
    }
    return {prefix + name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}


def teacher(arch: Architecture = PLAIN) -> Tensors:
    """The `teacher` of Meta's training output."""
    return under("backbone.", chunked(meta(arch))) | dino_head() | dino_head("ibot_head.")


def optimizer() -> dict:
    return {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(12)}}, "param_groups": [{"lr": 1e-3}]}


def lightning(tensors: Tensors) -> dict:
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": tensors,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "save": pathlib.PurePosixPath("/data/out")},
    }


def hugging_face(tensors: Tensors) -> Tensors:
    """Hugging Face's names for Meta's."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, put in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("cls_token", "embeddings.cls_token"),
            ("mask_token", "embeddings.mask_token"),
            ("register_tokens", "embeddings.register_tokens"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
            ("mlp.w12", "mlp.weights_in"),
            ("mlp.w3", "mlp.weights_out"),
        ):
            new = new.replace(old, put)
        new = re.sub(r"^norm\.", "layernorm.", new)
        if ".attn.qkv." in new:
            for part, one in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[new.replace(".attn.qkv.", f".attention.attention.{part}.")] = one.clone()
        else:
            renamed[new] = tensor
    return renamed


def timm(tensors: Tensors, *, split: str = "") -> Tensors:
    """timm's names: no mask token, fc1 for w12; with registers the CLS token's position is part of the CLS token."""
    out = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}
    if "register_tokens" in out:
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:].clone()
    out = {name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): tensor for name, tensor in out.items()}
    if split:
        for name in [name for name in out if ".attn.qkv." in name]:
            for part, one in zip("qkv", out.pop(name).chunk(3), strict=True):
                out[name.replace(".qkv.", f".{split.format(part)}.")] = one.clone()
    return out


def timm_positions(tensors: Tensors) -> Tensors:
    """timm's model with registers and without `no_embed_class`: each prefix token has a row of the embedding."""
    out = timm({name: tensor for name, tensor in tensors.items() if name != "register_tokens"})
    R = tensors["register_tokens"].shape[1]
    rows = 0.25 * torch.arange(1, R + 1).reshape(1, R, 1).expand(1, R, tensors["cls_token"].shape[2])
    out["reg_token"] = tensors["register_tokens"] - rows
    out["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], rows, tensors["pos_embed"][:, 1:]], dim=1)
    return out


def config(folder: Path, arch: Architecture, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "use_swiglu_ffn": arch.swiglu,
        "patch_size": 14,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))


def classifier(folder: Path, file: str) -> Path:
    """A folder of Dinov2ForImageClassification."""
    config(folder / "model", PLAIN, architectures=["Dinov2ForImageClassification"], image_size=518)
    tensors = under("dinov2.", hugging_face(meta())) | {
        "classifier.weight": torch.ones(5, 24),
        "classifier.bias": torch.ones(5),
    }
    save(tensors, folder / "model" / file)
    return folder / "model"


def sharded_bin(folder: Path) -> Path:
    config(folder, PLAIN)
    names = list(hugging_face(meta()).items())
    shards = {"pytorch_model-00001-of-00002.bin": dict(names[:9]), "pytorch_model-00002-of-00002.bin": dict(names[9:])}
    for name, tensors in shards.items():
        save(tensors, folder / name)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save(held: object, path: Path, **options: object) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(held, path)
    else:
        torch.save(held, path, **options)
    return path


def relative_chunks(tensors: Tensors) -> Tensors:
    return {
        re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{int(m[1]) % 2}.", name): tensor
        for name, tensor in tensors.items()
    }


class Config:
    """A class of the program that made the checkpoint."""

    def __init__(self) -> None:
        self.lr = 0.1


class AttributeDict(dict):
    """A dictionary of a class of its own, as Lightning keeps its hyperparameters."""


class Mode(str):
    """Made by a call of its class, as an Enum is."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Mode, (str(self),)


def namespace() -> argparse.Namespace:
    """What training programs keep of their command line and their state."""
    return argparse.Namespace(
        lr=0.1,
        out=pathlib.PurePosixPath("/data"),
        seen=collections.defaultdict(list, {"a": [1]}),
        last=collections.deque([1.0, 2.0], maxlen=2),
        more=types.SimpleNamespace(a=1),
        best=np.float64(0.5),
        hparams=AttributeDict(lr=0.1),
    )


def whole_module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2))


def torchscript(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what lies around
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    return path


Make = Callable[[Path], Path]
"""Makes the checkpoint in a folder and gives its path."""
TAKEN: dict[str, tuple[Architecture, Make]] = {
    "Meta, as published": (PLAIN, lambda f: save(meta(), f / "a.pth")),
    "Meta, registers": (REGISTERS, lambda f: save(meta(REGISTERS), f / "a.pth")),
    "Meta, SwiGLU": (SWIGLU, lambda f: save(meta(SWIGLU), f / "a.pth")),
    "Meta, teacher_checkpoint.pth": (PLAIN, lambda f: save({"teacher": teacher()}, f / "teacher_checkpoint.pth")),
    "Meta, teacher_checkpoint.pth, SwiGLU": (SWIGLU, lambda f: save({"teacher": teacher(SWIGLU)}, f / "a.pth")),
    "Meta, teacher_checkpoint.pth, registers": (
        REGISTERS,
        lambda f: save({"teacher": teacher(REGISTERS)}, f / "a.pth"),
    ),
    "Meta, model_final.rank_0.pth": (
        PLAIN,
        lambda f: save(
            {
                "model": under("student.", under("backbone.", chunked(meta(seed=8))) | dino_head())
                | under("teacher.", teacher())
                | {"dino_loss.center": torch.ones(1, 30), "ibot_patch_loss.center": torch.ones(1, 1, 30)},
                "optimizer": optimizer(),
                "iteration": 12,
            },
            f / "model_final.rank_0.pth",
        ),
    ),
    "one chunk": (PLAIN, lambda f: save(chunked(meta(), 9), f / "a.pth")),
    "teacher and student as entries, DDP": (
        PLAIN,
        lambda f: save(
            {
                "student": under("module.backbone.", meta(seed=8)) | dino_head("module.head."),
                "teacher": under("backbone.", meta()) | dino_head("head."),
                "optimizer": optimizer(),
                "epoch": 100,
                "args": namespace(),
            },
            f / "checkpoint.pth",
        ),
    ),
    "module.": (PLAIN, lambda f: save(under("module.", meta()), f / "a.pth")),
    "model.": (PLAIN, lambda f: save(under("model.", meta()), f / "a.pth")),
    "module.model.backbone.": (PLAIN, lambda f: save(under("module.model.backbone.", meta()), f / "a.pth")),
    "_orig_mod. (torch.compile)": (PLAIN, lambda f: save(under("_orig_mod.", meta()), f / "a.pth")),
    "FSDP and activation checkpoints": (
        PLAIN,
        lambda f: save(
            {
                "_fsdp_wrapped_module." + re.sub(r"(blocks\.\d+\.)", r"\1_checkpoint_wrapped_module.", name): tensor
                for name, tensor in meta().items()
            },
            f / "a.pth",
        ),
    ),
    "model. in safetensors": (PLAIN, lambda f: save(under("model.", meta()), f / "a.safetensors")),
    "Lightning, model.": (PLAIN, lambda f: save(lightning(under("model.", meta())), f / "last.ckpt")),
    "Lightning, teacher and student": (
        PLAIN,
        lambda f: save(
            lightning(under("student.backbone.", meta(seed=8)) | under("teacher.backbone.", meta())), f / "last.ckpt"
        ),
    ),
    "Lightning, Hugging Face inside": (
        PLAIN,
        lambda f: save(lightning(under("net.dinov2.", hugging_face(meta())) | dino_head("net.head.")), f / "a.ckpt"),
    ),
    "model and epoch": (PLAIN, lambda f: save({"model": meta(), "epoch": 3}, f / "a.pth")),
    "model and model_ema (timm's training)": (
        PLAIN,
        lambda f: save({"state_dict": meta(seed=8), "state_dict_ema": meta(), "args": namespace()}, f / "a.pth.tar"),
    ),
    "argparse Namespace": (PLAIN, lambda f: save({"model": meta(), "args": namespace()}, f / "a.pth")),
    "argparse Namespace, PyTorch before 1.6": (
        PLAIN,
        lambda f: save({"model": meta(), "args": namespace()}, f / "a.pth", _use_new_zipfile_serialization=False),
    ),
    "an object of the training program": (PLAIN, lambda f: save({"model": meta(), "config": Config()}, f / "a.pth")),
    "classifier beside it": (
        PLAIN,
        lambda f: save(under("backbone.", meta()) | {"linear_head.weight": torch.ones(3, 24)}, f / "dinov2_lc.pth"),
    ),
    "head at the same level": (PLAIN, lambda f: save(meta() | {"head.weight": torch.ones(3, 12)}, f / "a.pth")),
    "grid of 16 (224 px)": (PLAIN, lambda f: save(meta(side=16), f / "a.pth")),
    "grid of 16, Hugging Face": (PLAIN, lambda f: save(hugging_face(meta(side=16)), f / "a.safetensors")),
    "grid of 1": (PLAIN, lambda f: save(meta(side=1), f / "a.pth")),
    "timm": (PLAIN, lambda f: save(timm(meta()), f / "model.safetensors")),
    "timm, classifier": (PLAIN, lambda f: save(timm(meta()) | {"head.weight": torch.ones(3, 12)}, f / "a.pth")),
    "timm, registers": (REGISTERS, lambda f: save(timm(meta(REGISTERS)), f / "a.pth")),
    "timm, registers with positions": (REGISTERS, lambda f: save(timm_positions(meta(REGISTERS)), f / "a.pth")),
    "timm, registers with positions, grid of 16": (
        REGISTERS,
        lambda f: save(timm_positions(meta(REGISTERS, side=16)), f / "a.pth"),
    ),
    "timm, SwiGLU": (SWIGLU, lambda f: save(timm(meta(SWIGLU)), f / "a.pth")),
    "timm, q_proj k_proj v_proj": (PLAIN, lambda f: save(timm(meta(), split="{}_proj"), f / "a.pth")),
    "timm, q k v": (PLAIN, lambda f: save(timm(meta(), split="{}"), f / "a.pth")),
    "Hugging Face, pytorch_model.bin": (
        PLAIN,
        lambda f: (config(f, PLAIN), save(hugging_face(meta()), f / "pytorch_model.bin"), f)[-1],
    ),
    "Hugging Face, pytorch_model.bin in shards": (PLAIN, sharded_bin),
    "Hugging Face, SwiGLU": (SWIGLU, lambda f: save(hugging_face(meta(SWIGLU)), f / "a.bin")),
    "Dinov2ForImageClassification": (PLAIN, lambda f: classifier(f, "model.safetensors")),
    "Dinov2ForImageClassification, .bin": (PLAIN, lambda f: classifier(f, "pytorch_model.bin")),
    "Dinov2WithRegistersForImageClassification": (
        REGISTERS,
        lambda f: save(
            under("dinov2_with_registers.", hugging_face(meta(REGISTERS))) | {"classifier.bias": torch.ones(5)},
            f / "a.bin",
        ),
    ),
    "transformers' modules, torch.save(model.state_dict())": (
        SWIGLU,
        lambda f: save(weights.load(SWIGLU, f"random:{SEED}").model.state_dict(), f / "a.pt"),
    ),
    ".PTH": (PLAIN, lambda f: save(meta(), f / "A.PTH")),
    "no suffix": (PLAIN, lambda f: save(meta(), f / "checkpoint")),
    "safetensors called .bin": (PLAIN, lambda f: (save(meta(), f / "a.safetensors")).rename(f / "a.bin")),
    "a folder with one .pth": (PLAIN, lambda f: save({"teacher": teacher()}, f / "teacher_checkpoint.pth").parent),
    "two names of the same tensors": (
        PLAIN,
        lambda f: save((lambda t: {"model": under("a.", t) | under("b.", t)})(meta()), f / "a.pth"),
    ),
}
REFUSED: dict[str, tuple[Architecture, Make, str]] = {
    "a tensor is missing": (
        PLAIN,
        lambda f: save({"teacher": {n: t for n, t in teacher().items() if n != "backbone.norm.bias"}}, f / "a.pth"),
        "teacher.backbone.norm.bias is missing",
    ),
    "a tensor is misshapen": (
        PLAIN,
        lambda f: save(under("module.", meta() | {"norm.bias": torch.ones(13)}), f / "a.pth"),
        "module.norm.bias is 13, expected 12",
    ),
    "a block is missing": (
        PLAIN,
        lambda f: save({n: t for n, t in chunked(meta()).items() if not n.startswith("blocks.1.3.")}, f / "a.pth"),
        "blocks.3.attn.qkv.weight is missing",
    ),
    "k of a split qkv is missing": (
        PLAIN,
        lambda f: save({n: t for n, t in timm(meta(), split="{}").items() if ".2.attn.k.w" not in n}, f / "a.pth"),
        "encoder.layer.2.attention.k_proj.weight",
    ),
    "a stranger inside the backbone": (
        PLAIN,
        lambda f: save(meta() | {"blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 12)}, f / "a.pth"),
        "blocks.0.attn.qkv.lora_A.weight is not part of it",
    ),
    "a stranger beside it": (
        PLAIN,
        lambda f: save(meta() | {"prompt_tokens": torch.ones(1, 5, 12)}, f / "a.pth"),
        "prompt_tokens is not part of it",
    ),
    "numbers of their own in chunks": (
        PLAIN,
        lambda f: save(relative_chunks(meta()), f / "a.pth"),
        "are the same parameter",
    ),
    "position embedding of no square": (
        PLAIN,
        lambda f: save(meta() | {"pos_embed": torch.ones(1, 200, 12)}, f / "a.pth"),
        "pos_embed is 1×200×12, expected 1×(1 + a square grid)×12",
    ),
    "two backbones": (
        PLAIN,
        lambda f: save(under("left.", meta()) | under("right.", meta(seed=8)), f / "a.pth"),
        "holds several backbones (left, right)",
    ),
    "no DINOv2": (
        PLAIN,
        lambda f: save({"conv1.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)}, f / "a.pth"),
        "it has conv1.weight, fc.bias",
    ),
    "patches of 16": (
        PLAIN,
        lambda f: save(meta() | {"patch_embed.proj.weight": torch.ones(12, 3, 16, 16)}, f / "a.pth"),
        "patch_embed.proj.weight is 12×3×16×16, expected 12×3×14×14",
    ),
    "an entry that calls a class": (
        PLAIN,
        lambda f: save({"model": meta(), "args": {"mode": Mode("a")}}, f / "a.pth"),
        "its entry args.mode needs ",
    ),
    "a whole pickled module": (PLAIN, lambda f: save(whole_module(), f / "a.pth"), "model.state_dict()"),
    "TorchScript": (
        PLAIN,
        lambda f: torchscript(f / "a.pt"),
        "is a TorchScript program",
    ),
    "an object in a tensor's place": (
        PLAIN,
        lambda f: save({"model": meta() | {"norm.bias": Config()}}, f / "a.pth"),
        "model.norm.bias is no tensor but ",
    ),
    "a piece of a sharded model": (
        PLAIN,
        lambda f: save({"model": {"_fsdp_wrapped_module._flat_param": torch.ones(99)}}, f / "model_0001.rank_0.pth"),
        "one process's piece of a sharded model",
    ),
    "a checkpoint in pieces": (
        PLAIN,
        lambda f: ((f / "__0_0.distcp").write_bytes(b"x"), (f / ".metadata").write_bytes(b"x"), f)[-1],
        "dcp_to_torch",
    ),
    "a pointer of Git LFS": (
        PLAIN,
        lambda f: (p := f / "model.safetensors", p.write_text("version https://git-lfs.github.com/spec/v1\noid"))[0],
        "git lfs pull",
    ),
    "a web page": (PLAIN, lambda f: (p := f / "a.pth", p.write_text("<!DOCTYPE html><html>"))[0], "is a web page"),
    "a folder of several": (
        PLAIN,
        lambda f: (save(meta(), f / "a.pth"), save(meta(), f / "b.pth"), f)[-1],
        "holds 2 checkpoints (a.pth, b.pth): give one",
    ),
}


def table() -> None:
    """Print every form with its verdict."""
    for form, (arch, make, *_) in {**TAKEN, **REFUSED}.items():
        with tempfile.TemporaryDirectory() as folder:
            given = make(Path(folder))
            try:
                loaded = weights.load(arch, str(given))
                verdict = "; ".join(["taken", *loaded.notes])
            except WeightsError as error:
                verdict = f"refused: {one_line(error)}"
            sys.stdout.write(f"| {form} | {verdict.replace(folder + '/', '').replace(folder, 'FOLDER')} |\n")


if __name__ == "__main__":
    table()
