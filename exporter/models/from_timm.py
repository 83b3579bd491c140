"""`timm:NAME`: a vision model of timm, with its own weights, those of a file, or seeded ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from exporter.image_processor import Pictures, supported
from exporter.models.backbone import MAX_NAMED
from exporter.models.hub import CANT_REACH
from exporter.models.named_model import Embedder, NamedModel, Result, check_attention, read_weights
from exporter.models.weights import draw, hash_parameters, seed_of
from runtime.contract.errors import BackendError, UsageError, WeightsError, one_line
from runtime.contract.manifest import Weights

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_HEADS = ("head", "fc", "classifier", "head_dist")
"""Modules behind the backbone: a checkpoint may have them, and the model has not."""


def load(name: str, weights: str, image_size: tuple[int, int] | None) -> NamedModel:
    """Load `timm:NAME`.

    Args:
        name: `timm:NAME` or `timm:NAME.TAG`.
        weights: `auto`, `random[:SEED]`, or a file.
        image_size: H, W in pixels; None: as the model was trained.

    Raises:
        BackendError: timm is not installed.
        UsageError: timm has no such model, or it does not take pictures of this size.
        WeightsError: they can't be had, or are not this model's.
    """
    timm = _library()
    short = name.removeprefix("timm:")
    if not _NAME.fullmatch(short):
        raise UsageError(f"{name}: must be timm:NAME or timm:NAME.TAG, as timm.list_models() has them")
    seed = seed_of(weights, weights.partition(":")[2]) if weights.split(":")[0] == "random" else None
    timm.layers.set_fused_attn(enable=False)  # its own products and softmax, which builders fuse again
    entries = read_weights(weights) if seed is None and weights != "auto" else {}
    model = _made(timm, name, is_filled=weights == "auto")
    check_attention(model, name)
    came_from: Literal["hub", "path", "random"] = "hub"
    source = name
    if seed is not None:
        came_from, source = "random", f"random:{seed}"
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(draw(seed, key, tuple(parameter.shape)))
    config: Mapping[str, Any] = model.pretrained_cfg
    trained = tuple(map(int, config["input_size"][1:]))
    size = image_size or (trained[0], trained[1])
    if entries:
        came_from, source = "path", weights
        tensors = _tensors(entries)
        if size != trained and tensors.keys() & {"pos_embed"} and _is_resized(model, tensors["pos_embed"]):
            _resize(model, size, name)  # the checkpoint is of this size already
            trained = size
        _fill(model, tensors, source)
    if size != trained:
        _resize(model, size, name)
    model = model.float().eval().requires_grad_(False)
    parameters = {key: value.detach() for key, value in model.state_dict().items()}
    origin = Weights(kind=came_from, source=source, revision=None, sha256=hash_parameters(parameters))
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = int(patch[0]) if isinstance(patch, tuple) and len(patch) == 2 and patch[0] == patch[1] else None

    def run(pixel_values: torch.Tensor) -> Result:
        tokens = model.forward_features(pixel_values)
        return tokens, model.forward_head(tokens, pre_logits=True)

    return NamedModel(
        name, f"timm {timm.__version__}", Embedder(model, run), size, side, _pictures(config, size), origin
    )  # fmt: skip


def _library() -> Any:  # noqa: ANN401  # timm ships no types
    try:
        import timm
        import timm.layers
    except (ImportError, RuntimeError, AttributeError) as error:  # the last two: torchvision beside another torch
        raise BackendError(
            f"--model timm:NAME needs timm and torchvision ({one_line(error)}): pip install 'itae[timm]'"
        ) from error
    return timm


def _made(timm: Any, name: str, *, is_filled: bool) -> Any:  # noqa: ANN401
    """The model without its classifier.

    Raises:
        UsageError: timm has no such model.
        WeightsError: its weights can't be had.
    """
    short = name.removeprefix("timm:")
    if not timm.is_model(short.partition(".")[0]):
        near = timm.list_models(f"*{short.partition('.')[0][:12]}*")[:3]
        raise UsageError(f"{name}: timm {timm.__version__} has no such model{f'; it has {near}' if near else ''}")
    try:
        return timm.create_model(short, pretrained=is_filled, num_classes=0)
    except Exception as error:  # the hub's, the HTTP library's, torch's
        if not is_filled or "Invalid pretrained tag" in str(error):
            raise UsageError(f"{name}: timm can't make it: {one_line(error)}") from error
        raise WeightsError(
            f"{name}: {CANT_REACH}, or it has no weights of it ({one_line(error)}): check the network and the name, or "
            "give --weights a file or random:SEED"
        ) from error


def _tensors(entries: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by their names in the model."""
    tensors = {name: value.float() for name, value in entries.items() if isinstance(value, torch.Tensor)}
    for prefix in ("state_dict_ema.", "model_ema.", "state_dict.", "model.", "module."):
        if inside := {key[len(prefix) :]: one for key, one in tensors.items() if key.startswith(prefix)}:
            tensors = inside
    return tensors


def _is_resized(model: Any, position: torch.Tensor) -> bool:  # noqa: ANN401
    own = getattr(model, "pos_embed", None)
    return isinstance(own, torch.Tensor) and own.shape != position.shape


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], source: str) -> None:  # noqa: ANN401
    """Fill the model with a checkpoint.

    Raises:
        WeightsError: a tensor is missing, superfluous, of another shape, or not finite.
    """
    expected = model.state_dict()
    extra = [name for name in tensors if name not in expected and name.split(".")[0] not in _HEADS]
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not part of it" for name in extra]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, expected {list(one.shape)}"
        for name, one in expected.items()
        if name in tensors and tensors[name].shape != one.shape
    ]
    wrong += [
        f"{name} holds NaN or infinity" for name in expected if name in tensors and not tensors[name].isfinite().all()
    ]
    if wrong:
        more = f" (and {len(wrong) - MAX_NAMED} more)" if len(wrong) > MAX_NAMED else ""
        kind = model.pretrained_cfg.get("architecture")
        hint = ""
        if [one.split(" is ")[0] for one in wrong] == ["pos_embed"]:
            hint = ": was it trained at another size? Give that --image-size"
        raise WeightsError(f"{source} is not a checkpoint of timm's {kind}: {'; '.join(wrong[:MAX_NAMED])}{more}{hint}")
    model.load_state_dict({name: tensors[name] for name in expected})


def _resize(model: Any, size: tuple[int, int], name: str) -> None:  # noqa: ANN401
    """Make the model take pictures of H, W: timm resizes its position embedding.

    Raises:
        UsageError: it does not.
    """
    if not hasattr(model, "set_input_size"):
        return  # a run says whether it takes them
    try:
        with torch.no_grad():
            model.set_input_size(img_size=size)
    except Exception as error:  # whatever timm's own checks raise
        raise UsageError(f"{name} does not take pictures of {size[0]}x{size[1]}: {one_line(error)}") from error


def _pictures(config: Mapping[str, Any], size: tuple[int, int]) -> Pictures:
    """How timm makes pictures of H, W, as `timm.data.create_transform` does for evaluation."""
    share = float(config.get("crop_pct") or 0.875)
    red_green_blue = (tuple(map(float, config[key])) for key in ("mean", "std"))
    mean, std = red_green_blue
    mode = config.get("crop_mode") or "center"
    by, notes = supported(config["interpolation"], "timm")
    if mode == "squash" and share == 1:
        return Pictures(mean, std, "squash", None, by, notes)  # type: ignore[arg-type]  # three numbers
    if mode != "center":
        notes += (f"timm cuts pictures by its mode {mode!r}; here the centre is cut out",)
    cover = (math.floor(size[0] / share), math.floor(size[1] / share))
    return Pictures(mean, std, "crop", cover, by, notes)  # type: ignore[arg-type]
