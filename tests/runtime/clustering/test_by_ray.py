"""`cluster --ray`: the clusters of one machine, by a cluster that is started here."""

import contextlib
import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from ray_nodes import Driver, cluster

from runtime.__main__ import main
from runtime.clustering.by_ray import SAMPLE, KeysByPart, sample_rows
from runtime.store import Store
from runtime.store.writer import open_writer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


@pytest.fixture(scope="module")
def driver():
    with cluster({"cpus": 2}) as (address, _), contextlib.closing(Driver(address)) as made:
        yield made


def make_store(folder, n: int, width: int, groups: int) -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((groups, width))
    with open_writer(folder, {}) as writer:
        for start in range(0, n, 4096):
            rows = range(start, min(n, start + 4096))
            points = centres[rng.integers(groups, size=len(rows))] + 0.7 * rng.standard_normal((len(rows), width))
            writer.add(["/made"] * len(rows), [f"{row}.jpg" for row in rows], points.astype(np.float32))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    make_store(folder, 10_000, 8, 5)
    return folder


def on_one_machine(capsys, *words) -> dict:
    assert main(["cluster", *map(str, words), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def by_ray(driver, *words) -> dict:
    code, out, err = driver.run("cluster", *words, "--ray", "auto", "--json", "--quiet")
    assert code == 0, err
    return json.loads(out)


def labels_by_part(store, out) -> pa.Table:
    """The labels of a result by Ray, after a check that each file has the images of its part."""
    tables = []
    for part in sorted(store.glob("part-*.parquet")):
        table = parquet.read_table(out / part.name.replace("part", "labels"))
        keys = ["root", "path"]
        assert table.select(keys).to_pydict() == parquet.read_table(part).select(keys).to_pydict()
        tables.append(table)
    return pa.concat_tables(tables)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_where_the_sample_is_everything_the_files_are_those_of_one_machine(metric, driver, store, tmp_path, capsys):
    words = (store, "--k", "5", "--seed", "3", "--metric", metric, "--n-init", "2")
    one = on_one_machine(capsys, *words, "--out", tmp_path / "one")
    ray = by_ray(driver, *words, "--out", tmp_path / "ray")
    assert ray["sizes"] == one["sizes"]
    assert ray["inertia"] == pytest.approx(one["inertia"], rel=1e-6)
    labels = [parquet.read_table(tmp_path / "one" / "labels.parquet"), labels_by_part(store, tmp_path / "ray")]
    assert labels[0].drop(["distance"]) == labels[1].drop(["distance"])
    np.testing.assert_allclose(labels[0]["distance"], labels[1]["distance"], rtol=0, atol=1e-6)


def test_old_clusters_are_assigned_as_on_one_machine(driver, store, tmp_path, capsys):
    on_one_machine(capsys, store, "--k", "4", "--out", tmp_path / "old", "--n-init", "1")
    words = (store, "--assign", tmp_path / "old")
    on_one_machine(capsys, *words, "--out", tmp_path / "one")
    by_ray(driver, *words, "--out", tmp_path / "ray")
    assert parquet.read_table(tmp_path / "one" / "labels.parquet") == labels_by_part(store, tmp_path / "ray")


def test_labels_lie_in_a_file_for_each_part_and_make_way_for_the_next_result(driver, store, tmp_path, capsys):
    out = tmp_path / "clusters"
    summary = by_ray(driver, store, "--k", "3", "--n-init", "1", "--out", out)
    parts = sorted(path.name for path in out.glob("*.parquet"))
    assert parts == ["labels-00000.parquet", "labels-00001.parquet", "labels-00002.parquet"]
    assert set(parts) < summary["files"].keys() == {path.name for path in out.iterdir()} - {"summary.json"}
    code, said, _ = driver.run("cluster", store, "--k", "3", "--n-init", "1", "--out", out, "--ray", "auto", "--quiet")
    assert code == 0
    assert f"labels   {out}/labels-*.parquet" in said
    make_store(tmp_path / "small", 50, 8, 2)
    by_ray(driver, tmp_path / "small", "--k", "2", "--out", out)
    assert [path.name for path in out.glob("*.parquet")] == ["labels-00000.parquet"]
    on_one_machine(capsys, store, "--k", "3", "--n-init", "1", "--out", out)
    assert [path.name for path in out.glob("*.parquet")] == ["labels.parquet"]
    assert main(["cluster", str(store), "--assign", str(out), "--out", str(tmp_path / "assigned"), "--quiet"]) == 0


def test_the_image_of_a_row_is_found_in_its_part(store):
    keys, expected = KeysByPart(Store(store)), list(Store(store).images())
    assert [keys.at(row) for row in (0, 4095, 4096, 8191, 8192, 9999)] == [
        expected[row] for row in (0, 4095, 4096, 8191, 8192, 9999)
    ]


def test_a_row_that_can_not_be_normalised_is_named_as_on_one_machine(driver, store, tmp_path, capsys):
    make_store(tmp_path / "store", 5000, 4, 2)
    with open_writer(tmp_path / "store", {}) as writer:
        writer.add(["/made"], ["zero.jpg"], np.zeros((1, 4), np.float32))
    words = ("cluster", str(tmp_path / "store"), "--k", "2", "--out", str(tmp_path / "out"), "--quiet")
    assert main(list(words)) == 2
    expected = capsys.readouterr().err
    assert "/made/zero.jpg (row 5000) is all zeros" in expected
    assert driver.run(*words, "--ray", "auto")[::2] == (2, expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--k", "auto"), "--ray is for --algorithm kmeans with a number as --k, and for --assign"),
        (("--k", "2", "--algorithm", "minibatch"), "--ray is for --algorithm kmeans"),
        (("--algorithm", "hdbscan"), "--ray is for --algorithm kmeans"),
    ],
)
def test_what_ray_does_not_do_is_refused(words, said, store, tmp_path, capsys):
    assert main(["cluster", str(store), *words, "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert said in capsys.readouterr().err


def test_a_sample_is_in_order_and_large_enough():
    assert len(sample_rows(1000, 3, 0)) == 1000
    few = sample_rows(10**6, 3, 0)
    assert len(few) == SAMPLE
    assert (np.diff(few) > 0).all()
    assert len(sample_rows(10**6, 1000, 0)) == 256_000
    assert (sample_rows(10**6, 3, 1) != few).any()


@pytest.mark.slow
def test_inertia_is_within_a_hundredth_of_k_means_on_all_rows(driver, tmp_path, capsys):
    make_store(tmp_path / "store", 200_000, 64, 60)
    words = (tmp_path / "store", "--k", "100", "--n-init", "2")
    one = on_one_machine(capsys, *words, "--out", tmp_path / "one")
    ray = by_ray(driver, *words, "--out", tmp_path / "ray")
    assert sum(ray["sizes"]) == 200_000
    assert ray["inertia"] < 1.01 * one["inertia"]
