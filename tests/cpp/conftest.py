"""Small models in DINOv2's true architecture, exported in every form, and pictures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cpp_programs import program
from PIL import Image
from rehash import rehash
from traces import traced_once

from exporter import ExportSpec, ItaeConfig, export
from exporter.models.architecture import Architecture
from runtime.contract.manifest import record_file
from scripts.planting.pictures import write_noise

TINY = Architecture("tiny", width=48, heads=3, depth=2)
EVERY_OUTPUT = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
FORMS = {
    "float32": {},
    "uint8": {"input": "uint8"},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8", "min_cosine": 0.99},
    "every output": {"itae": ItaeConfig(), "outputs": EVERY_OUTPUT},
}


def exported(kept: Path, path: Path, **options: Any) -> Path:
    """A small model; all of them have the same weights, which are traced once."""
    with traced_once(kept):
        export(ExportSpec(str(path), size=TINY, image_size=(42, 56), weights="random:3", parity_samples=2, **options))
    return path


@pytest.fixture(scope="session", params=[*FORMS, "external data"])
def model(request, tmp_path_factory, kept_traces) -> Path:
    """A model in one of the forms that the exporter writes."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "m.onnx"
    options = dict(FORMS.get(request.param, {}))
    if request.param == "int8":
        options["calibrate_images"] = write_noise(folder / "calibration", 32, 64)
    exported(kept_traces, path, **options)
    if request.param == "external data":
        data = path.with_name("m.onnx.data")
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=100)
        rehash(path, external_data=record_file(data))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, kept_traces) -> Path:
    """The float32 model alone."""
    return exported(kept_traces, tmp_path_factory.mktemp("tiny") / "m.onnx")


@pytest.fixture(scope="session")
def unflagged(tmp_path_factory, kept_traces) -> Path:
    """A model whose threshold no patch of its golden sample reaches."""
    itae = ItaeConfig(threshold="absolute:1e9", side="high")
    return exported(kept_traces, tmp_path_factory.mktemp("unflagged") / "m.onnx", itae=itae)


@pytest.fixture
def own(tiny, tmp_path) -> Path:
    """A copy of the float32 model that a test may alter."""
    return Path(shutil.copytree(tiny.parent, tmp_path / "own")) / tiny.name


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of ten pictures of odd sizes, in the formats that C++ reads."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(10):
        small = Image.fromarray(rng.integers(0, 256, (5 + number, 9, 3), dtype=np.uint8))
        suffix = ("jpg", "png", "webp")[number % 3]
        small.resize((61 + 17 * number, 97 + 5 * number)).save(folder / f"{number}.{suffix}")
    return folder


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Call `itae-embed`; the result's `returncode`, `stdout` and `stderr`."""
    command = program("itae-embed")

    def call(*arguments: object, **rest: object) -> subprocess.CompletedProcess[bytes]:
        words: Sequence[str | bytes] = [one if isinstance(one, bytes) else str(one) for one in arguments]
        return subprocess.run([command, *words], capture_output=True, timeout=120, check=False, **rest)  # type: ignore[call-overload]

    return call
