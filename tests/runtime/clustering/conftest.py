"""Points where k-means may hold them: numpy's arrays, torch's on the CPU, torch's on a GPU."""

from collections.abc import Callable

import numpy as np
import pytest

from runtime.clustering.points import NumpyPoints, Points
from runtime.clustering.torch_points import TorchPoints

MAKERS: dict[str, Callable[[np.ndarray], Points]] = {
    "numpy": NumpyPoints,
    "torch": lambda points: TorchPoints(points, "torch-cpu"),
    "cuda": lambda points: TorchPoints(points, "cuda"),
}


@pytest.fixture(params=["numpy", "torch", pytest.param("cuda", marks=pytest.mark.gpu)])
def on(request) -> Callable[[np.ndarray], Points]:
    if request.param != "numpy":
        pytest.importorskip("torch")
    return MAKERS[request.param]
