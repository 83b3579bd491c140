"""The base of both kinds of models: a program of Triton's Python backend that runs several requests as one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import BackendError, ItaeError, UsageError, one_line

Arguments = dict[str, str]
"""The arguments of `initialize`, as Triton gives them."""
Array = npt.NDArray[Any]


@dataclass
class Asked:
    """A request on its way."""

    names: tuple[str, ...]
    """The outputs that it asks for."""
    inputs: Array
    """(n, ...), as the model takes them, or what becomes that by `BatchedModel.prepare`."""
    response: Any = None
    """None until the request is answered or refused."""


class BatchedModel(ABC):
    """The class that Triton calls; see https://github.com/triton-inference-server/python_backend."""

    def __init__(self) -> None:
        """Check that numpy works with this Triton.

        Raises:
            BackendError: its outputs would be empty.
        """
        self.utils = _backend_utils()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests of a batch together; a request that can't be run gets an error, and no other does."""
        asked = [self._asked(request) for request in requests]
        self.prepare([one for one in asked if one.response is None])
        good = [one for one in asked if one.response is None]
        if good and not self._run(good):
            for one in good:  # one of them makes the model give NaN, or fail: find out which
                self._run([one])
        return [one.response for one in asked]

    @abstractmethod
    def read(self, request: Any) -> Asked:  # noqa: ANN401
        """The inputs of a request, and the outputs that it asks for.

        Raises:
            InputError: it can't be run.
        """

    def prepare(self, asked: Sequence[Asked]) -> None:  # noqa: B027  # nothing to do for most
        """Make the inputs of several requests ready for the model; those that can't be get their response."""

    @abstractmethod
    def compute(self, inputs: Array, names: Sequence[str]) -> dict[str, Array]:
        """The outputs (n, ...) of inputs (n, ...), by name.

        Raises:
            ItaeError: the model refuses the inputs, or fails.
        """

    def refuse(self, error: Exception) -> Any:  # noqa: ANN401
        """The response to a request that failed: the text of our errors, and of others no more than the type."""
        codes = self.utils.TritonError
        if isinstance(error, ItaeError):
            code = codes.INTERNAL if isinstance(error, BackendError | UsageError) else codes.INVALID_ARG
            return self.utils.InferenceResponse(error=codes(one_line(error), code))
        self.utils.Logger.log_error(f"itae: {type(error).__name__}: {one_line(error)}")
        text = f"the server failed ({type(error).__name__}); see its log"
        return self.utils.InferenceResponse(error=codes(text, codes.INTERNAL))

    def _asked(self, request: Any) -> Asked:  # noqa: ANN401
        try:
            return self.read(request)
        except Exception as error:  # whatever a client sends, Triton goes on
            return Asked((), np.empty(0), self.refuse(error))

    def _run(self, asked: Sequence[Asked]) -> bool:
        """Run requests as one batch and make their responses; returns whether it worked.

        A single request gets its response in any case.
        """
        names = tuple(dict.fromkeys(name for one in asked for name in one.names))
        try:
            inputs = asked[0].inputs if len(asked) == 1 else np.concatenate([one.inputs for one in asked])
            found = self.compute(inputs, names)
        except Exception as error:  # the same
            if len(asked) == 1:
                asked[0].response = self.refuse(error)
            return False
        start = 0
        for one in asked:
            end = start + len(one.inputs)
            tensors = [self.utils.Tensor(name, np.ascontiguousarray(found[name][start:end])) for name in one.names]
            one.response = self.utils.InferenceResponse(output_tensors=tensors)
            start = end
        return True


def version_folder(arguments: Arguments) -> Path:
    """The folder of the version that is being loaded."""
    return Path(arguments["model_repository"]) / arguments["model_version"]


def _backend_utils() -> Any:  # noqa: ANN401  # it ships no types
    """Triton's module for Python models, after a check that numpy works with it; raises BackendError."""
    import triton_python_backend_utils as utils

    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return utils
    # A backend that was built for numpy 1 gives empty outputs with numpy 2, and reads inputs wrongly, without an error.
    probe = np.arange(6, dtype=np.float32).reshape(2, 3)
    try:
        works = bool((utils.Tensor.from_dlpack("probe", probe).as_numpy() == probe).all())
    except Exception:  # of the binding, of any kind
        works = False
    if not works:
        raise BackendError(
            f"Triton's Python backend does not work with numpy {np.__version__}, its outputs would be empty: "
            "install 'numpy<2' for the Python that Triton runs, or take a newer Triton"
        )
    return utils
