"""A process per device: the same rows as one process, whatever happens to a worker."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from multiprocessing import popen_spawn_posix
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.store import Store


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def by_path(folder) -> dict[str, bytes]:
    rows = Store(folder).read()
    assert len(set(rows.paths)) == len(rows.paths)
    return dict(zip(rows.paths, map(bytes, rows.vectors), strict=True))


def test_two_workers_embed_what_one_process_does(tiny, many, tmp_path, capfd) -> None:
    assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "one")]) == 0
    assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "two"), "--devices", "cpu,cpu"]) == 0
    one, two = by_path(tmp_path / "one"), by_path(tmp_path / "two")
    assert len(one) == 60
    assert one == two
    for name in ("one", "two"):
        assert '"bad.png"' in (tmp_path / name / "_errors.jsonl").read_text()
    assert capfd.readouterr().err.count("1 failed: see") == 2


def test_a_run_may_go_on_with_more_devices(tiny, many, tmp_path) -> None:
    (many / "x").mkdir()
    for path in sorted(many.glob("[3-5]*.png")):
        path.rename(many / "x" / path.name)
    command = ["embed", str(tiny), str(many), "--out", str(tmp_path / "out")]
    assert main(["embed", str(tiny), str(many / "x"), "--out", str(tmp_path / "x")]) == 0
    assert main([*command, "--max-failures", "1"]) == 0
    Image.new("RGB", (9, 9), "red").save(many / "added.png")
    assert main([*command, "--devices", "cpu,cpu"]) == 0
    assert len(by_path(tmp_path / "out")) == 61


def test_an_altered_model_is_refused_as_in_one_process(tiny, many, tmp_path, capfd) -> None:
    data = bytearray(tiny.read_bytes())
    data[-1] ^= 1
    tiny.write_bytes(data)
    said = []
    for devices in ([], ["--devices", "cpu,cpu"]):
        assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "out"), *devices]) == 2
        said.append(capfd.readouterr().err)
        assert not (tmp_path / "out").exists()
    assert said[0] == said[1]
    assert "has not the SHA-256" in said[0]
    assert said[0].count("\n") == 1


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


SLOW = (
    "import sys, time\n"
    "from runtime.store import writer\n"
    "writer.FLUSH_ROWS = 8\n"
    "from runtime.embedding import stream\n"
    "real = stream.load_item\n"
    "stream.load_item = lambda *rest: (time.sleep(0.1), real(*rest))[1]\n"
    "from runtime.__main__ import main\n"
    "if __name__ == '__main__':\n"
    "    sys.exit(main(sys.argv[1:]))\n"
)
"""The command with slow pictures and small flushes, in its workers too: these import the main module anew."""


def start_slow(tmp_path, *arguments) -> subprocess.Popen:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


SPEAKING = (
    "import logging, sys\n"
    "from runtime import backends\n"
    "real = backends.open_session\n"
    "def speaking(*given, **named):\n"
    "    logging.getLogger('runtime.backends.trt').warning('of this model')\n"
    "    logging.getLogger('runtime.backends.trt').warning('of device %s', named['device'])\n"
    "    return real(*given, **named | {'device': 0})\n"
    "backends.open_session = speaking\n"
    "from runtime.__main__ import main\n"
    "if __name__ == '__main__':\n"
    "    sys.exit(main(sys.argv[1:]))\n"
)


def test_what_every_worker_warns_of_is_said_once(tiny, many, tmp_path) -> None:
    script = tmp_path / "speaking.py"
    script.write_text(SPEAKING)
    command = [sys.executable, script, "embed", tiny, many, "--out", tmp_path / "out", "--devices", "cpu,cpu"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stderr.count("of this model") == done.stderr.count("runtime: of this model\n") == 1
    assert done.stderr.count("runtime: of device 0\n") == 1


def workers_of(process: subprocess.Popen) -> list[int]:
    found = []
    for child in children(process.pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def wait_until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers by Linux's /proc")
@pytest.mark.parametrize("victim", ["worker", "parent", "interrupt"])
def test_whoever_is_killed_no_row_is_lost_and_no_process_left(victim, tiny, many, tmp_path) -> None:
    out = tmp_path / "out"
    command = ["embed", tiny, many, "--out", out, "--batch", 4, "--devices", "cpu,cpu"]
    process = start_slow(tmp_path, *command)
    wait_until(lambda: (out / "part-00000.parquet").exists())
    workers = workers_of(process)
    assert len(workers) == 2
    target, number = {
        "worker": (workers[0], signal.SIGKILL),
        "parent": (process.pid, signal.SIGKILL),
        "interrupt": (process.pid, signal.SIGINT),
    }[victim]
    os.kill(target, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {"worker": 2, "parent": -9, "interrupt": 130}[victim]
    if victim == "worker":
        assert "the worker of device cpu died (signal SIGKILL)" in said
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in workers))
    kept = len(Store(out))
    assert 0 < kept < 60
    assert main([str(argument) for argument in command]) == 0
    assert len(by_path(out)) == 60


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers by Linux's /proc")
@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3])
def test_ctrl_c_while_workers_are_started_is_one_line(delay, tiny, many, tmp_path) -> None:
    process = start_slow(tmp_path, "embed", tiny, many, "--out", tmp_path / "out", "--devices", "cpu,cpu")
    wait_until(lambda: workers_of(process))
    time.sleep(delay)  # they import; Python has set its own handler by then
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"runtime: interrupted; the same command goes on with what is in {tmp_path / 'out'}\n"


def test_a_worker_that_cannot_start_is_one_line(tiny, many, tmp_path, monkeypatch, capfd) -> None:
    def start(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", start)
    assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "out"), "--devices", "cpu,cpu"]) == 2
    assert capfd.readouterr().err == "runtime: the worker of device cpu can't be started (Broken pipe)\n"
    assert not (tmp_path / "out").exists()
