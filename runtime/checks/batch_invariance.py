"""Batch invariance: an image gives the same vectors in every row, at every batch size, beside any neighbours.

Engines are known to fail this silently. Images of the golden sample are run alone, then in batches of several sizes
among each other and beside unlike pictures; every row is compared with the result of its image alone. Whether that
result is right is checked elsewhere, by parity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.backends.session import Array, Arrays, Session, batch_limits
from runtime.contract.golden import Golden
from runtime.contract.manifest import Manifest, ParityLimits

SMALL_BATCHES = (2, 3)
"""Batch sizes that are run beside the model's smallest, an odd one, its preferred and its largest."""
SAMPLES = 4
"""Largest number of golden samples that are used."""
STRANGERS = 2
"""Number of pictures unlike any golden sample; rows of a batch that hold them are not compared."""

Batch = tuple[int, ...]
"""The number of the golden sample in each row; a negative number is a stranger."""


@dataclass(frozen=True)
class BatchInvariance:
    """The difference between rows of batches and the same images alone. The figures leave out borderline samples."""

    sizes: tuple[int, ...]
    """Batch sizes that were run. An image counts as alone in a batch of the smallest size that it fills."""
    rows: int
    """Number of rows that were compared; 0 if the model takes one image at a time."""
    distance: float
    """Largest distance of an embedding or patch token to that of its image alone, as a share of its length. An output
    that is the model's own counts as one vector."""
    norm_relative: float
    """Largest relative difference of `artifact_norm`; 0 if it is no output."""
    flags_differing: int
    """Number of flags that differ, over all rows, borderline samples included."""
    borderline: tuple[int, ...]
    """Samples that are off by a flag inside the precision's margin of its threshold; at most half of those used."""
    failures: tuple[str, ...]
    """The reasons why the model did not pass; empty if it passed."""


@dataclass(frozen=True)
class _Row:
    """The difference between one row of a batch and its image alone; the figures are as in `BatchInvariance`."""

    batch: Batch
    number: int
    distance: float
    norm_relative: float
    flags: int
    flag_distance: float
    """Largest distance to the threshold of a flag that differs, in the first chosen layer that has one."""

    @property
    def sample(self) -> int:
        return self.batch[self.number]


def check_batches(session: Session, golden: Golden, limits: ParityLimits) -> BatchInvariance:
    """Run golden samples alone and in batches, and compare each row with the result of its image alone.

    Raises:
        CheckError, BackendError: as `Session.run`.
    """
    smallest, sizes = _sizes(session.manifest)
    if not sizes:
        return BatchInvariance((1,), 0, 0.0, 0.0, 0, (), ())
    chosen = np.argsort(-_margins(golden), kind="stable")[:SAMPLES].tolist()  # those with the clearest flags
    replay = _Replay(session, golden, limits)
    rows = [row for sample in chosen for row in replay.rows((sample,) * smallest)]
    rows += [row for batch in _mixed_batches(chosen, sizes) for row in replay.rows(batch)]
    off = [row for row in rows if replay.is_off(row)]
    borderline = replay.borderline(off)[: len(chosen) // 2]
    kept = [row for row in rows if row.sample not in borderline]
    wrong = [row for row in off if row.sample not in borderline]
    return BatchInvariance(
        sizes=tuple(sorted({smallest, *sizes})),
        rows=len(rows),
        distance=max(row.distance for row in kept),
        norm_relative=max(row.norm_relative for row in kept),
        flags_differing=sum(row.flags for row in rows),
        borderline=tuple(sorted(borderline)),
        failures=(f"{replay.explain(wrong)}; {len(wrong)} of {len(rows)} rows are off",) if wrong else (),
    )


def _sizes(manifest: Manifest) -> tuple[int, list[int]]:
    """The smallest batch that the model takes, and the sizes above 1 to run."""
    smallest, preferred, largest = batch_limits(manifest)
    odd = smallest | 1  # where 3 is smaller than the profile allows
    wanted = {*SMALL_BATCHES, smallest, odd, preferred, largest or preferred}
    return smallest, sorted(size for size in wanted if max(smallest, 2) <= size <= (largest or size))


def _mixed_batches(samples: list[int], sizes: list[int]) -> list[Batch]:
    """Batches to run: the largest size with a sample in each row, the smaller ones with strangers in every third row.

    If there is only one size, it is run in both ways.
    """
    batches: list[Batch] = []
    for size in sizes[:-1] or sizes:
        rows = [samples[(row + size) % len(samples)] for row in range(size)]
        rows[::3] = [-1 - (one + size) % STRANGERS for one in range(len(rows[::3]))]
        batches.append(tuple(rows))
    return [*batches, tuple(samples[(row + 1) % len(samples)] for row in range(sizes[-1]))]


def _margins(golden: Golden) -> Array:
    """(N,): the smallest distance of a norm of each sample to its threshold; infinity without ITAE."""
    return np.asarray(golden.flag_distance.reshape(len(golden.input), -1).min(axis=1, initial=np.inf))


class _Replay:
    """Runs batches of golden samples and strangers, and judges each row by the result of its image alone."""

    def __init__(self, session: Session, golden: Golden, limits: ParityLimits) -> None:
        self._session = session
        self._golden = golden
        self._limits = limits
        self._margin = limits.flag_margin or 0.0
        self._smallest = batch_limits(session.manifest)[0]
        self._alone: dict[int, Arrays] = {}
        low, high = golden.input.min(), golden.input.max()
        loud = np.random.default_rng(0).choice(np.array([low, high]), golden.input.shape[1:])
        self._strangers: list[Array] = [np.full_like(golden.input[0], low), loud]
        assert len(self._strangers) == STRANGERS

    def rows(self, batch: Batch) -> list[_Row]:
        """Run a batch and compare its rows. Each sample's first batch must be the one that counts as alone."""
        images = [self._golden.input[one] if one >= 0 else self._strangers[-1 - one] for one in batch]
        outputs = self._session.run(np.stack(images))
        rows = []
        for number, sample in enumerate(batch):
            got = {name: array[number] for name, array in outputs.items()}
            if sample in self._alone:
                rows.append(self._compare(batch, number, got, self._alone[sample]))
            elif sample >= 0:
                self._alone[sample] = got
        return rows

    def _compare(self, batch: Batch, number: int, got: Arrays, alone: Arrays) -> _Row:
        flags, flag_distance, layers = 0, 0.0, None
        if "artifact_mask" in got and (flags := int((off := got["artifact_mask"] != alone["artifact_mask"]).sum())):
            # In the first chosen layer that differs: a flag there changes the norms of every later one. off: (K, P)
            layer = int(np.flatnonzero(off.any(axis=1))[0])
            flag_distance = float(self._golden.flag_distance[batch[number], layer][off[layer]].max())
            layers = layer + 1
        vectors = [_distance(got[name], alone[name]) for name in ("embedding", "patch_tokens") if name in got]
        vectors += [_distance(got[name].ravel(), alone[name].ravel()) for name in self._golden.own if name in got]
        norm_relative = 0.0
        if "artifact_norm" in got:
            norms, expected = (one["artifact_norm"][:layers, :, None] for one in (got, alone))
            norm_relative = _distance(norms, expected)
        return _Row(batch, number, max(vectors, default=0.0), norm_relative, flags, flag_distance)

    def is_off(self, row: _Row) -> bool:
        """Whether a row misses a limit, or has a differing flag whose norm is outside the margin of its threshold."""
        limits = self._limits
        far = limits.batch_distance is not None and not row.distance <= limits.batch_distance
        norm = limits.flag_margin is not None and not row.norm_relative <= limits.flag_margin
        return far or norm or self._has_clear_flag(row)

    def _has_clear_flag(self, row: _Row) -> bool:
        return row.flags > 0 and row.flag_distance > self._margin

    def borderline(self, off: list[_Row]) -> list[int]:
        """The samples whose rows are off in a way that a flag near its threshold can explain, the farthest first."""
        sees_flags = "artifact_mask" in self._session.manifest.output_names()
        unclear = _margins(self._golden) <= self._margin

        def explained(row: _Row) -> bool:
            return bool(row.flags) and not self._has_clear_flag(row) if sees_flags else bool(unclear[row.sample])

        farthest = [row.sample for row in sorted(off, key=lambda row: row.distance, reverse=True)]
        unexplained = {row.sample for row in off if not explained(row)}
        return [sample for sample in dict.fromkeys(farthest) if sample not in unexplained]

    def explain(self, wrong: list[_Row]) -> str:
        """Describe the worst of the rows that are off, and what it depends on, which a few more runs find out."""
        worst = max(wrong, key=lambda row: (self._has_clear_flag(row), row.distance, row.norm_relative))
        what = f"its vectors are {worst.distance:.3g} of their length away, limit {self._limits.batch_distance}"
        if worst.norm_relative:
            what += f", its norms {worst.norm_relative:.3g} of themselves"
        if worst.flags:
            what += f", {worst.flags} flags differ"
        return (
            f"sample {worst.sample} in row {worst.number} of a batch of {len(worst.batch)} is not what it is alone, "
            f"it depends on {self._cause(worst)}: {what}"
        )

    def _cause(self, worst: _Row) -> str:
        """Find what makes `worst` differ, by going from the image alone to its batch one change at a time."""
        alone = (worst.sample,) * self._smallest
        filled = (worst.sample,) * len(worst.batch)
        if self.is_off(self.rows(alone)[0]):
            return "the run: two of the same batch differ"
        rows = self.rows(filled)
        if self.is_off(rows[0]):
            return "the batch's size"
        return "the row" if self.is_off(rows[worst.number]) else "its neighbours"


def _distance(a: Array, b: Array) -> float:
    """Largest length of the difference of two vectors (..., C), as a share of the second's, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(b, axis=-1), 1e-30)
    return float((np.linalg.norm(a - b, axis=-1) / lengths).max())
