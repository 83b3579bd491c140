"""Where k-means holds its points on a GPU: torch does what costs time, `lloyd` is the same as on the CPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.clustering.points import NEAR, NEAR_PAIRS, Float32, Float64, Int32, SquaredFrom, check_squares, score_bias
from runtime.clustering.threads import blocks
from runtime.contract.errors import BackendError, one_line

ROWS = 8192
"""Points that are compared with the centroids at a time: what exists of n times k numbers."""


class TorchPoints:
    """n points (n, C) float32 on a torch device, whose scores are float32 (no TF32) and whose sums are float64.

    Sums are added in a fixed order: the same points and labels give the same bits on the same device.
    """

    def __init__(self, points: Float32, device: str) -> None:
        """Copy the points there.

        Raises:
            BackendError: torch is missing or sees no such device, it can't be used, or lacks memory for the points.
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise BackendError(
                f"--device {device} needs PyTorch, which is not installed: pip install torch, or leave --device out"
            ) from error
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError(f"--device {device}: PyTorch {torch.__version__} sees no CUDA device here; leave it out")
        number = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and number >= torch.cuda.device_count():
            raise BackendError(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices")
        self._torch = torch
        self._device = torch.device("cpu" if device == "torch-cpu" else device)
        with self._translated():
            try:
                self._points = torch.from_numpy(np.ascontiguousarray(points)).to(self._device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # of a driver, or of a GPU that another process holds
                raise BackendError(f"--device {device} can't be used ({one_line(error)}); leave it out") from error

    def __len__(self) -> int:
        return len(self._points)

    def nearest(self, centroids: Float64) -> Int32:  # noqa: D102
        origin = centroids.mean(axis=0)  # as points.nearest
        shifted = centroids - origin
        labels = np.empty(len(self), np.int32)
        with self._translated(), self._full_float32():
            weights = self._tensor((-2 * shifted.T).astype(np.float32))  # (C, k)
            bias = self._tensor(score_bias(shifted, origin))
            for rows in self._blocks():
                scores = self._torch.addmm(bias, self._points[rows], weights)
                labels[rows] = scores.argmin(dim=1).cpu().numpy()
        return labels

    def distances_to(self, centroids: Float64, labels: Int32) -> Float64:  # noqa: D102
        distances = np.empty(len(self))
        with self._translated():
            means = self._tensor(centroids)
            for rows in self._blocks():
                own = means[self._tensor(labels[rows].astype(np.int64))]
                distances[rows] = (self._points[rows] - own).square().sum(dim=1).sqrt().cpu().numpy()
        return distances

    def add_rows(self, sums: Float64, labels: Int32, rows: npt.NDArray[np.intp], sign: int) -> None:  # noqa: D102
        with self._translated():
            total = self._torch.zeros(sums.shape, dtype=self._torch.float64, device=self._device)
            for begin in range(0, len(rows), ROWS):
                chosen = rows[begin : begin + ROWS]
                points = self._points[self._tensor(chosen)].double()
                with self._same_order():
                    total.index_add_(0, self._tensor(labels[chosen].astype(np.int64)), points)
            sums += sign * total.cpu().numpy()

    def rows(self, rows: npt.NDArray[np.intp]) -> Float64:  # noqa: D102
        found: Float64 = self._points[self._tensor(rows)].cpu().numpy().astype(np.float64)
        return found

    def choose(self, rows: npt.NDArray[np.intp]) -> TorchPoints:  # noqa: D102
        chosen = copy.copy(self)
        with self._translated():
            chosen._points = self._points[self._tensor(rows)]
        return chosen

    def spread(self) -> float:  # noqa: D102
        with self._translated():
            mean = self._mean()
            return float(sum((self._points[rows] - mean).square().sum() for rows in self._blocks())) / len(self)

    def squared_from(self) -> SquaredFrom:  # noqa: D102
        with self._translated():
            points = self._points - self._mean().float()
            squares = self._torch.cat([points[rows].double().square().sum(dim=1) for rows in self._blocks()])
            check_squares(float(squares.max()))
            norms = squares.float()

        def compute(rows: npt.NDArray[np.integer]) -> Float32:
            squared = np.empty((len(rows), len(self)), np.float32)
            with self._translated(), self._full_float32():
                chosen = self._tensor(rows)
                some, some_norms = points[chosen], norms[chosen][:, None]
                for part in self._blocks():
                    scale = some_norms + norms[part]
                    found = self._torch.addmm(scale, some, points[part].T, alpha=-2)
                    near = (found < NEAR * scale).nonzero()
                    for pairs in blocks(len(near), NEAR_PAIRS):
                        one, other = near[pairs].T
                        found[one, other] = (points[part][other].double() - some[one]).square().sum(dim=1).float()
                    squared[:, part] = found.cpu().numpy()
            return squared

        return compute

    def _mean(self) -> Any:  # noqa: ANN401  # torch.Tensor
        """The mean of the points, (C,) float64."""
        return sum(self._points[rows].sum(dim=0, dtype=self._torch.float64) for rows in self._blocks()) / len(self)

    def _tensor(self, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401  # torch.Tensor, which must not be imported here
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _blocks(self) -> list[slice]:
        return blocks(len(self), ROWS)

    @contextlib.contextmanager
    def _full_float32(self) -> Iterator[None]:
        """Keep TF32 out, whose 10 bits would move points to other clusters."""
        before = self._torch.get_float32_matmul_precision()
        self._torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            self._torch.set_float32_matmul_precision(before)

    @contextlib.contextmanager
    def _same_order(self) -> Iterator[None]:
        """Have `index_add_` on a GPU sort before it adds: its atomic additions come in any order.

        Not around the matrix products: there torch would ask for an environment variable that a default build of
        cuBLAS, with one stream, doesn't need.
        """
        before = self._torch.are_deterministic_algorithms_enabled()
        self._torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            self._torch.use_deterministic_algorithms(before)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate a lack of GPU memory into a `BackendError`."""
        try:
            yield
        except self._torch.OutOfMemoryError as error:
            raise BackendError(
                f"{self._device} has no memory for these embeddings ({one_line(error)}); leave --device out"
            ) from error
