"""A run that is killed at random moments and started again ends with the rows of one that was not."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from runtime.store import Store

KILLS = 24
IMAGES = 240

RUN = (
    "import sys, time\n"
    "from runtime.store import growing_parts, writer\n"
    "writer.FLUSH_ROWS, growing_parts.PART_ROWS = 8, 64\n"
    "from runtime.embedding import stream\n"
    "real = stream.load_item\n"
    "stream.load_item = lambda *rest: (time.sleep(0.004), real(*rest))[1]\n"
    "from runtime.__main__ import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
"""The command with parts so small, and pictures so slow, that a kill meets it at work."""


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    for number in range(0, IMAGES, 40):
        (folder / f"{number:03}-bad.png").write_bytes(b"no picture")
    return folder


def written(out) -> int:
    """How much of the store is on disk; it only grows."""
    return sum(path.stat().st_size for path in out.glob("part-*.parquet")) if out.exists() else 0


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tiny, many, tmp_path) -> None:
    def start(out) -> subprocess.Popen:
        command = [sys.executable, "-c", RUN, "embed", tiny, many, "--out", out, "--workers", "1"]
        return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    _, said = whole.communicate(timeout=60)
    assert whole.returncode == 0, said
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(Store(tmp_path / "whole")) == IMAGES

    rng = random.Random(3)
    kills = partial = 0
    for round_ in range(100):
        out = tmp_path / str(round_)
        while True:
            before = written(out)
            process = start(out)
            # A third is killed while it loads and lists, the others while rows are written.
            at_work = rng.random() < 2 / 3
            while process.poll() is None and (written(out) == before if at_work else not out.exists()):
                time.sleep(0.002)
            if kills < KILLS:
                time.sleep(rng.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
            _, said = process.communicate(timeout=60)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
            kills += 1
            partial += written(out) != before
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
        if kills >= KILLS:
            break
    assert kills >= KILLS
    assert partial > KILLS // 3  # so that it was killed at work, not always before
