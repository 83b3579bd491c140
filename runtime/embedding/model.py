"""A loaded model in a program: pictures to embeddings in memory."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

from runtime.backends.gpu import DlpackTensor
from runtime.backends.session import (
    NOT_FINITE,
    Array,
    Arrays,
    Session,
    check_inputs,
    check_names,
    chosen_batch,
    image_shape,
    run_padded,
    slices,
    stream_padded,
)
from runtime.backends.tensors import embed_tensor, is_tensor
from runtime.contract.argument_types import as_text
from runtime.contract.errors import CheckError, UsageError
from runtime.contract.manifest import Manifest
from runtime.images import batches
from runtime.images.batches import Picture, Pictures
from runtime.images.decode import Note
from runtime.images.formats import SIXTEEN_BIT

__all__ = ["Kept", "Model", "Note", "Picture", "Pictures"]

Float32 = npt.NDArray[np.float32]
SixteenBit = Literal["full", "auto"]
_ON_ERROR = ("raise", "skip")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Results of `on_error="skip"`: the outputs of m of n pictures, in their order, and the errors of the others."""

    outputs: Arrays
    """Arrays (m, ...) by name."""
    indices: npt.NDArray[np.int64]
    """(m,): the number of each row's picture, from 0, ascending."""
    errors: dict[int, str]
    """The numbers of the n - m others, and the reason for each."""
    notes: dict[int, tuple[Note, ...]]
    """The numbers of pictures that were decoded with a remark, such as `few_of_16_bits`; `Note.text` explains it."""

    @property
    def embedding(self) -> Float32:
        """(m, C) float32."""
        return self.outputs["embedding"]


class Model:
    """A loaded model that embeds pictures; `runtime.load` makes one.

    Any number of threads may use it at once. Close it, or use it as a context manager:

        with load("itae.onnx") as model:
            vectors = model.embed(["cat.jpg", "dog.png"])  # (2, C) float32
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._gate = _Gate()

    @property
    def manifest(self) -> Manifest:
        """Everything about the model that its file doesn't say."""
        return self.session.manifest

    @property
    def name(self) -> str:
        """The name of the model's file: `itae.onnx`."""
        return self.manifest.files.model.name

    @property
    def width(self) -> int:
        """C: the elements of an embedding."""
        return self.manifest.embedding_width

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that `run` can return: `embedding`, and others of the exporter's `--outputs`."""
        return self.manifest.output_names()

    def __repr__(self) -> str:
        options = self.manifest.options
        return f"<Model {self.name}: {options.size}, {options.precision}, {self.width} wide, on {self.session.name}>"

    @overload
    def embed(
        self,
        images: Pictures,
        batch: int | None = None,
        *,
        on_error: Literal["raise"] = "raise",
        sixteen_bit: SixteenBit = "full",
    ) -> Float32: ...

    @overload
    def embed(
        self,
        images: Pictures,
        batch: int | None = None,
        *,
        on_error: Literal["skip"],
        sixteen_bit: SixteenBit = "full",
    ) -> Kept: ...

    @overload
    def embed(self, images: DlpackTensor, batch: int | None = None) -> DlpackTensor: ...

    def embed(  # as the overloads say
        self, images: Any, batch: int | None = None, *, on_error: str = "raise", sixteen_bit: str = "full"
    ) -> Any:
        """Embed n pictures as (n, C) float32.

            model.embed("cat.jpg")                                  # (1, C)
            model.embed(folder.glob("*.jpg"))                       # (n, C), any iterable, read once
            model.embed([request.body, Image.open("dog.png")])      # a file's content, a Pillow image
            model.embed(upload.file)                                # an open file: BytesIO, an upload
            model.embed(cv2.imread("cat.jpg")[..., ::-1])           # OpenCV's BGR as RGB
            model.embed(np.zeros((8, 3, 224, 224), np.float32))     # what the model itself takes
            kept = model.embed(paths, on_error="skip")              # kept.embedding, kept.indices, kept.errors

        Args:
            images: one picture or any number, of these kinds, also mixed: paths; the content of a picture's file
                (`bytes`); binary files that are open, read from their beginning; Pillow images; uint8 arrays
                (H, W, 3), decoded pictures in RGB, of any size; float32 arrays
                (3, H, W), the input of a float32 model, normalised. An array with one more dimension in front is n of
                them, an array of strings n paths. Of no picture the result is (0, C). The
                dtype alone decides: uint8 is always resized and cropped as a picture's file is, also for a
                model whose own input is uint8; `run_inputs` takes that. Or a tensor of another
                library (DLPack: PyTorch, CuPy, JAX) on the model's device, as the model takes it: the embedding stays
                there, nothing is copied, see `runtime.backends.tensors.embed_tensor`.
            batch: how many to run at a time; the model's preferred number if None.
            on_error: `skip` leaves out pictures that can't be used, or for which the model gave NaN, and returns a
                `Kept`: the embeddings of the others with their numbers, the errors, and remarks on pictures, which
                are otherwise logged as a warning. Not for tensors.
            sixteen_bit: white in pictures of 16 bits: 65535 (`full`), or the largest value of the 8, 10, 12, 14 or 16
                bits that a picture uses (`auto`).

        Raises:
            InputError: a picture can't be used: it is named by its number, from 0.
            UsageError: the model has no `embedding` output, takes no such batch, or is closed; no such `on_error` or
                `sixteen_bit`.
            CheckError: the model gave NaN or infinity.
            BackendError: the backend failed: out of memory, for one.
        """
        if is_tensor(images):
            for name, value, usual in (("on_error", on_error, "raise"), ("sixteen_bit", sixteen_bit, "full")):
                if as_text(value, name) != usual:
                    raise UsageError(f"{name}={value!r} is not for tensors, which are run as they are")
            with self._gate.inside():
                return embed_tensor(self.session, images, batch)
        found = self.run(  # type: ignore[call-overload]  # checked there
            images, ["embedding"], batch, on_error=on_error, sixteen_bit=sixteen_bit
        )
        return found if isinstance(found, Kept) else found["embedding"]

    @overload
    def run(
        self,
        images: Pictures,
        outputs: Sequence[str] | None = None,
        batch: int | None = None,
        *,
        on_error: Literal["raise"] = "raise",
        sixteen_bit: SixteenBit = "full",
    ) -> Arrays: ...

    @overload
    def run(
        self,
        images: Pictures,
        outputs: Sequence[str] | None = None,
        batch: int | None = None,
        *,
        on_error: Literal["skip"],
        sixteen_bit: SixteenBit = "full",
    ) -> Kept: ...

    def run(
        self,
        images: Pictures,
        outputs: Sequence[str] | None = None,
        batch: int | None = None,
        *,
        on_error: str = "raise",
        sixteen_bit: str = "full",
    ) -> Arrays | Kept:
        """Every output of n pictures, or those asked for, by name: arrays (n, ...), as the manifest describes them.

            with load("itae.onnx") as model:  # exported with --outputs embedding,artifact_mask
                found = model.run("cat.jpg", ["embedding", "artifact_mask"])
                found["artifact_mask"].shape  # (1, K, P): chosen layers, patches

        Args:
            images: as `embed` takes them.
            outputs: of `Model.outputs`; all if None.
            batch: how many to run at a time; the model's preferred number if None.
            on_error: as `embed` takes it.
            sixteen_bit: as `embed` takes it.

        Raises:
            InputError, UsageError, CheckError, BackendError: as `embed`.
        """
        size = chosen_batch(self.manifest, batch)
        names = check_names(self.manifest, outputs)
        for name, value, known in (("on_error", on_error, _ON_ERROR), ("sixteen_bit", sixteen_bit, SIXTEEN_BIT)):
            if as_text(value, name) not in known:
                raise UsageError(f"{name}={value!r}: give {' or '.join(map(repr, known))}")
        notes: dict[int, tuple[Note, ...]] = {}

        def on_note(number: int, note: Note) -> None:
            notes[number] = (*notes.get(number, ()), note)

        errors: dict[int, str] | None = None if on_error == "raise" else {}
        prepared = batches.batches(
            images,
            self.manifest,
            size,
            None if errors is None else errors.__setitem__,
            sixteen_bit=sixteen_bit,
            on_note=on_note,
        )
        with contextlib.closing(prepared):
            if errors is not None:
                return self._run_usable(prepared, names, errors, notes)
            found = self._run(prepared, names)
        for note, count in sorted(Counter(note for several in notes.values() for note in several).items()):
            _log.warning("%s: %d", note.text, count)
        return found

    def run_inputs(self, inputs: Array, outputs: Sequence[str] | None = None, batch: int | None = None) -> Arrays:
        """As `run`, of what the model itself takes: (n, 3, H, W) float32, normalised, or (n, H, W, 3) uint8.

        Raises:
            InputError, UsageError, CheckError, BackendError: as `embed`.
        """
        size = chosen_batch(self.manifest, batch)
        check_inputs(self.manifest, inputs)
        return self._run(slices(inputs, size), check_names(self.manifest, outputs))

    def close(self) -> None:
        """Release the model, when the batches that other threads are running are done; a second call does nothing.

        What those threads have not begun by then ends in a `UsageError`.
        """
        self._gate.shut()
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, batches: Iterable[Array], names: Sequence[str]) -> Arrays:
        pieces: list[Arrays] = []
        done = 0
        for inputs in batches:
            try:
                with self._gate.inside():
                    pieces.append(run_padded(self.session, inputs, names))
            except CheckError as error:
                raise CheckError(f"images {done} to {done + len(inputs) - 1}: {error}") from error
            done += len(inputs)
        return self._joined(pieces, names)

    def _run_usable(
        self,
        prepared: Iterable[Array],
        names: Sequence[str],
        errors: dict[int, str],
        notes: dict[int, tuple[Note, ...]],
    ) -> Kept:
        """The outputs of the pictures that can be used; `errors` and `notes` fill up as batches are taken."""
        pieces: list[Arrays] = []
        for inputs in prepared:
            with self._gate.inside():
                pieces += stream_padded(self.session, [inputs], names)  # it lets NaN pass
        found = self._joined(pieces, names)
        rows = len(found[names[0]])
        indices = np.array([number for number in range(rows + len(errors)) if number not in errors], np.int64)
        good = np.ones(rows, np.bool_)
        for array in found.values():
            if array.dtype == np.float32:
                good &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        errors.update(dict.fromkeys(indices[~good].tolist(), NOT_FINITE))
        kept = {name: array[good] for name, array in found.items()}
        return Kept(kept, indices[good], dict(sorted(errors.items())), dict(sorted(notes.items())))

    def _joined(self, pieces: Sequence[Arrays], names: Sequence[str]) -> Arrays:
        """The outputs of all batches by name: (n, ...), n may be 0."""
        if pieces:
            return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        declared = {output.name: output for output in self.manifest.outputs}
        return {name: np.empty((0, *image_shape(declared[name])), declared[name].dtype) for name in names}


class _Gate:
    """Lets any number of threads in until it is shut; who shuts it waits for those inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_shut = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with self._changed:
            if self._is_shut:
                raise UsageError("the model is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._is_shut = True
            self._changed.wait_for(lambda: self._inside == 0)
