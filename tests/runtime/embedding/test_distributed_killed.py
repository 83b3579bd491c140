"""`embed --ray` while actors, tasks and a machine are killed: the rows are those of a run that nothing happened to."""

import contextlib
import importlib.util
import json
import os
import random
import signal
import time

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
