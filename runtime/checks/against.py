"""Comparison of a model with a reference model on a user's own pictures, as of an fp16 engine with the fp32 ONNX."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.backends.session import Array, Session, check_names, chosen_batch, slices, stream_padded
from runtime.checks.agreement import Agreement, agreement
from runtime.checks.batch_invariance import SAMPLES, BatchInvariance, check_batches
from runtime.checks.criteria import Criterion, Limits, default_limits, judge
from runtime.contract.comparison import LIMITS as PARITY_LIMITS
from runtime.contract.errors import CheckError, InputError, UsageError, one_line
from runtime.contract.golden import Golden
from runtime.contract.keys import location
from runtime.contract.machine import usable_cores
from runtime.contract.manifest import Manifest, ParityLimits, Preprocessing
from runtime.contract.progress import Progress, Silent
from runtime.images.decode import Note, OnNote
from runtime.images.preprocess import preprocess
from runtime.sources import load_item
from runtime.sources.item import Entry, Unreadable

Float32 = npt.NDArray[np.float32]

WORST = 3
"""Number of pictures with the smallest cosines that are named."""
_SHOWN = 12
"""Characters of an option's value that a warning shows, enough to recognise a hash."""
_SAME_MODEL = frozenset(
    {
        "precision",
        "backend",
        "batch",
        "input",
        "outputs",
        "unfused",
        "workspace_mib",
        "parity_samples",
        "weights",
        "hardware_compatibility",
        "version_compatible",
    }
)
"""Options that may differ between two exports of the same computation; the hash stands for the weights."""


@dataclass(frozen=True)
class Against:
    """The comparison of a model's embeddings of some pictures with those of the reference."""

    model: str
    backend: str
    other: str
    other_backend: str
    pictures: tuple[str, ...]
    """The places of the pictures that both models embedded."""
    unreadable: tuple[Unreadable, ...]
    agreement: Agreement
    batches: BatchInvariance | str | None
    """The check of the model's own batches; an error's text if it failed; None if no picture has a finite embedding."""
    batches_of: tuple[str, ...]
    """The pictures of that check; its failures number them from 0."""
    criteria: tuple[Criterion, ...]
    skipped: Mapping[str, int]
    """Number of files that were passed over, by reason; no pictures, or not to be read."""
    notes: Mapping[Note, int]
    """Number of pictures that were decoded and have a remark, by remark."""
    differences: tuple[str, ...]
    """Options in which the two exports differ, those of precision and packaging left out."""
    seconds: float
    """Time to embed and compare, without loading the models."""

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why the model did not pass, a clause each."""
        return tuple(one.failure for one in self.criteria if one.failure is not None)

    def worst(self) -> list[tuple[str, float]]:
        """The pictures with the smallest cosines; NaN comes first."""
        cosines = self.agreement.cosines
        order = np.argsort(np.where(np.isnan(cosines), -np.inf, cosines), kind="stable")[:WORST]
        return [(self.pictures[row], float(cosines[row])) for row in order.tolist()]


def verify_against(
    model: Session,
    other: Session,
    entries: Iterable[Entry],
    total: int,
    *,
    limits: Limits | None = None,
    clusters: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Against:
    """Embed pictures with both models, each by its own manifest, and compare.

    Args:
        model: the model in question.
        other: the reference.
        entries: the pictures and the unreadable entries of `Sources.items`.
        total: the number of entries.
        limits: the limits of the figures; None for `default_limits` of the two models.
        clusters: k of the clusterings; see `agreement`.
        seed: the seed of the clusterings' starts.
        progress: shows how many pictures are embedded and unreadable so far.
        skipped: `Sources.skipped`, for the report.

    Raises:
        UsageError: the embeddings can't be compared: another width, no `embedding` output; or too many clusters.
        InputError: no picture could be read.
        BackendError: a backend failed.
        CheckError: an output has another shape than its manifest says.
    """
    check_comparable(model.manifest, other.manifest)
    _check_clusters(clusters, total)
    start = time.perf_counter()
    both = _embed(model, other, entries, total, progress or Silent())
    n = len(both.pictures)
    if n == 0:
        first = both.unreadable[0]
        reason = f"the first: {location(first.root, first.path)}: {first.error}"
        raise InputError(f"none of {len(both.unreadable)} pictures could be read, {reason}")
    _check_clusters(clusters, n)
    limits = limits or default_limits(model, other)
    agreed = agreement(both.got, both.expected, clusters, seed)
    batches = _check_batches(model, [inputs for _, inputs in both.samples], limits)
    return Against(
        model=model.manifest.files.model.name,
        backend=model.name,
        other=other.manifest.files.model.name,
        other_backend=other.name,
        pictures=tuple(both.pictures),
        unreadable=tuple(both.unreadable),
        agreement=agreed,
        batches=batches,
        batches_of=tuple(picture for picture, _ in both.samples),
        criteria=judge(agreed, batches, limits),
        skipped=dict(skipped or {}),
        notes=dict(sorted(both.notes.items())),
        differences=tuple(differences(model.manifest, other.manifest)),
        seconds=time.perf_counter() - start,
    )


def check_comparable(model: Manifest, other: Manifest) -> None:
    """Check that both models give embeddings of one width.

    Raises:
        UsageError: they don't.
    """
    for manifest in (model, other):
        check_names(manifest, ["embedding"])
    if model.embedding_width != other.embedding_width:
        raise UsageError(
            f"{model.files.model.name} embeds in {model.embedding_width} numbers, {other.files.model.name} "
            f"in {other.embedding_width}: embeddings of two widths can't be compared"
        )


def _check_clusters(clusters: int | None, pictures: int) -> None:
    if clusters is not None and clusters > pictures:
        raise UsageError(f"--k {clusters}: there are only {pictures} pictures; choose no more")


def differences(model: Manifest, other: Manifest) -> list[str]:
    """The options in which two models differ, beyond precision and packaging: `pooling (cls, cls+mean)`."""
    mine, theirs = (
        {**one.options.model_dump(), "fit": one.preprocessing.fit, "weights_sha256": one.model.weights.sha256}
        for one in (model, other)
    )
    return [
        f"{name} ({_shown(mine[name])}, {_shown(theirs[name])})"
        for name in mine
        if name not in _SAME_MODEL and mine[name] != theirs[name]
    ]


def _shown(value: object) -> str:
    """An option's value in few words."""
    if isinstance(value, dict):  # the method
        given = [one for one in value.values() if one is not None]
        return " ".join(",".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in given)
    return str(value)[:_SHOWN] if value is not None else "none"


@dataclass
class _Both:
    """The embeddings of the pictures by both models."""

    pictures: list[str]
    unreadable: list[Unreadable]
    got: Float32
    expected: Float32
    samples: list[tuple[str, Array]]
    """Up to `SAMPLES` pictures with finite embeddings, spread over all, and the model's input of each."""
    notes: Counter[Note] = field(default_factory=Counter)


def _embed(model: Session, other: Session, entries: Iterable[Entry], total: int, progress: Progress) -> _Both:
    """Embed the pictures with both models, each decoded once."""
    hows = (model.manifest.preprocessing, other.manifest.preprocessing)
    size = max(chosen_batch(one.manifest, None) for one in (model, other))
    both = _Both([], [], np.empty(0, np.float32), np.empty(0, np.float32), [])
    pieces: list[tuple[Float32, Float32]] = []
    marks = [total * number // SAMPLES for number in range(SAMPLES)]
    rest = iter(entries)
    notes: list[Note] = []
    with ThreadPoolExecutor(usable_cores(), "itae-decode") as pool:
        while chunk := list(itertools.islice(rest, size)):
            read = list(pool.map(functools.partial(_read, hows=hows, on_note=notes.append), chunk))
            both.unreadable += [one for one in read if isinstance(one, Unreadable)]
            good = [
                (location(entry.root, entry.path), one)
                for entry, one in zip(chunk, read, strict=True)
                if not isinstance(one, Unreadable)
            ]
            if good:
                inputs = [np.stack([one[side] for _, one in good]) for side in (0, 1)]
                pieces.append((_run(model, inputs[0]), _run(other, inputs[1])))
                both.pictures += [name for name, _ in good]
                for (name, one), vector in zip(good, pieces[-1][0], strict=True):
                    if marks and len(both.pictures) + len(both.unreadable) > marks[0] and np.isfinite(vector).all():
                        both.samples.append((name, one[0]))
                        marks.pop(0)
            progress.show(len(both.pictures), 0, len(both.unreadable))
    both.notes.update(notes)
    if pieces:
        both.got, both.expected = (np.concatenate([piece[side] for piece in pieces]) for side in (0, 1))
    return both


def _read(entry: Entry, hows: Sequence[Preprocessing], on_note: OnNote) -> tuple[Array, ...] | Unreadable:
    """A picture as the input of each model; the only function here that opens a picture."""
    if isinstance(entry, Unreadable):
        return entry
    try:
        image = load_item(entry, on_note=on_note)
        first = preprocess(image, hows[0])
        return first, first if hows[1] == hows[0] else preprocess(image, hows[1])
    except InputError as error:
        return Unreadable(entry.root, entry.path, str(error))


def _run(session: Session, inputs: Array) -> Float32:
    """Embeddings (n, C) of what the model takes, NaN and infinity as they come: those are a finding here."""
    batches = slices(inputs, chosen_batch(session.manifest, None))
    return np.concatenate([got["embedding"] for got in stream_padded(session, batches, ["embedding"])])


def _check_batches(model: Session, samples: Sequence[Array], limits: Limits) -> BatchInvariance | str | None:
    """Run a few pictures alone and in batches.

    The distances of their norms to the thresholds are not known. So with ITAE each picture may be borderline, and up
    to half of them may be off; a fault of a backend shows in more of them.
    """
    if not samples:
        return None
    options = model.manifest.options
    norms = (len(samples), len(options.method.layers), model.manifest.patches)
    unknown = Golden(
        input=np.stack(samples),
        embedding=np.zeros((len(samples), model.manifest.embedding_width), np.float32),
        flags=np.zeros(norms, np.bool_),
        flag_distance=np.zeros(norms, np.float32),
    )
    margin = PARITY_LIMITS[options.precision].flag_margin
    held_to = ParityLimits(max_abs=None, min_cosine=None, flag_margin=margin, batch_distance=limits.max_batch_distance)
    try:
        return check_batches(model, unknown, held_to)
    except CheckError as error:
        return one_line(error)
