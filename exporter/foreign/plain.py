"""The proof of a plain file, `--no-itae`: the new file gives what the untouched graph gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exporter.foreign.probe import Array, Arrays, Probe
from exporter.foreign.replica import ROUNDING, Proof, Replica, check_close, precision_of
from exporter.foreign.survey import Survey, feeds_for


def prove_plain(
    one: Survey, probe: Probe, prefix: int, run: Callable[[Arrays], Arrays], pictures: Callable[[int], Array]
) -> tuple[Proof, Arrays, Replica]:
    """Compare the new file with the untouched graph.

    Args:
        one: the survey of the untouched graph.
        probe: of the untouched graph.
        prefix: number of tokens before the patches.
        run: the outputs of the new file for some inputs.
        pictures: gives B seeded pictures as the graph takes them.

    Returns:
        The comparison; its inputs and the results of the untouched graph, which are the golden sample.

    Raises:
        ParityError: an output differs by more than rounding.
    """
    assert one.image_size is not None
    noise = pictures(0)
    batch = len(noise)
    feeds = feeds_for(one, one.image_size, batch, noise)
    want = probe.run(feeds, [tensor.name for tensor in one.outputs])
    got = run(feeds)
    off = check_close(want, got, one, "the new file")
    patches = one.backbone[0].tokens - prefix - one.behind
    none = np.zeros((batch, 0, patches))
    cosine = min((_cosine(want[name], got[name]) for name in want if want[name].dtype.kind == "f"), default=1.0)
    proof = Proof(
        threshold=None, images=batch, flagged=0, patches=0, max_abs=off, min_cosine=cosine,
        limit=ROUNDING[precision_of(one)], effect=0.0, is_telling=True, margins=(),
    )  # fmt: skip
    return proof, feeds, Replica(want, none.astype(np.bool_), none, none, 0.0)


def _cosine(want: Array, got: Array) -> float:
    """The cosine of two outputs as wholes; 1 where one of them is zero, so that no direction is known."""
    a, b = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 1.0
