"""`hf:NAME`: a vision model that transformers knows, from the hub or a folder. Code of a repository is never run.

What a folder holds is read as any other checkpoint (`exporter.models.checkpoint`); transformers gives the architecture
and the meaning of names alone.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers

from exporter.image_processor import PROCESSORS, input_size, pair_of, pictures_of, processor_in, read_object
from exporter.models import checkpoint, hub
from exporter.models.backbone import MAX_LEFT_OUT, MAX_NAMED
from exporter.models.named_model import Embedder, NamedModel, Result, check_attention, read_weights
from exporter.models.weights import draw, hash_parameters, seed_of
from runtime.contract.errors import UsageError, WeightsError, one_line
from runtime.contract.manifest import Weights


def load(name: str, weights: str, image_size: tuple[int, int] | None) -> NamedModel:
    """Load `hf:NAME`.

    Args:
        name: `hf:REPO[@REVISION]` or `hf:FOLDER`; a folder begins with a slash, a dot or a tilde.
        weights: `auto`, `random[:SEED]`, or a file or folder.
        image_size: H, W in pixels; None: as the model was trained.

    Raises:
        UsageError: the model does not take pictures, or not of this size.
        WeightsError: it can't be had, read, or is none that transformers knows.
    """
    rest = name.removeprefix("hf:")
    is_local = rest.startswith(("/", ".", "~"))
    if is_local:
        folder = _local(Path(rest).expanduser(), name)
    else:
        folder = _from_hub(rest, name, with_weights=weights == "auto")
    revision = None if is_local else folder.name
    config = _config(folder / "config.json", name)
    kind = _class_of(config, name)
    _check_kind(kind, config, name)
    seed = weights.partition(":")[2] if weights.split(":")[0] == "random" else None
    came_from: Literal["hub", "path", "random"]
    notes: tuple[str, ...] = ()
    if seed is not None:
        came_from, source = "random", f"random:{seed_of(weights, seed)}"
        revision = None
        model, has_pooler = _seeded(kind, config, seed_of(weights, seed)), True
    else:
        came_from, source = ("path" if is_local else "hub"), name
        entries = checkpoint.read_checkpoint(folder) if weights == "auto" else read_weights(weights)
        if weights != "auto":
            came_from, source, revision = "path", weights, None
        model, notes, has_pooler = _filled(kind, config, entries, source)
    trained = pair_of(getattr(config, "image_size", None))
    processor = processor_in(folder)
    size = image_size or (input_size(processor) if processor is not None else None) or trained or (224, 224)
    run = _runner(model, size, trained, has_pooler=has_pooler)
    _check_size(run, size, trained, name)
    parameters = {key: value.detach() for key, value in model.state_dict().items()}
    origin = Weights(
        kind=came_from, source=source, revision=revision, sha256=hash_parameters(parameters), notes=notes
    )  # fmt: skip
    patch = pair_of(getattr(config, "patch_size", None))
    pictures = pictures_of(processor, size, name) if processor is not None else None
    return NamedModel(
        name, f"transformers {transformers.__version__}", Embedder(model, run), size,
        patch[0] if patch and patch[0] == patch[1] else None, pictures, origin,
    )  # fmt: skip


def _local(folder: Path, name: str) -> Path:
    found = hub.snapshot(folder) or folder
    if not (found / "config.json").is_file():
        raise WeightsError(f"{name} is no folder with a config.json, as transformers saves it")
    return found


def _from_hub(reference: str, name: str, *, with_weights: bool) -> Path:
    """The folder of a repository in the hub's cache; its configuration is checked before weights are downloaded."""

    def check(path: Path) -> None:
        config = _config(path, name)
        _check_kind(_class_of(config, name), config, name)

    try:
        return hub.fetch(reference, check, PROCESSORS, option="--model", with_weights=with_weights)
    except WeightsError as error:
        if Path(reference).is_dir():
            raise UsageError(f"{name}: a folder begins with a slash, a dot or a tilde: hf:./{reference}") from error
        raise


def _config(path: Path, name: str) -> Any:  # noqa: ANN401  # transformers' configurations have no useful type
    """The configuration of the tower that sees pictures.

    Raises:
        WeightsError: transformers does not know such a model.
    """
    held = read_object(path)
    if "model_type" not in held:
        hint = ": take timm:NAME" if "architecture" in held else ""
        raise WeightsError(f"{name}: its config.json names no model_type of transformers{hint}")
    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what a configuration's own checks raise
        own = ": it needs code of its own, which is never run" if "auto_map" in held else ""
        raise WeightsError(
            f"{name}: transformers {transformers.__version__} knows no model_type {held['model_type']!r}{own}"
            if own or isinstance(error, ValueError | KeyError)
            else f"{name}: its config.json can't be used: {one_line(error)}"
        ) from error
    return getattr(config, "vision_config", config)


def _class_of(config: Any, name: str) -> Any:  # noqa: ANN401
    """The class of the bare model.

    Raises:
        UsageError: there is none, or it takes no pictures.
    """
    called = type(config).__name__
    try:
        kind: Any = transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:  # a tower that has a class of its own, as BLIP's BlipVisionModel
        kind = getattr(transformers, called.removesuffix("Config") + "Model", None)
        if kind is None:
            raise UsageError(f"{name}: transformers has no bare model of {called}") from error
    kind = kind[0] if isinstance(kind, tuple) else kind
    if getattr(kind, "main_input_name", None) != "pixel_values":
        raise UsageError(f"{name}: {kind.__name__} takes {kind.main_input_name}, not pictures")
    others = [
        one.name
        for one in inspect.signature(kind.forward).parameters.values()
        if one.default is one.empty
        and one.kind is one.POSITIONAL_OR_KEYWORD
        and one.name not in ("self", "pixel_values")
    ]
    if others:
        raise UsageError(
            f"{name}: {kind.__name__} takes {' and '.join(others)} beside pixel_values, as models for pictures of any "
            "aspect do: take one for pictures of one size"
        )
    return kind


def _check_kind(kind: Any, config: Any, name: str) -> None:  # noqa: ANN401
    """Make the model without memory for its weights, and look at its attention.

    Raises:
        WeightsError: the configuration makes no model.
        UsageError: it has no attention, or attention in windows.
    """
    try:
        with torch.device("meta"):
            model = kind._from_config(config, attn_implementation="eager", dtype=torch.float32)
    except Exception as error:  # what a model's constructor raises for a configuration that it can't have
        raise WeightsError(f"{name}: {kind.__name__} can't be made of its config.json: {one_line(error)}") from error
    window = getattr(config, "window_size", None)
    check_attention(model, name, window and getattr(config, "window_block_indices", True))


def _seeded(kind: Any, config: Any, seed: int) -> torch.nn.Module:  # noqa: ANN401
    """The model with each parameter drawn.

    Raises:
        WeightsError: it is too large.
    """
    try:
        model = cast("torch.nn.Module", kind._from_config(config, attn_implementation="eager", dtype=torch.float32))
    except (RuntimeError, MemoryError) as error:
        raise WeightsError(f"{kind.__name__} of this size does not fit into memory: {one_line(error)}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(seed, name, tuple(parameter.shape)))
    return model.eval().requires_grad_(False)


def _filled(
    kind: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    entries: Mapping[str, object],
    source: str,
) -> tuple[torch.nn.Module, tuple[str, ...], bool]:
    """The model with the weights of a checkpoint; notes; and whether what it pools with is among them.

    Raises:
        WeightsError: they are not this model's.
    """
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    tensors = _of_tower(tensors, kind, config)
    try:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, attn_implementation="eager",
            dtype=torch.float32, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # what a model's constructor raises for a configuration that it can't have
        raise WeightsError(f"{source}: {kind.__name__} can't be made of it: {one_line(error)}") from error
    missing = sorted(report["missing_keys"])
    lacks_pooler = any(name.split(".")[0] == "pooler" for name in missing)
    needed = [name for name in missing if name.split(".")[0] != "pooler" and not name.endswith("mask_token")]
    wrong = [f"{name} is missing" for name in needed]
    wrong += [
        f"{name} is {list(found)}, expected {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    wrong += [one_line(text) for text in report["error_msgs"]]
    if wrong:
        more = f" (and {len(wrong) - MAX_NAMED} more)" if len(wrong) > MAX_NAMED else ""
        raise WeightsError(f"{source} is not a checkpoint of {kind.__name__}: {'; '.join(wrong[:MAX_NAMED])}{more}")
    if (broken := next((name for name, one in model.named_parameters() if not one.isfinite().all()), None)) is not None:
        raise WeightsError(f"{source}: {broken} holds NaN or infinity: get the checkpoint again")
    left_out = Counter(_group(name) for name in report["unexpected_keys"])
    notes = []
    if left_out:
        groups = [f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in sorted(left_out.items())]
        more = f" and {len(groups) - MAX_LEFT_OUT} more" if len(groups) > MAX_LEFT_OUT else ""
        notes.append(f"{source}: left out {', '.join(groups[:MAX_LEFT_OUT])}{more}")
    if lacks_pooler:
        notes.append(f"{source} has no weights of the pooler: the embedding is the CLS token")
    return model.float().eval().requires_grad_(False), tuple(notes), not lacks_pooler


def _of_tower(tensors: dict[str, torch.Tensor], kind: Any, config: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The tensors, where a whole model's checkpoint holds all of its tower under one prefix without that prefix."""
    with torch.device("meta"):
        own = [*kind._from_config(config).state_dict()]
    ends = (name for name in tensors if name.endswith(f".{own[0]}"))
    for prefix in [name.removesuffix(own[0]) for name in ends]:
        if all(f"{prefix}{name}" in tensors for name in own):
            inside = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            return {name: one for name, one in tensors.items() if not name.startswith(prefix)} | inside
    return tensors


def _group(name: str) -> str:
    return name.split(".")[0]


def _runner(
    model: Any,  # noqa: ANN401
    size: tuple[int, int],
    trained: tuple[int, int] | None,
    *,
    has_pooler: bool,
) -> Callable[[torch.Tensor], Result]:
    """The call of the model, its position embedding resized if the size is not the trained one."""
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if size != trained and "interpolate_pos_encoding" in takes:
        options["interpolate_pos_encoding"] = True

    def run(pixel_values: torch.Tensor) -> Result:
        found = model(pixel_values, **options)
        return found.last_hidden_state, (getattr(found, "pooler_output", None) if has_pooler else None)

    return run


def _check_size(
    run: Callable[[torch.Tensor], Result], size: tuple[int, int], trained: tuple[int, int] | None, name: str
) -> None:
    """Run the model once.

    Raises:
        UsageError: it does not take pictures of this size.
    """
    try:
        with torch.inference_mode():
            run(torch.zeros(1, 3, *size))
    except Exception as error:  # whatever the model's own checks and products of odd shapes raise
        hint = f"; it was trained at {trained[0]}x{trained[1]}" if trained and trained != size else ""
        raise UsageError(
            f"{name} does not run on pictures of {size[0]}x{size[1]} alone: {one_line(error)}{hint}"
        ) from error
