"""Memory of a run does not grow with the number of images."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

from runtime.store import Store

MEGABYTE = 1 << 20
GROWTH = 30 * MEGABYTE
"""Of names (150 bytes an image) and of a part that fills: far below what 9,000 decoded images take."""


def peak(tiny, folder, out) -> int:
    """Bytes that the command took at most."""
    command = [sys.executable, "-m", "runtime", "embed", tiny, folder, "--out", out]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_ten_thousand_images_take_the_memory_of_a_thousand(tiny, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    peaks = []
    for count in (1_000, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:05}.png").hardlink_to(tmp_path / "one.png")
        peaks.append(peak(tiny, folder, tmp_path / f"out-{count}"))
        assert len(Store(tmp_path / f"out-{count}")) == count
    assert peaks[1] < peaks[0] + GROWTH, [bytes_ // MEGABYTE for bytes_ in peaks]
