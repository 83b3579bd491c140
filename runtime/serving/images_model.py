"""The model of a repository that takes encoded images: decodes and prepares them, calls the model, gives clusters.

It calls the model by BLS (Business Logic Scripting: a request from one model of the server to another), always the one
version that its record names.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.clustering import assign
from runtime.clustering.points import distances_to, nearest, normalize_rows
from runtime.clustering.results import CENTROIDS
from runtime.contract.errors import BackendError, InputError, ManifestError
from runtime.contract.machine import usable_cores
from runtime.images.decode import decode_image
from runtime.images.preprocess import preprocess
from runtime.serving.images_record import ImagesRecord
from runtime.serving.model_config import CLUSTER, DISTANCE, EMBEDDING, IMAGE
from runtime.serving.stub import Arguments, Array, Asked, BatchedModel, version_folder

_PATIENCE = 60.0
"""Seconds to wait for the version of the model that is called: a server that is updated may load it a little later."""
_POLL = 0.05


class TritonPythonModel(BatchedModel):
    """A version of the model."""

    def initialize(self, arguments: Arguments) -> None:
        """Read the record and the centroids of a version.

        Raises:
            ManifestError: a file is missing or altered.
        """
        folder = version_folder(arguments)
        self._record = ImagesRecord.read(folder)
        self._outputs: tuple[str, ...] = (EMBEDDING,)
        if self._record.centroids_sha256 is not None:
            path = folder / CENTROIDS
            if hashlib.sha256(path.read_bytes()).hexdigest() != self._record.centroids_sha256:
                raise ManifestError(f"{path} was swapped or altered: write the repository again")
            self._centroids = assign.load(path).centroids.astype(np.float64)
            self._outputs = (EMBEDDING, CLUSTER, DISTANCE)
        self._threads = ThreadPoolExecutor(usable_cores(), "decode")

    def read(self, request: Any) -> Asked:  # noqa: ANN401
        """The pictures of a request, (n,) bytes; see `BatchedModel.read`."""
        given = self.utils.get_input_tensor_by_name(request, IMAGE).as_numpy().reshape(-1)
        if not len(given):
            raise InputError("a request of no image: send one or more")
        if not all(isinstance(one, bytes) for one in given):
            raise InputError(f"`{IMAGE}` is the content of picture files, as bytes")
        wanted = set(request.requested_output_names())
        return Asked(tuple(name for name in self._outputs if name in wanted), given)

    def prepare(self, asked: Sequence[Asked]) -> None:
        """Decode the pictures of several requests; a request with a bad one is refused."""
        waiting = [[self._threads.submit(self._one, picture) for picture in one.inputs] for one in asked]
        for one, futures in zip(asked, waiting, strict=True):
            arrays: list[Array] = []
            for number, future in enumerate(futures):
                try:
                    arrays.append(future.result())
                except (InputError, MemoryError) as error:
                    reason = str(error) or "there is not enough memory to decode it"
                    one.response = one.response or self.refuse(InputError(f"image {number}: {reason}"))
            if one.response is None:
                one.inputs = np.stack(arrays)

    def _one(self, picture: bytes) -> Array:
        image = decode_image(picture, self._record.max_pixels, self._record.sixteen_bit)
        return preprocess(image, self._record.preprocessing)

    def compute(self, inputs: Array, names: Sequence[str]) -> dict[str, Array]:
        """Call the model, and assign its embeddings to clusters; see `BatchedModel.compute`.

        Raises:
            InputError: the model refused the inputs; its own words.
            BackendError: the version of the model is not there.
        """
        step = self._record.max_batch
        vectors = np.concatenate([self._called(inputs[at : at + step]) for at in range(0, len(inputs), step)])
        found: dict[str, Array] = {EMBEDDING: vectors}
        if CLUSTER in names or DISTANCE in names:
            points = normalize_rows(vectors) if self._record.metric == "cosine" else vectors
            labels = nearest(points, self._centroids)
            distances = distances_to(points, self._centroids, labels)
            found |= {CLUSTER: labels[:, None].astype(np.int32), DISTANCE: distances[:, None].astype(np.float32)}
        return found

    def _called(self, inputs: Array) -> npt.NDArray[np.float32]:
        """The embeddings (n, C) of inputs (n, ...), n at most the model's largest batch."""
        record, utils = self._record, self.utils
        deadline = time.monotonic() + _PATIENCE
        while True:
            response = utils.InferenceRequest(
                model_name=record.model,
                model_version=record.version,
                requested_output_names=[record.output],
                inputs=[utils.Tensor(record.input, np.ascontiguousarray(inputs))],
                preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
            ).exec()
            if not response.has_error():
                (tensor,) = response.output_tensors()
                return np.asarray(tensor.as_numpy(), np.float32)
            if utils.is_model_ready(record.model, str(record.version)):
                raise InputError(response.error().message())
            if time.monotonic() > deadline:
                raise BackendError(f"version {record.version} of model {record.model} is not loaded")
            time.sleep(_POLL)

    def finalize(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
