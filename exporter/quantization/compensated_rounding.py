"""Rounding of weights to int8, in which later input channels make up for the errors of earlier ones.

Each channel's rounding error goes, as far as it can, into the weights of the channels that are not rounded yet and that
are correlated with it (GPTQ, arXiv 2210.17323). The values stay int8 with the same scales: a model pays nothing for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, lapack

Float32 = npt.NDArray[np.float32]
DAMPING = 0.01
"""Share of the mean square of a channel that is added to every channel's: tokens not seen are a little different."""
SMALLEST_POWER = 1e-30
BLOCK = 128
"""Channels that are rounded before the rest of the matrix is updated."""


@dataclass(frozen=True)
class Moments:
    """How the channels that a layer reads are correlated."""

    order: npt.NDArray[np.intp]
    """(C,): the channels in the order in which they are rounded, the largest first."""
    factor: Float32
    """(C, C): upper Cholesky factor of the inverse of the second moments, in that order."""

    @classmethod
    def of(cls, tokens: Float32) -> Moments:
        """Compute them from what a layer reads, (n, C)."""
        moments = (tokens.T @ tokens / len(tokens)).astype(np.float64)
        power = np.diagonal(moments)
        order = np.argsort(-power, kind="stable")
        damping = DAMPING * max(float(power.mean()), SMALLEST_POWER)
        backwards = moments[np.ix_(order[::-1], order[::-1])]
        backwards[np.diag_indices_from(backwards)] += damping
        # M = R R', R upper, is the Cholesky factor of M backwards, backwards. So M⁻¹ = U'U with U = R⁻¹.
        inverse, _ = lapack.dtrtri(cholesky(backwards, lower=True, check_finite=False), lower=1)
        return cls(order, np.ascontiguousarray(inverse[::-1, ::-1], np.float32))


def round_to_int8(weight: Float32, scales: Float32, moments: Moments) -> npt.NDArray[np.int8]:
    """The int8 values of a matrix (C_in, C_out) with scales (C_out,), from -127 to 127."""
    left = (weight / scales)[moments.order]
    result = np.empty(weight.shape, np.int8)
    factor, C = moments.factor, len(left)
    for start in range(0, C, BLOCK):
        end = min(start + BLOCK, C)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for row in range(start, end):
            whole = np.clip(np.rint(left[row]), -127, 127)
            result[moments.order[row]] = whole
            error = errors[row - start] = (left[row] - whole) / factor[row, row]
            left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
        left[end:] -= factor[start:end, end:].T @ errors
    return result
