"""A Triton server on this machine's CPU, started by `scripts/serve`, with a repository that `triton` wrote."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from scripts.serving.running import SERVE, children, running

ROOT = SERVE.parents[1]


@pytest.fixture(scope="session")
def installed() -> None:
    """Triton's environment; skips where it can't be installed, unless ITAE_TRITON is `required`."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "triton.lock").open("w") as lock:  # processes of tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([SERVE, "--setup-only"], capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"Triton can't be installed here: {done.stderr.strip().splitlines()[-1]}"
        pytest.fail(why) if os.environ.get("ITAE_TRITON") == "required" else pytest.skip(why)


@dataclass(frozen=True)
class Served:
    """A repository and what it was made of."""

    folder: Path
    model: Path
    """uint8, every output; called `tiny`, with clusters."""
    pictures: Path
    store: Path
    clusters: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory, make_model) -> Served:
    pytest.importorskip("tritonclient.grpc", reason="needs the extra triton: pip install '.[triton]'")
    folder = tmp_path_factory.mktemp("served")
    model = make_model(folder / "models", dtype="uint8", outputs=("embedding", "patch_tokens", "artifact_mask"))
    floats = make_model(folder / "models", "floats.onnx")
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(5)
    for number in range(12):
        pixels = rng.integers(0, 256, (40 + 5 * number, 90 - 3 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}")
    store, clusters, repository = folder / "store", folder / "clusters", folder / "repository"
    assert main(["embed", str(model), str(pictures), "--out", str(store)]) == 0
    assert main(["cluster", str(store), "--k", "3", "--out", str(clusters), "--quiet"]) == 0
    assert main(["triton", str(model), "--out", str(repository), "--centroids", str(clusters)]) == 0
    by_openvino = ("--provider", "openvino", "--threads", "1")
    assert main(["triton", str(floats), "--out", str(repository), *by_openvino]) == 0
    return Served(repository, model, pictures, store, clusters)


@dataclass(frozen=True)
class Running:
    """The server, and the file of its log."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[str]
    log: Path


@pytest.fixture(scope="session")
def server(installed, served, tmp_path_factory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    with running(served.folder, log, "--poll", "1") as found:
        yield Running(found.http, found.grpc, found.metrics, found.process, log)
        pids = children(found.process.pid)
        assert pids
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # Ctrl-C leaves nothing
