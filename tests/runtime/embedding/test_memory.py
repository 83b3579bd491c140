"""Memory of a run does not grow with the number of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.store import Store

MEGABYTE = 1 << 20
GROWTH = 30 * MEGABYTE
"""Of names (150 bytes an image) and of a part that fills: far below what 9,000 decoded images take."""


RUN = (
    "import re, sys\n"
    "from runtime.__main__ import main\n"
    "code = main(sys.argv[1:])\n"
    "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
    "sys.exit(code)\n"
)


def peak(tiny, folder, out) -> int:
    """Bytes that the command took at most; not by getrusage, which counts what this process had when it forked."""
    command = [sys.executable, "-c", RUN, "embed", tiny, folder, "--out", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
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
