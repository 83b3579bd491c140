"""`Store.search`: neighbours beside plain numpy, ties, rows as queries, and when an index is built."""

import shutil
import sys

import numpy as np
import pytest
import stores

from runtime.contract.errors import BackendError, InputError, ItaeError, UsageError
from runtime.store import Embeddings, Store
from runtime.store import search as searching


def written(folder, vectors) -> Store:
    rows = Embeddings(["/root"] * len(vectors), [f"{row}.png" for row in range(len(vectors))], vectors)
    with stores.open_writer(folder, {}) as writer:
        writer.add(rows.roots, rows.paths, rows.vectors)
    return Store(folder)


def cosines(vectors, queries) -> np.ndarray:
    """(q, n) float64."""
    a, b = (np.asarray(one, np.float64) for one in (queries, vectors))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def groups(n: int, seed: int = 0, width: int = 32) -> np.ndarray:
    """Rows in 50 groups, at different lengths."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((50, width))[rng.integers(0, 50, n)] + 0.4 * rng.standard_normal((n, width))
    return (points * rng.uniform(0.1, 10, (n, 1))).astype(np.float32)


def rows_of(found) -> list[list[int]]:
    return [[one.row for one in near] for near in found]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Store:
    return written(tmp_path_factory.mktemp("grouped") / "store", groups(6000))


def test_exact_neighbours_are_those_of_numpy(grouped, monkeypatch):
    monkeypatch.setattr(searching, "_QUERIES", 7)  # several groups of queries beside several blocks and parts
    vectors, queries = grouped.load(), groups(20, seed=1)
    expected = cosines(vectors, queries)
    found = grouped.search(queries, 15)
    assert rows_of(found) == np.argsort(-expected, axis=1, kind="stable")[:, :15].tolist()
    for query, near in enumerate(found):
        assert [one.path for one in near] == [f"{one.row}.png" for one in near]
        assert {one.root for one in near} == {"/root"}
        np.testing.assert_allclose([one.similarity for one in near], np.sort(-expected[query])[:15] * -1, atol=1e-6)


def test_of_equals_the_first_rows_come_first_also_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "_BLOCK_ROWS", 4)
    vectors = np.tile(np.array([[1, 0], [0, 1]], np.float32), (10, 1)) * np.arange(1, 21, dtype=np.float32)[:, None]
    store = written(tmp_path / "store", vectors)
    assert rows_of(store.search(np.array([2, 0.0]), 12)) == [[*range(0, 20, 2), 1, 3]]


def test_a_row_is_not_its_own_neighbour_but_its_duplicate_is(tmp_path):
    store = written(tmp_path / "store", np.array([[1, 0], [0, 1], [2, 0], [1, 1]], np.float32))
    assert rows_of(store.search([2, 1, 2], 2)) == [[0, 3], [3, 0], [0, 3]]
    assert rows_of(store.search(0, 99)) == [[2, 3, 1]]
    assert store.search(0)[0][0].similarity == 1
    assert rows_of(store.search(np.array([1.0, 0.0], np.float64), 1)) == [[0]]


def test_a_row_of_zeros_is_near_nothing(tmp_path):
    store = written(tmp_path / "store", np.array([[0, 0], [1, 0], [-1, 0]], np.float32))
    found = store.search(np.array([[1.0, 0.0]]))[0]
    assert [(one.row, one.similarity) for one in found] == [(1, 1), (0, 0), (2, -1)]


def test_no_query_and_a_store_of_one_row_give_no_neighbours(tmp_path):
    store = written(tmp_path / "store", np.ones((1, 2), np.float32))
    assert store.search([]) == []
    assert store.search(0) == [[]]


@pytest.mark.parametrize(
    ("queries", "how", "error", "message"),
    [
        (3, {}, UsageError, "there is no row 3: .* has the 3 rows from 0 on"),
        ([0, -1], {}, UsageError, "there is no row -1"),
        ("cat.jpg", {}, UsageError, "give embeddings"),
        ([True], {}, UsageError, "give embeddings"),
        (np.zeros((1, 3)), {}, InputError, "queries of width 3, embeddings of width 2"),
        (np.array([[np.nan, 1]]), {}, InputError, "NaN"),
        (np.array([[1e300, 1]]), {}, InputError, "infinity"),
        (0, {"top": 0}, UsageError, "top=0: must be 1 or more"),
        (0, {"method": "quick"}, UsageError, "method='quick': give auto, exact or index"),
    ],
)
def test_bad_queries_are_refused(tmp_path, queries, how, error, message):
    store = written(tmp_path / "store", np.eye(3, 2, dtype=np.float32))
    with pytest.raises(error, match=message):
        store.search(queries, **how)


def test_auto_is_exact_below_a_million_rows():
    assert [searching.chosen_method("auto", rows) for rows in (999_999, 1_000_000)] == ["exact", "index"]


def indexes(store: Store) -> list[str]:
    return sorted(one.name for one in store.path.glob("*.faiss"))


def test_an_index_finds_nearly_all_and_is_built_once(grouped, monkeypatch):
    pytest.importorskip("faiss")
    queries = groups(200)  # of the same groups as the store
    exact, near = (grouped.search(queries, method=method) for method in ("exact", "index"))
    shared = [len({*a} & {*b}) for a, b in zip(rows_of(exact), rows_of(near), strict=True)]
    assert sum(shared) >= 0.99 * 2000
    by_row = {one.row: one.similarity for one in exact[0]}
    for one in near[0]:
        assert one.similarity == pytest.approx(by_row.get(one.row, one.similarity), abs=1e-3)
    assert rows_of(grouped.search([5], 3, method="index"))[0] == rows_of(grouped.search([5], 3))[0]
    assert indexes(grouped) == [searching.index_path(grouped).name]
    monkeypatch.setattr(searching, "_built", None)  # a second build would fail
    assert rows_of(Store(grouped.path).search(queries, method="index")) == rows_of(near)


def test_an_index_is_built_again_when_the_store_has_grown_or_changed(tmp_path):
    pytest.importorskip("faiss")
    vectors = groups(500)
    store = written(tmp_path / "store", vectors)
    store.search(0, method="index")
    (first,) = indexes(store)
    new = np.full((1, 32), -3, np.float32)
    with stores.open_writer(store.path, {}) as writer:
        writer.add(["/root"], ["new.png"], new)
    grown = Store(store.path)
    assert grown.search(new, 1, method="index")[0][0].path == "new.png"
    (second,) = indexes(grown)
    assert second != first
    shutil.rmtree(store.path)
    changed = written(tmp_path / "store", vectors[::-1])  # as many rows as at first
    assert searching.index_path(changed).name not in (first, second)
    assert len(Store(store.path).load()) == 500


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" + data])
def test_a_damaged_index_is_built_again(tmp_path, damage):
    pytest.importorskip("faiss")
    store = written(tmp_path / "store", groups(300))
    expected = store.search([0, 1], method="index")
    path = searching.index_path(store)
    whole = path.read_bytes()
    path.unlink()  # as it may be mapped into memory
    path.write_bytes(damage(whole))
    assert store.search([0, 1], method="index") == expected
    assert path.read_bytes() == whole


def test_an_index_that_fails_leaves_nothing(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    store = written(tmp_path / "store", groups(300))

    def fail(index, writer):
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss, "write_index", fail)
    before = sorted(store.path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        store.search(0, method="index")
    assert sorted(store.path.iterdir()) == before


def test_an_array_is_searched_and_its_index_lies_beside_it(tmp_path):
    pytest.importorskip("faiss")
    from runtime.store.array_pair import export_array

    store = written(tmp_path / "store", groups(300))
    export_array(store, tmp_path / "a[1].npy")
    array = Store(tmp_path / "a[1].npy")
    assert array.search([7]) == store.search([7])
    assert rows_of(array.search([7], method="index")) == rows_of(store.search([7], method="index"))
    export_array(store, tmp_path / "a[1].npy")
    Store(array.path).search([7], method="index")
    assert len(list(tmp_path.glob("*.faiss"))) == 1


def test_without_faiss_an_index_is_refused_and_exact_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    store = written(tmp_path / "store", groups(20))
    assert len(store.search(0)[0]) == 10
    with pytest.raises(BackendError, match=r"pip install 'itae\[search\]', or search exactly"):
        store.search(0, method="index")


def test_progress_is_reported(grouped):
    lines: list[str] = []
    grouped.search(0, tell=lines.append)
    assert lines[-1] == "6,000 of 6,000 embeddings compared"
    with pytest.raises(ItaeError, match="function of one text"):
        grouped.search(0, tell=3)
