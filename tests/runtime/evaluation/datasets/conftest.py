"""Data sets in their official layouts, byte by byte, with random pixels."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pack(folder: Path, out: Path, mode: str = "w:gz") -> Path:
    """A tar of a folder, under the folder's own name, as the official archives are."""
    with tarfile.open(out, mode) as tar:
        tar.add(folder, folder.name)
    return out


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory) -> Path:
    """`cifar-10-batches-bin`: 10,000 records of a label and 3,072 bytes; 10 names and an empty line, as published."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (10_000, 3_073), np.uint8)
    records[:, 0] = rng.permutation(np.repeat(np.arange(10), 1_000))
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("".join(f"{name}\n" for name in CIFAR10_NAMES) + "\n")
    (folder / "readme.html").write_text('<meta HTTP-EQUIV="REFRESH">')
    return folder


@pytest.fixture(scope="session")
def cifar100_folder(tmp_path_factory) -> Path:
    """`cifar-100-binary`: records of a coarse label, a fine label and 3,072 bytes."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-100-binary"
    folder.mkdir()
    records = np.random.default_rng(1).integers(0, 256, (10_000, 3_074), np.uint8)
    records[:, 1] = np.arange(10_000) % 100
    records[:, 0] = records[:, 1] // 5
    (folder / "test.bin").write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("".join(f"fine_{number}\n" for number in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse_{number}\n" for number in range(20)))
    return folder


@pytest.fixture(name="pack", scope="session")
def _pack():
    return pack


@pytest.fixture
def link(tmp_path):
    """A copy of a folder whose files are links, so that one can be replaced in a test of its own."""

    def make(folder: Path) -> Path:
        made = tmp_path / folder.name
        made.mkdir()
        for path in folder.iterdir():
            (made / path.name).symlink_to(path)
        return made

    return make
