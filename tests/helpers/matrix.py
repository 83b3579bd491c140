"""Tests over several options at once: a few combinations that hold all pairs run always, the rest with `--slow`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def pairwise(sizes: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Choose few combinations that together hold every pair of values of every two options.

    Greedy: each step takes the combination with the most pairs that are still missing.

    Args:
        sizes: number of values of each option, two options at least.
        seed: decides between combinations that are equally good; the same seed gives the same choice.

    Returns:
        The chosen combinations in the order of the full product, each with the index of its value of each option.
    """

    def pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(row), 2))

    rows = list(itertools.product(*map(range, sizes)))
    random.Random(seed).shuffle(rows)
    missing = set().union(*map(pairs, rows))
    chosen = []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(chosen[-1])
    return sorted(chosen)


def over(**options: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over the full product of options; those outside the pairwise choice are marked `slow`.

    A value may be a `pytest.param` with an id of its own; a tuple of names is not supported, so options that depend
    on each other are one option whose values are tuples.
    """
    values = [[value if _is_param(value) else pytest.param(value) for value in each] for each in options.values()]
    chosen = set(pairwise([len(each) for each in values]))
    rows = []
    for index in itertools.product(*(range(len(each)) for each in values)):
        row = [each[i] for each, i in zip(values, index, strict=True)]
        marks = [mark for value in row for mark in value.marks]
        if index not in chosen:
            marks.append(pytest.mark.slow)
        name = "-".join(str(value.values[0]) if value.id is None else value.id for value in row)
        rows.append(pytest.param(*(value.values[0] for value in row), marks=marks, id=name))
    return pytest.mark.parametrize(tuple(options), rows)


def _is_param(value: object) -> bool:
    return isinstance(value, type(pytest.param()))
