"""The int8 model of a float32 one: as many int8 layers as the limit allows, on pictures that chose no scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from exporter.intake import Intake, Pixels
from exporter.quantization.figures import Figures, compare, cosines
from exporter.quantization.observation import Seen, observe
from exporter.quantization.scales import choose, needed
from exporter.surgery import runner
from exporter.surgery.edit import import_graph
from exporter.surgery.materialize import materialize
from exporter.surgery.quantize_linears import Group, QuantizedGroup, find_groups, quantize_linears
from runtime.contract.errors import InputError, ParityError
from runtime.contract.manifest import Quantization

LEAST = 32
"""Pictures that int8 needs, at least: half of them to choose the scales, half to check them."""
MARGIN = 1.5
"""The worst picture that is checked may use this part of the distance to the limit: one over this. Evidence:
exporter/DECISIONS.md."""
MOST_LEFT = 0.5
"""Share of the groups that may stay float32; a model that needs more is better exported in bf16."""
SENSITIVE_PICTURES = 4
"""Pictures by which each group's share of the loss is measured. They are of the half that chooses the scales."""
TOGETHER = 2
"""Pictures in a batch while layers are observed: all that they read is held at once."""

Float32 = npt.NDArray[np.float32]
Open = Callable[[Path], Any]
"""Opens a model in ONNX Runtime."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Quantized:
    """An int8 model."""

    model: Path
    data: Path | None
    """Its external weights; None if all lie in `model`."""
    record: Quantization


def quantize(
    exact: Path, folder: Path, data_name: str, intake: Intake, min_cosine: float, open_model: Open, say: Say
) -> Quantized:
    """Write the int8 form of a model to `folder`, which is made.

    Args:
        exact: the float32 model, with an output `embedding`.
        folder: of its own.
        data_name: what external weights are called.
        intake: the pictures; the first half chooses the scales, the other half checks them.
        min_cosine: the limit for every picture.
        open_model: opens a model.
        say: called with the progress in words.

    Raises:
        InputError: too few pictures can be read.
        ParityError: the limit can't be kept; the message has the figures.
        SurgeryError: the graph has no linear layers.
    """
    folder.mkdir()
    pictures = [batch.pixels for batch in intake.batches(1)]
    say("looking at what the layers read")
    model = onnx.load(exact, load_external_data=False)
    groups = find_groups(import_graph(model))
    seen, calibrated = _observe(exact, groups, intake, open_model)
    checked = sum(map(len, pictures))
    if min(calibrated, checked) < LEAST // 2:
        raise InputError(_too_few(intake, calibrated, checked))
    values = _Values(model, exact.parent)
    chosen = []
    for number, group in enumerate(groups, 1):
        say(f"choosing scales, {number} of {len(groups)}")
        chosen.append(choose(group, seen, {name: values[name] for name in needed(group)}))
    del seen
    path = folder / "model.onnx"

    def write(some: Iterable[QuantizedGroup]) -> Path | None:
        """Write the model with these groups in int8 to `path`; returns its external weights."""
        rewritten, _ = runner.run(exact, [partial(quantize_linears, groups=tuple(some))])
        return materialize(rewritten, exact.parent, path, data_name)

    def loss_of(group: QuantizedGroup, images: Pixels, wanted: Float32) -> float:
        """Mean distance, 1 - cosine, with this group alone in int8."""
        write([group])
        return float((1 - cosines(wanted, _embeddings(open_model(path), [images]))).mean())

    @cache
    def order() -> list[int]:
        """The groups, those that lose most first; measured only where not all can be int8."""
        images = next(intake.batches(0)).pixels[:SENSITIVE_PICTURES]
        wanted = _embeddings(open_model(exact), [images])
        losses = []
        for number, group in enumerate(chosen, 1):
            say(f"measuring what each group loses, {number} of {len(groups)}")
            losses.append(loss_of(group, images, wanted))
        return sorted(range(len(groups)), key=lambda index: -losses[index])

    wanted = _embeddings(open_model(exact), pictures)

    def attempt(left: int) -> Attempt:
        """The figures with the `left` worst groups in float32, and the model."""
        worst = order()[:left] if left else []
        data = write(group for index, group in enumerate(chosen) if index not in worst)
        figures = compare(wanted, _embeddings(open_model(path), pictures))
        say(f"{left} of {len(groups)} groups in float32: worst cosine {figures.worst_cosine:.5f}")
        return figures, path, data

    left, figures, path, data = _fewest(attempt, int(MOST_LEFT * len(groups)), 1 - (1 - min_cosine) / MARGIN)
    if figures.worst_cosine < 1 - (1 - min_cosine) / MARGIN:
        raise ParityError(
            f"int8 does not keep --min-cosine {min_cosine}: with {left} of {len(groups)} groups of layers in "
            f"float32 the worst of {checked} pictures has cosine {figures.worst_cosine:.5f}, the median "
            f"{figures.median_cosine:.5f} ({MARGIN:g} times the distance is wanted as a margin for other pictures); "
            "use --precision bf16 or fp32, or allow a smaller --min-cosine"
        )
    layers = [[one.weight for some in group.layers.values() for one in some] for group in groups]
    exact_layers = tuple(name for index in sorted(order()[:left] if left else []) for name in layers[index])
    record = Quantization(
        calibrated=calibrated,
        checked=checked,
        unreadable=len(intake.failed),
        min_cosine=min_cosine,
        worst_cosine=figures.worst_cosine,
        median_cosine=figures.median_cosine,
        neighbours=figures.neighbours,
        same_centroid=figures.same_centroid,
        int8_layers=sum(map(len, layers)) - len(exact_layers),
        float32_layers=exact_layers,
    )
    return Quantized(path, data, record)


Attempt = tuple[Figures, Path, Path | None]


def _fewest(attempt: Callable[[int], Attempt], most: int, enough: float) -> tuple[int, Figures, Path, Path | None]:
    """The fewest groups left in float32 with which the worst cosine is `enough`, by doubling and halving; or `most`."""
    low, high = -1, 0  # `low` is known to be too few
    found = attempt(high)
    while found[0].worst_cosine < enough:
        if high >= most:
            return (high, *found)
        low, high = high, min(max(2 * high, 1), most)
        found = attempt(high)
    best = high
    while high - low > 1:
        best = (low + high) // 2
        found = attempt(best)
        if found[0].worst_cosine < enough:
            low = best
        else:
            high = best
    return (high, *(found if best == high else attempt(high)))


class _Values(dict[str, Float32]):
    """The weights of a model by name, each read when it is wanted and not kept."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        super().__init__()
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._folder = folder

    def __missing__(self, name: str) -> Float32:
        return np.asarray(numpy_helper.to_array(self._tensors[name], base_dir=str(self._folder)), np.float32)


def _observe(exact: Path, groups: Sequence[Group], intake: Intake, open_model: Open) -> tuple[dict[str, Seen], int]:
    """The numbers that the groups read, by tensor, and the number of pictures."""
    names = list(dict.fromkeys(name for group in groups for name in group.layers))
    model = onnx.load(exact, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    path = exact.with_name("observed.onnx")  # beside its external weights
    onnx.save(model, path)
    del model
    session = open_model(path)
    path.unlink()
    pictures = 0

    def pieces() -> Iterator[Pixels]:
        nonlocal pictures
        for batch in intake.batches(0):
            pictures += len(batch.pixels)
            for start in range(0, len(batch.pixels), TOGETHER):
                yield batch.pixels[start : start + TOGETHER]

    return observe(session, names, pieces()), pictures


def _embeddings(session: Any, pictures: Sequence[Pixels]) -> Float32:  # noqa: ANN401
    (given,) = (one.name for one in session.get_inputs())
    return np.concatenate([session.run(["embedding"], {given: batch})[0] for batch in pictures])


def _too_few(intake: Intake, calibrated: int, checked: int) -> str:
    first = intake.first_failure()
    return (
        f"--calibrate-images: int8 needs at least {LEAST} pictures that can be read, half of them to check by; "
        f"{calibrated + checked} could be, {len(intake.failed)} could not"
        f"{f'; the first that could not: {first}' if first else ''}"
    )
