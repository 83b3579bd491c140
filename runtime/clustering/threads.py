"""Work in threads whose results do not depend on how many threads there are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from runtime.contract.machine import usable_cores

_Item = TypeVar("_Item")


def blocks(n: int, rows: int) -> list[slice]:
    """0 to n in slices of `rows`: the same whatever the number of threads, and so what is computed of each."""
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def in_threads(work: Callable[[_Item], None], items: Sequence[_Item]) -> None:
    """Call `work` with each item, in a thread for each core: numpy lets go of Python's lock where it computes."""
    threads = min(len(items), usable_cores())
    if threads < 2:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads, "clustering") as pool:
        for _ in pool.map(work, items):  # raises what a thread raised
            pass


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread in each of ours: the same bits whatever the cores, and no threads that wait spinning."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> Any:  # noqa: ANN401  # it ships no types; looking for the libraries takes milliseconds, once
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
