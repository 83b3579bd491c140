"""The protocol of every backend, and the checks around each of its runs."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.contract.argument_types import as_names, as_whole_number
from runtime.contract.errors import BackendError, CheckError, InputError, ItaeError, UsageError, one_line
from runtime.contract.further_outputs import how_to_add
from runtime.contract.manifest import OUTPUTS, Manifest, TensorInfo

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

NOT_FINITE = "the model gave NaN or infinity for it; export it with --precision fp32"
"""Why one image of several has no embedding."""
DEFAULT_BATCH = 8
"""For ONNX, whose batch is dynamic. On a CPU larger ones are no faster."""

MAX_BATCH = 2**31 - 1
"""Largest batch of ONNX models; memory ends far below it."""


class Session(Protocol):
    """A loaded model. Each backend's `run` checks the batch, runs it and checks what came out."""

    @property
    def manifest(self) -> Manifest:
        """The model's manifest, against which its files were checked."""

    @property
    def name(self) -> str:
        """The library that runs the model, with its version, for reports."""

    @property
    def compute(self) -> str:
        """The type that the matrix products run in, the least precise type if several: `fp32`, `fp16`, `bf16`."""

    def run(self, batch: Array, outputs: Sequence[str] | None = None) -> Arrays:
        """Run a batch of the manifest's input dtype and shape, B >= 1; give `outputs`, or all, by name.

        Raises:
            InputError: the batch has another dtype or shape than the model, no image, too many, or NaN.
            UsageError: the model has no such output, or the session is closed.
            CheckError: an output holds NaN or infinity, or has another shape than the manifest says.
            BackendError: the backend failed: out of memory, for one.
        """

    def stream(self, batches: Iterable[Array], outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Run batches in order and give the outputs of each; a backend may copy one while it computes another.

        NaN and infinity in outputs come as they are: the caller looks for them, image by image.

        Raises:
            InputError, UsageError, CheckError, BackendError: as `run`.
        """

    def close(self) -> None:
        """Release the model; a second call does nothing."""


def batch_limits(manifest: Manifest) -> tuple[int, int, int | None]:
    """Smallest, preferred and largest batch that the model takes; no largest for ONNX whose batch is not fixed."""
    if isinstance(fixed := manifest.input.shape[0], int):
        return fixed, fixed, fixed
    if manifest.options.batch is None or manifest.builder.name == "onnx":
        return 1, DEFAULT_BATCH, None
    return manifest.options.batch


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """A block whose foreign errors become ours, `what` before them: the libraries' have only `Exception` in common.

    Raises:
        BackendError: the library failed.
    """
    try:
        yield
    except ItaeError:
        raise
    except Exception as error:
        raise BackendError(f"{what}: {one_line(error)}") from error


def failed(library: str, samples: int) -> str:
    """The beginning of an error while `library` ran a batch."""
    return f"{library} failed on {samples} images (a smaller --batch takes less memory)"


def image_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Shape of a tensor's share of one image: without the batch dimension, the only one that may vary."""
    return tuple(int(side) for side in tensor.shape[1:])


def image_bytes(tensor: TensorInfo) -> int:
    """Size of a tensor's share of one image."""
    return math.prod(image_shape(tensor)) * np.dtype(tensor.dtype).itemsize


def check_batch(manifest: Manifest, batch: Array) -> None:
    """Check a batch before a backend sees it: ONNX Runtime takes B = 0 and NaN without a word.

    Raises:
        InputError: as `Session.run`.
    """
    check_inputs(manifest, batch)
    smallest, _, largest = batch_limits(manifest)
    if batch.shape[0] < smallest or (largest is not None and batch.shape[0] > largest):
        upto = "or more" if largest is None else f"to {largest}"
        raise InputError(f"a batch of {batch.shape[0]} images: the model takes {smallest} {upto}")
    if batch.dtype == np.float32 and not np.isfinite(batch).all():
        raise InputError(f"a batch that holds NaN or infinity: {_wanted(manifest)}")


def check_inputs(manifest: Manifest, inputs: object) -> None:
    """Check the type, dtype and shape of any number of images as the model takes them.

    Raises:
        InputError: they are no numpy array, or of another dtype or shape than the model's.
    """
    if not isinstance(inputs, np.ndarray):
        raise InputError(f"a batch is a numpy array, not {type(inputs).__name__}: {_wanted(manifest)}")
    check_shape(manifest, inputs.shape, inputs.dtype.name)


def check_shape(manifest: Manifest, shape: tuple[int, ...], dtype: str) -> None:
    """Check dtype and shape of a batch of any size.

    Raises:
        InputError: they are not the model's.
    """
    expected = manifest.input
    if dtype != expected.dtype:
        raise InputError(f"a batch of dtype {dtype}: {_wanted(manifest)}")
    if len(shape) != len(expected.shape) or shape[1:] != expected.shape[1:]:
        raise InputError(f"a batch of shape {shape}: {_wanted(manifest)}")


def _wanted(manifest: Manifest) -> str:
    expected = manifest.input
    return f"the model takes `{expected.name}` as {expected.dtype} ({', '.join(map(str, expected.shape))})"


def check_names(manifest: Manifest, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """Return the outputs to ask for: all of the model's if None.

    Raises:
        UsageError: no output is named, or the model has no such output.
    """
    names = manifest.output_names()
    if outputs is None:
        return names
    chosen = as_names(outputs, "outputs")
    if not chosen:
        raise UsageError(f"outputs: name at least one of {', '.join(names)}, or give None for all")
    for name in chosen:
        if name not in names:
            is_known = manifest.foreign is not None and name in OUTPUTS
            cure = how_to_add(manifest, [name]) if is_known else "see the exporter's --outputs"
            raise UsageError(f"the model has no output `{name}`, only {', '.join(names)}; {cure}")
    return chosen


def names_in_file(manifest: Manifest, names: Iterable[str]) -> list[str]:
    """The names that the model's file has for these outputs."""
    declared = {output.name: output.name_in_file for output in manifest.outputs}
    return [declared[name] for name in names]


def check_outputs(manifest: Manifest, samples: int, outputs: Mapping[str, Array], *, finite: bool = True) -> None:
    """Check what a backend gave for a batch of `samples` images; of NaN and infinity only where `finite`.

    Raises:
        CheckError: an output holds NaN or infinity, or has another dtype or shape than the manifest says.
    """
    declared = {output.name: output for output in manifest.outputs}
    for name, array in outputs.items():
        shape = (samples, *declared[name].shape[1:])
        if array.shape != shape or array.dtype != declared[name].dtype:
            raise CheckError(
                f"{manifest.files.model.name} gave `{name}` as {array.dtype} {array.shape}, "
                f"its manifest says {declared[name].dtype} {shape}: export it again"
            )
        if finite and array.dtype == np.float32 and not np.isfinite(array).all():
            rows = int((~np.isfinite(array.reshape(samples, -1)).all(axis=1)).sum())
            raise CheckError(
                f"{manifest.files.model.name} gave NaN or infinity in `{name}` for {rows} of {samples} images"
                "; export it with --precision fp32"
            )


def chosen_batch(manifest: Manifest, batch: int | None) -> int:
    """Return the number of images to run at a time: `batch`, or the model's preferred number if None.

    Raises:
        UsageError: the model does not take so many, or so few.
    """
    smallest, preferred, largest = batch_limits(manifest)
    if batch is None:
        return preferred
    batch = as_whole_number(batch, "batch")
    if not 1 <= batch <= (largest or MAX_BATCH):
        raise UsageError(f"a batch of {batch}: the model takes 1 to {largest or MAX_BATCH} at a time")
    return max(batch, smallest)


def padded_size(manifest: Manifest, samples: int) -> int:
    """Return the size of the batch that `samples` images are run in: no fewer than the model takes."""
    return max(samples, batch_limits(manifest)[0])


def padded(manifest: Manifest, batch: Array) -> Array:
    """Repeat the last image up to `padded_size`; callers drop the extra rows."""
    missing = padded_size(manifest, len(batch)) - len(batch)
    return batch if missing <= 0 else np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def run_padded(session: Session, batch: Array, outputs: Sequence[str] | None = None) -> Arrays:
    """Run a batch that may be smaller than the model takes.

    Raises:
        InputError, UsageError, CheckError, BackendError: as `Session.run`.
    """
    results = session.run(padded(session.manifest, batch) if len(batch) else batch, outputs)
    return {name: array[: len(batch)] for name, array in results.items()}


def stream_padded(session: Session, batches: Iterable[Array], outputs: Sequence[str]) -> Iterator[Arrays]:
    """Run batches, some of which may be smaller than the model takes, as `Session.stream` does.

    Raises:
        InputError, UsageError, CheckError, BackendError: as `Session.stream`.
    """
    sizes: deque[int] = deque()

    def filled() -> Iterator[Array]:
        for batch in batches:
            sizes.append(len(batch))
            yield padded(session.manifest, batch)

    for results in session.stream(filled(), outputs):
        size = sizes.popleft()
        yield {name: array[:size] for name, array in results.items()}


def slices(inputs: Array, size: int) -> Iterator[Array]:
    """Cut inputs into batches of `size`, the last with what is left."""
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


def run_in_batches(
    session: Session, inputs: Array, batch: int | None = None, outputs: Sequence[str] | None = None
) -> Arrays:
    """Run any number of images, `batch` at a time (the model's preferred number if None).

    Raises:
        InputError, UsageError, CheckError, BackendError: as `Session.run`.
    """
    size = chosen_batch(session.manifest, batch)
    check_inputs(session.manifest, inputs)
    pieces = [run_padded(session, piece, outputs) for piece in slices(inputs, size)]
    if not pieces:
        return session.run(inputs, outputs)  # which refuses it
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
