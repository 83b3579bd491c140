"""`scripts/bench triton`, on a tiny model."""

from __future__ import annotations

import json

import pytest

from scripts.benchmark.triton import bench

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton: pip install '.[triton]'")


@pytest.mark.usefixtures("installed")
def test_bench_triton_compares_server_and_direct_call(make_model, tmp_path, capsys):
    model = make_model(tmp_path, dtype="uint8")
    few = ["--rounds", "1", "--requests", "2", "--batch", "3", "--side", "50"]
    assert bench(["--model", str(model), *few, "--json", str(tmp_path / "times.json")]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    ways = ("direct", "gRPC", "HTTP")
    assert sorted(rows[1:]) == sorted(f"{kind}, {way}" for kind in ("prepared", "JPEG") for way in ways)
    times = json.loads((tmp_path / "times.json").read_text())
    assert {len(seconds) for seconds in times["requests"].values()} == {2}
