"""The backbone in a checkpoint: found under any prefix, without its heads, and checked tensor by tensor."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from exporter.models import naming
from exporter.models.architecture import ARCHITECTURES, Architecture
from exporter.models.pickles import SHARDED
from runtime.contract.errors import WeightsError

Tensors = dict[str, torch.Tensor]
MAX_NAMED = 3
"""How many wrong tensors an error names."""
MAX_LEFT_OUT = 6
"""How many groups of left out tensors a note names."""
_WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_fpw_module"}
"""Names that PyTorch's wrappers put between the names of modules: FSDP, activation checkpointing, `torch.compile`."""
_BESIDE = {
    *(
        "head",
        "heads",
        "classifier",
        "fc",
        "linear",
        "projector",
        "projection",
        "predictor",
        "decoder",
        "decode",
        "neck",
    ),
    *("loss", "criterion", "center", "queue", "prototypes", "optimizer", "scheduler", "scaler", "metric", "metrics"),
}
"""Words in the names of modules beside a backbone, which are left out."""
_CLS, _PATCHES = "embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"
_REGISTERS = "embeddings.register_tokens"


@dataclass(frozen=True)
class Backbone:
    """A DINOv2 out of a checkpoint."""

    parameters: Tensors
    """By the names of transformers' modules, float32."""
    notes: tuple[str, ...] = ()
    """Notes for the user: which of several backbones was taken, and what was left out."""


@dataclass(frozen=True)
class _Name:
    """The name of a tensor, split into the prefix of its backbone and the rest."""

    full: str
    prefix: str
    word: str
    """The rest, with `#` for the number of its block."""
    targets: tuple[str, ...]


def translate(entries: Mapping[str, object], arch: Architecture, source: str) -> Backbone:
    """The one backbone of a checkpoint as parameters of transformers' DINOv2.

    Names are stripped of one common prefix and of the numbers of chunks of blocks. Of a teacher and a student the
    teacher is taken, and averaged weights (EMA) before those that are not. Heads and what lies under other prefixes are
    left out, with a note; a tensor inside the backbone that is not DINOv2's is an error.

    Args:
        entries: by dotted name, tensors, and whatever else lies among them.
        arch: the model that is expected.
        source: for messages.

    Raises:
        WeightsError: a tensor is missing, superfluous, of another shape or type, or holds NaN or infinity.
    """
    words = naming.vocabulary(arch)
    stripped = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in entries}
    names = [known for full, name in stripped.items() if (known := _known(full, name, words)) is not None]
    prefixes = _candidates(names)
    if not prefixes:
        raise WeightsError(_no_backbone(entries, source))
    prefix = _choose(prefixes, entries, names, source)
    inside = [one for one in names if one.prefix == prefix]
    taken = {one.full for one in inside}
    rest = {full: name for full, name in stripped.items() if full not in taken and _is_tensor(entries[full])}
    strangers, left_out = _others(rest, prefix, prefixes)
    given = _check(inside, strangers, prefix, entries, arch, source)
    notes = []
    if prefix and len(prefixes) > 1:
        notes.append(f"{source}: took {prefix} of {', '.join(sorted(prefixes))}")
    if left_out:
        groups = [f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in left_out.items()]
        more = f" and {len(groups) - MAX_LEFT_OUT} more" if len(groups) > MAX_LEFT_OUT else ""
        notes.append(f"{source}: left out {', '.join(groups[:MAX_LEFT_OUT])}{more}")
    return Backbone(_parameters(given, entries, arch, source), tuple(notes))


def _known(full: str, name: str, words: Mapping[str, tuple[str, ...]]) -> _Name | None:
    """The longest end of a name that is a DINOv2's, and what stands before it."""
    parts = name.split(".")
    for start in range(len(parts)):
        word, number = naming.generalise(".".join(parts[start:]))
        if (targets := words.get(word)) is not None:
            numbered = tuple(target.replace("#", str(number)) for target in targets)
            return _Name(full, ".".join(parts[:start]), word, numbered)
    return None


def _candidates(names: list[_Name]) -> set[str]:
    """The prefixes under which a backbone lies."""
    counts = Counter(one.prefix for one in names)
    anchored = {one.prefix for one in names if _CLS in one.targets or _PATCHES in one.targets}
    most = max((counts[prefix] for prefix in anchored or counts), default=0)
    return {prefix for prefix in anchored or counts if 2 * counts[prefix] >= most}


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix.lower()))
    if "teacher" in words:
        return 0
    if "ema" in words:
        return 1
    return 3 if "student" in words else 2


def _choose(prefixes: set[str], entries: Mapping[str, object], names: list[_Name], source: str) -> str:
    """The prefix of the backbone that is taken.

    Raises:
        WeightsError: several are equally good and not equal.
    """
    best = min(map(_rank, prefixes))
    first, *others = sorted((prefix for prefix in prefixes if _rank(prefix) == best), key=lambda one: (len(one), one))
    held: dict[str, dict[tuple[str, ...], object]] = defaultdict(dict)
    for name in names:
        held[name.prefix][name.targets] = entries[name.full]
    for other in others:
        if held[first].keys() != held[other].keys() or not all(
            _equal(value, held[other][targets]) for targets, value in held[first].items()
        ):
            shown = ", ".join(prefix or "(no prefix)" for prefix in (first, *others))
            raise WeightsError(f"{source} holds several backbones ({shown}): save the tensors of one alone")
    return first


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _equal(a: object, b: object) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return a is b or (a.dtype == b.dtype and a.layout == b.layout == torch.strided and torch.equal(a, b))


def _others(rest: Mapping[str, str], prefix: str, prefixes: set[str]) -> tuple[list[str], Counter[str]]:
    """Tensors inside the backbone that are not DINOv2's, and what is left out: groups of tensors with their numbers."""
    strangers: list[str] = []
    left_out: Counter[str] = Counter()
    start = f"{prefix}." if prefix else ""
    beside = [f"{other}." for other in prefixes if other != prefix and other.startswith(start)]
    for full, name in rest.items():
        if not name.startswith(start):
            left_out[_group(name, prefix)] += 1
            continue
        module = name[len(start) :].partition(".")[0]
        if set(module.lower().split("_")) & _BESIDE or module.lower().endswith("head"):
            left_out[start + module] += 1
        elif any(name.startswith(other) for other in beside):
            left_out[next(other[:-1] for other in beside if name.startswith(other))] += 1
        else:
            strangers.append(full)
    return strangers, left_out


def _group(name: str, prefix: str) -> str:
    """The first part of a name in which it differs from the prefix."""
    parts, own = name.split("."), prefix.split(".")
    same = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), len(own) - 1)
    return ".".join(parts[: same + 1])


def _check(
    inside: list[_Name],
    strangers: list[str],
    prefix: str,
    entries: Mapping[str, object],
    arch: Architecture,
    source: str,
) -> list[_Name]:
    """The names that are loaded; refuses what isn't exactly this model, naming the first few tensors that are wrong."""
    spelled = _spelled(inside, arch)
    shapes = {target: entry.target_shape for entry in spelled.values() for target in entry.targets}
    wrong, extra = [], [f"{name} is not part of it" for name in strangers]
    given: dict[str, str] = {}
    twins, taken = [], []
    for name in inside:
        value = entries[name.full]
        if any(target not in shapes for target in name.targets):
            extra.append(f"{name.full} is not part of it")
            continue
        if twice := next((given[target] for target in name.targets if target in given), None):
            twins.append(f"{twice} and {name.full} are the same parameter")
            continue
        given |= dict.fromkeys(name.targets, name.full)
        if not isinstance(value, torch.Tensor):
            kind = _kind(value)
            wrong.append(f"{name.full} is no tensor but {kind}{f', {SHARDED}' if 'torch.distributed' in kind else ''}")
            continue
        rows, *rest = shapes[name.targets[0]]
        expected = (len(name.targets) * rows, *rest)
        if naming.POSITION in name.targets:
            if problem := _bad_position(tuple(value.shape), arch):
                wrong.append(f"{name.full} is {_shape(value.shape)}, {problem}")
        elif tuple(value.shape) != expected:
            wrong.append(f"{name.full} is {_shape(value.shape)}, expected {_shape(expected)}")
        taken.append(name)
    missing = []
    start = f"{prefix}." if prefix else ""
    for name_of, entry in spelled.items():
        absent = [target for target in entry.targets if target not in given and target != naming.MASK_TOKEN]
        if absent and len(absent) == len(entry.targets):
            missing.append(f"{start}{name_of} is missing")
        elif absent:
            missing.append(f"{start}{name_of} is missing in part: {', '.join(absent)}")
    # Missing first: of a file that holds something else altogether, that says most.
    problems = [*twins, *missing, *sorted(extra), *wrong] if missing else [*twins, *wrong, *sorted(extra)]
    if problems:
        more = f" (and {len(problems) - MAX_NAMED} more)" if len(problems) > MAX_NAMED else ""
        shown = "; ".join(problems[:MAX_NAMED])
        raise WeightsError(
            f"{source} is not a checkpoint of {arch.name}: {shown}{more}{_other_size(inside, entries, arch)}"
        )
    return taken


def _spelled(inside: list[_Name], arch: Architecture) -> dict[str, naming.Entry]:
    """Every tensor of `arch`, in the naming that most names of the checkpoint are of."""
    namings = (naming.meta_entries(arch), naming.hugging_face_entries(arch), naming.module_entries(arch))

    def fits(entries: dict[str, naming.Entry]) -> int:
        own = {naming.generalise(name)[0] for name in entries}
        return sum(one.word in own for one in inside)

    return max(namings, key=fits)


def _kind(value: object) -> str:
    return getattr(type(value), "full_name", "") or type(value).__name__


def _bad_position(shape: tuple[int, ...], arch: Architecture) -> str | None:
    is_form = len(shape) == 3 and (shape[0], shape[2]) == (1, arch.width)
    if is_form and _tokens_before_grid(shape[1], arch) is not None:
        return None
    return f"expected 1×(1 + a square grid)×{arch.width}"


def _tokens_before_grid(positions: int, arch: Architecture) -> int | None:
    """Number of tokens that a position embedding covers before a square grid of patches; None if there is no such grid.

    One, the CLS token; or none, or CLS and registers, as in models of timm.
    """
    for before in (1, 0, arch.prefix):
        patches = positions - before
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return before
    return None


def _other_size(inside: list[_Name], entries: Mapping[str, object], arch: Architecture) -> str:
    """A sentence on the `--size` that the checkpoint is of; empty if it isn't clear that it is of another one."""
    shapes = {
        target: tuple(value.shape)
        for name in inside
        for target in name.targets
        if isinstance(value := entries[name.full], torch.Tensor) and value.layout == torch.strided
    }
    layers = {int(match[1]) for target in shapes if (match := re.match(r"encoder\.layer\.(\d+)\.", target))}
    width = next((shape[-1] for target, shape in shapes.items() if target == _CLS and shape), None)
    registers = shapes.get("embeddings.register_tokens", (1, 0))
    for other in ARCHITECTURES.values():
        like = (other.width, set(range(other.depth)), other.registers, other.patch)
        patch = shapes.get(_PATCHES, (0,))[-1]
        if other.name != arch.name and (width, layers, registers[1] if len(registers) > 1 else 0, patch) == like:
            return f". It has the form of {other.name}: give --size {other.name}"
    return ""


def _no_backbone(entries: Mapping[str, object], source: str) -> str:
    tensors = [name for name, value in entries.items() if isinstance(value, torch.Tensor)]
    if not tensors:
        return f"{source} is not a state dict: it holds no tensors by name"
    flat = next((name for name in tensors if name.rpartition(".")[2].lstrip("_") == "flat_param"), None)
    if flat is not None:
        return f"{source} holds {flat}, {SHARDED}"
    more = ", …" if len(tensors) > MAX_NAMED else ""
    return (
        f"{source} holds no DINOv2 under a name of Meta's, Hugging Face's or timm's: cls_token is missing, and it has "
        f"{', '.join(tensors[:MAX_NAMED])}{more}"
    )


def _parameters(names: list[_Name], entries: Mapping[str, object], arch: Architecture, source: str) -> Tensors:
    parameters: Tensors = {}
    for name in names:
        tensor = entries[name.full]
        assert isinstance(tensor, torch.Tensor)
        tensor = tensor.detach()
        if not tensor.is_floating_point():
            raise WeightsError(f"{source}: {name.full} is {tensor.dtype}, expected floating point")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{source}: {name.full} is sparse or has no values, expected a plain tensor")
        tensor = tensor.to(torch.float32)
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # NaN passes through both; no copy is made
            raise WeightsError(f"{source}: {name.full} holds NaN or infinity: the file is damaged, get it again")
        parameters.update(zip(name.targets, tensor.chunk(len(name.targets)), strict=True))
    position = parameters[naming.POSITION]
    before = _tokens_before_grid(position.shape[1], arch)
    if before == 0:  # timm's, of models with registers: the CLS token's position is part of the CLS token
        parameters[naming.POSITION] = torch.cat([torch.zeros(1, 1, arch.width), position], dim=1)
    elif before == arch.prefix and arch.registers:  # timm's too, without `no_embed_class`: registers have positions
        parameters[_REGISTERS] = parameters[_REGISTERS] + position[:, 1:before]
        parameters[naming.POSITION] = torch.cat([position[:, :1], position[:, before:]], dim=1)
    parameters.setdefault(naming.MASK_TOKEN, torch.zeros(1, arch.width))  # of training alone
    return parameters


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
