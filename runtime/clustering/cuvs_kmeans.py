"""cuVS's k-means on a GPU for the first iterations of a start; the last ones are ours, as everywhere."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.clustering.clusters import Float32, Float64
from runtime.clustering.lloyd import TOLERANCE
from runtime.clustering.torch_points import TorchPoints
from runtime.contract.errors import BackendError, one_line


class CuvsPoints(TorchPoints):
    """n points (n, C) float32 on a CUDA device, where cuVS can move centroids near to their places.

    Its sums are float32 and it leaves empty clusters empty; `lloyd` mends both afterwards.
    """

    def __init__(self, points: Float32, device: str) -> None:
        """Copy the points to `cuvs` or `cuvs:N`.

        Raises:
            BackendError: cuVS is missing, or as `TorchPoints`.
        """
        try:
            self._kmeans: Any = importlib.import_module("cuvs.cluster.kmeans")
            self._error: Any = importlib.import_module("cuvs.common.exceptions").CuvsException
        except ImportError as error:  # also where one of its libraries can't be loaded
            raise BackendError(
                f"--device {device} needs cuVS, which can't be loaded ({one_line(error)}): pip install 'itae[cuvs]', "
                f"or take {device.replace('cuvs', 'cuda')}"
            ) from error
        super().__init__(points, device.replace("cuvs", "cuda"))

    def approach(self, start: Float64, max_iter: int) -> tuple[Float64, int]:
        """Move centroids (k, C) by cuVS's iterations, at most `max_iter`; gives them and how many it took.

        Raises:
            BackendError: the device lacks memory, or cuVS fails.
        """
        parameters = self._kmeans.KMeansParams(
            n_clusters=len(start), init_method="Array", max_iter=max_iter, tol=TOLERANCE, n_init=1
        )
        with self._translated(), self._translated_of_cuvs(), self._torch.cuda.device(self._device):
            centroids = self._tensor(start.astype(np.float32))
            self._torch.cuda.synchronize()  # cuVS has a stream of its own
            found = self._kmeans.fit(parameters, self._points, centroids=centroids)  # in place; it waits for its end
            return centroids.cpu().numpy().astype(np.float64), int(found.n_iter)

    @contextlib.contextmanager
    def _translated_of_cuvs(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise BackendError(
                f"cuVS failed on {self._device} ({one_line(error)[:300]}); take --device cuda, or leave it out"
            ) from error
