"""The options of `cluster` as data, checked against each other."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtime.contract.errors import UsageError

ALGORITHMS = ("kmeans", "minibatch", "hdbscan", "agglomerative")
METRICS = ("cosine", "euclidean")
TAKES = {
    "kmeans": ("k", "k_range", "seed", "n_init", "max_iter", "device"),
    "minibatch": ("k", "k_range", "seed", "max_iter"),
    "hdbscan": ("min_cluster_size", "min_samples"),
    "agglomerative": ("k", "k_range", "seed", "linkage"),
}
"""The options that each algorithm takes; any other is refused, since it would do nothing."""
LINKAGES = ("ward", "average", "complete", "single")
LEAST = {"k": 1, "n_init": 1, "max_iter": 1, "min_cluster_size": 2, "min_samples": 1, "seed": 0}
MAX_SEED = 2**32 - 1
"""Largest seed that scikit-learn takes."""
MOST = {"n_init": 10_000, "max_iter": 1_000_000}
"""Beyond these a typing error is likelier; the generators of as many starts are made at once."""
DEVICES = re.compile(r"cpu|torch-cpu|cuda(:\d{1,4})?")
"""`cuda` is PyTorch on a GPU; `torch-cpu` checks on a CPU what `cuda` does."""
DEVICE_WORDS = "cpu, torch-cpu, cuda or cuda:N"
AUTO = "auto"

_OPTIONS = tuple(dict.fromkeys(name for names in TAKES.values() for name in names))


@dataclass(frozen=True)
class Settings:
    """The options of one clustering; an option that was left out is None if the algorithm has a default of its own."""

    algorithm: str
    """One of `ALGORITHMS`; of no meaning with `assign`."""
    metric: str | None
    """None if it was left out: then cosine, or the metric of the older run of `assign`."""
    seed: int
    k: int | None
    """None: `k_range` is tried, or the algorithm finds it."""
    k_range: tuple[int, int] | None
    """Both ends belong to it."""
    assign: Path | None
    given: dict[str, Any]
    """Further options of the algorithm, by the names of its function's arguments."""

    @classmethod
    def parse(cls, arguments: argparse.Namespace) -> Settings:
        """Check the options.

        Raises:
            UsageError: a number is out of its range, or an option means nothing beside another.
        """
        given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
        for name, least in LEAST.items():
            if isinstance(value := given.get(name), int) and value < least:
                raise UsageError(
                    f"{_flag(name)} {value}: must be {least} or more" if name != "seed" else _bad_seed(value)
                )
        for name, most in MOST.items():
            if given.get(name, 0) > most:
                raise UsageError(f"{_flag(name)} {given[name]}: must be {most} at most")
        if given.get("seed", 0) > MAX_SEED:
            raise UsageError(_bad_seed(given["seed"]))
        if not DEVICES.fullmatch(device := given.get("device", "cpu")):
            raise UsageError(f"--device {device}: must be {DEVICE_WORDS}")
        algorithm = arguments.algorithm or ALGORITHMS[0]
        if arguments.assign is not None:
            _refuse_beside_assign(arguments, given)
        else:
            _refuse_beside(algorithm, given)
        k = given.pop("k", None)
        k_range = given.pop("k_range", None)
        if k == AUTO:
            from runtime.clustering.choose_k import K_RANGE

            k, k_range = None, k_range or K_RANGE
        seed = given.pop("seed", 0)
        return cls(algorithm, arguments.metric, seed, k, k_range, arguments.assign, given)


def number_of_clusters(text: str) -> int | str:
    """The value of --k; argparse's error where it is none."""
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {AUTO}") from None


class KRange(NamedTuple):
    """The values of k to try; both ends belong to it."""

    low: int
    high: int

    def __str__(self) -> str:
        """Return what `range_of_k` parses."""
        return f"{self.low}:{self.high}"


def range_of_k(text: str) -> KRange:
    """The value of --k-range; argparse's error where it is none."""
    low, separator, high = text.partition(":")
    try:
        found = int(low), int(high)
    except ValueError:
        found = 0, 0
    if not separator or not 2 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: must be LOW:HIGH, LOW 2 or more and HIGH no less than LOW")
    return KRange(*found)


def _refuse_beside(algorithm: str, given: dict[str, Any]) -> None:
    """Refuse what an algorithm doesn't take, and a k that is missing."""
    if left := next((name for name in given if name not in TAKES[algorithm]), None):
        takers = " or ".join(name for name in ALGORITHMS if left in TAKES[name])
        raise UsageError(f"{_flag(left)} means nothing to --algorithm {algorithm}: it is for {takers}")
    if "k" in TAKES[algorithm] and "k" not in given:
        raise UsageError(f"--k is missing: the number of clusters, or {AUTO}")
    if "k_range" in given and given["k"] != AUTO:
        raise UsageError(f"--k-range is for --k {AUTO}, not for --k {given['k']}")
    if algorithm == "agglomerative" and "seed" in given and given["k"] != AUTO:
        raise UsageError("--seed means nothing to --algorithm agglomerative with a given --k: it draws nothing")


def _refuse_beside_assign(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    names = ["algorithm"] * (arguments.algorithm is not None) + list(given)
    if names:
        raise UsageError(f"{_flag(names[0])} means nothing beside --assign, which clusters nothing anew")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _bad_seed(seed: int) -> str:
    return f"--seed {seed}: must be from 0 to {MAX_SEED}"
