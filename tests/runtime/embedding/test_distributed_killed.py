"""`embed --ray` while actors, tasks and a machine are killed: the rows are those of a run that nothing happened to."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_nodes import Driver, cluster, start_another, wait_until

from runtime.__main__ import main
from runtime.store import Store

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.timeout(1800),
]
IMAGES, SIDE = 1000, 500
"""So many, and so large, that decoding them takes seconds."""
OBJECT_STORE = 80 << 20
"""Bytes of each machine."""
SMALL = "from runtime.embedding import distributed_stages; distributed_stages.MOST_IMAGES = 32"
"""Chunks so small that there are many of them."""
AS_ON_GPUS = "; from runtime.embedding import distributed; distributed.uses_gpu = lambda _: True"
"""The steps of a run on GPUs, which Ray believes to be there, on CPUs."""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(5)
    for number in range(40):
        pixels = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels.save(folder / f"{number:04}.jpg")
    for number in range(40, IMAGES):
        os.link(folder / f"{number % 40:04}.jpg", folder / f"{number:04}.jpg")
    for number in range(0, IMAGES, 100):
        (folder / f"{number:04}-bad.png").write_bytes(b"no picture")
    return folder


def kill_one(driver: Driver, nodes, what: str, rng: random.Random) -> bool:
    """Kill the next process that does `what` on any machine; returns whether there was one before the run's end."""
    while driver.is_running():
        if found := [pid for node in nodes for pid in node.workers(what)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                return True
        time.sleep(0.02)
    return False


def rows(out) -> dict:
    found = Store(out).read()
    made = dict(zip(found.images(), found.vectors, strict=True))
    assert len(made) == len(found)  # no key comes twice
    return made


def check(ended: tuple[int, str, str], out, expected: dict) -> None:
    """Check that a run ended well, with all rows, each once, and the errors."""
    code, said, err = ended
    assert code == 0, err
    summary = json.loads(said)
    assert (summary["embedded"], summary["present"], summary["failed"]) == (IMAGES, 0, IMAGES // 100)
    got = rows(out)
    assert got.keys() == expected.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(got[key], vector, rtol=0, atol=1e-5)
    assert len((out / "_errors.jsonl").read_text().splitlines()) == IMAGES // 100


def embed_and_kill(rounds: int, tiny, many, tmp_path, capsys, *, on_gpus: bool) -> None:
    assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    expected = rows(tmp_path / "one")
    assert len(expected) == IMAGES
    rng = random.Random(7)
    whats = ("Embed", "decode", "Embed", "decode") if on_gpus else ("Embed", "Embed")
    killed = dict.fromkeys((*whats, "machine"), 0)
    one = {"cpus": 1, "gpus": int(on_gpus), "memory": OBJECT_STORE}
    prepare = SMALL + AS_ON_GPUS * on_gpus
    with cluster(one) as (address, nodes), contextlib.closing(Driver(address, prepare)) as driver:
        for round_ in range(rounds):
            out = tmp_path / f"ray{round_}"
            start_another(address, nodes, **one)
            driver.start("embed", tiny, many, "--out", out, "--ray", "auto", "--json", "--batch", "4")
            wait_until(lambda: not driver.is_running() or any(node.workers("Embed") for node in nodes))
            for what in whats:
                time.sleep(rng.uniform(0, 1))
                killed[what] += kill_one(driver, nodes, what, rng)
            time.sleep(rng.uniform(0, 2))
            killed["machine"] += driver.is_running()
            nodes.pop().close()
            check(driver.end(), out, expected)
    assert killed["Embed"] >= rounds, killed
    assert killed.get("decode", rounds) >= rounds / 2, killed
    assert killed["machine"] >= rounds / 2, killed


def test_a_run_whose_actors_tasks_and_machine_die_has_the_same_rows(tiny, many, tmp_path, capsys) -> None:
    embed_and_kill(1, tiny, many, tmp_path, capsys, on_gpus=True)


@pytest.mark.slow
@pytest.mark.parametrize("on_gpus", [False, True], ids=["cpu", "as-on-gpus"])
def test_ten_runs_whose_actors_tasks_and_machines_die_have_the_same_rows(on_gpus, tiny, many, tmp_path, capsys):
    embed_and_kill(10, tiny, many, tmp_path, capsys, on_gpus=on_gpus)


def marked(mark: str) -> list[str]:
    """Command lines of all processes with this text in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=lambda number: number.name,
)
def test_what_the_command_wrote_before_it_was_killed_stays_and_the_next_goes_on(number, tiny, many, tmp_path, capsys):
    scratch = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a socket's path must be short
    out = tmp_path / "store"
    words = ["embed", str(tiny), str(many), "--out", str(out)]
    code = f"{SMALL}; from runtime.__main__ import main; raise SystemExit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--ray", "local"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or (out / "part-00000.parquet").exists())
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), err
        wait_until(lambda: not marked(str(scratch)), 120)  # Ray's own look for it every few seconds
        if number != signal.SIGKILL:
            assert "interrupted; the same command goes on" in err
            assert list(scratch.iterdir()) == []
    finally:
        process.kill()
        shutil.rmtree(scratch)
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 < summary["present"] < IMAGES
    assert summary["embedded"] + summary["present"] == IMAGES
    assert main(["embed", str(tiny), str(many), "--out", str(tmp_path / "one")]) == 0
    assert rows(out).keys() == rows(tmp_path / "one").keys()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
