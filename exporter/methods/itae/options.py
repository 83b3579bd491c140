"""ITAE's options as data: their words, their domains, and what they resolve to. Source: exporter/ITAE.md 1 to 3.

The paper's own form is `ItaeConfig(layers="last", side="low", threshold="absolute:θ", attenuate="min")`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

from exporter.declaration import Option, Text, check_options
from runtime.contract.errors import UsageError
from runtime.contract.manifest import ItaeMethod

Source = Literal["query", "key", "value"]
Side = Literal["high", "low", "both"]

SOURCES: tuple[Source, ...] = get_args(Source)
SIDES: tuple[Side, ...] = get_args(Side)
GROUP = "ITAE (exporter/ITAE.md says what it computes)"
"""The heading in `--help`."""
FLOAT32_MAX = 3.4028234663852886e38
MAX_TOP = 3840
"""Number of values that TensorRT's TopK gives at most."""
MAX_MEDIAN_PATCHES = 2 * MAX_TOP - 1
"""The median needs the upper half of all patches."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""As in JSON and C++; Python's `float` takes spaces, underscores and other scripts' digits too."""


@dataclass(frozen=True)
class Kind:
    """One word of an option, and the number that follows it after a colon, if one does."""

    domain: str | None = None
    """The number's domain in words; None if no number follows."""
    holds: Callable[[float], bool] = lambda _: True


THRESHOLDS = {
    "mad": Kind("a number λ ≥ 0", lambda x: x >= 0),
    "zscore": Kind("a number λ ≥ 0", lambda x: x >= 0),
    "ratio": Kind("a number λ > 1", lambda x: x > 1),
    "absolute": Kind("a number τ ≥ 0", lambda x: x >= 0),
}
ATTENUATIONS = {
    "min": Kind(),
    "mask": Kind(),
    "mean": Kind(),
    "scale": Kind("a number α with 0 < α < 1", lambda x: 0 < x < 1),
}
NEEDS_MEDIAN = ("mad", "ratio")


@dataclass(frozen=True)
class Choice:
    """A parsed option: its kind and its number (0 if the kind takes none)."""

    kind: str
    number: float = 0.0


def parse_choice(kinds: dict[str, Kind], option: str, text: str) -> Choice:
    """Parse `kind` or `kind:number`.

    Raises:
        UsageError: there is no such kind, the number is missing, superfluous or outside its domain.
    """
    kind, colon, number = text.partition(":")
    words = ", ".join(name if k.domain is None else f"{name}:NUMBER" for name, k in kinds.items())
    if kind not in kinds:
        raise UsageError(f"{option} {text!r}: must be one of {words}")
    domain = kinds[kind].domain
    if domain is None:
        if colon:
            raise UsageError(f"{option} {text!r}: {kind} takes no number")
        return Choice(kind)
    value = float(number) if _NUMBER.fullmatch(number) else math.nan
    if not (abs(value) <= FLOAT32_MAX and kinds[kind].holds(value)):
        raise UsageError(f"{option} {text!r}: {kind} needs {domain} (in float32), as in {kind}:{_example(kind)}")
    return Choice(kind, value)


def _example(kind: str) -> str:
    return {"mad": "5", "zscore": "3", "ratio": "2", "absolute": "30", "scale": "0.1"}[kind]


def _parse_layers(text: str) -> tuple[int, ...]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_is_index(first) and (not dash or _is_index(last))):
            raise UsageError(f"--layers {text!r}: must be `last`, `all`, or a list such as 0,5,8-11")
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise UsageError(f"--layers {text!r}: the range {part.strip()} runs backwards")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def _is_index(text: str) -> bool:
    # Bounded, so that 0-99999999999 is refused before a set of that size is made.
    return text.isascii() and text.isdigit() and len(text) <= 4


def _check_layers(_option: str, text: str) -> None:
    if text not in ("last", "all"):
        _parse_layers(text)


@dataclass(frozen=True)
class ItaeConfig:
    """Which patches are artifacts and what becomes of their logits.

    Raises:
        UsageError: a word is unknown, a number outside its domain, or `absolute` has no side.
    """

    layers: Annotated[str, Option("last, all, or a list such as 0,5,8-11", GROUP, Text("LIST", _check_layers))] = "last"
    """Counted from 0."""
    source: Annotated[Source, Option("the vectors whose norms are compared", GROUP)] = "key"
    threshold: Annotated[
        str,
        Option(
            "mad:λ, zscore:λ, ratio:λ (λ > 1) or absolute:τ", GROUP, Text("KIND:X", partial(parse_choice, THRESHOLDS))
        ),
    ] = "mad:5"
    side: Annotated[Side, Option("norms that are too high, too low, or both; absolute needs high or low", GROUP)] = (
        "both"
    )
    attenuate: Annotated[
        str, Option("min, mask, mean or scale:α, 0 < α < 1", GROUP, Text("HOW", partial(parse_choice, ATTENUATIONS)))
    ] = "min"

    def __post_init__(self) -> None:
        check_options(self)
        if self.limit.kind == "absolute" and self.side == "both":
            raise UsageError(
                f"--threshold {self.threshold}: an absolute threshold needs its side, --side high or --side low"
            )

    @property
    def limit(self) -> Choice:
        """The threshold, parsed."""
        return parse_choice(THRESHOLDS, "--threshold", self.threshold)

    @property
    def attenuation(self) -> Choice:
        """The attenuation, parsed."""
        return parse_choice(ATTENUATIONS, "--attenuate", self.attenuate)

    @property
    def needs_median(self) -> bool:
        """Whether the graph computes a median, by TopK."""
        return self.limit.kind in NEEDS_MEDIAN

    def reads_queries(self, layer: int, depth: int) -> bool:
        """Whether the queries of all tokens are needed in `layer` of a model of `depth` blocks."""
        return self.source == "query" and layer in self.layer_indices(depth)

    def may_flag_all(self, patches: int) -> bool:
        """Whether an image of `patches` can have no normal patch; where it can't, the graph needs not look.

        A patch at the median, or at or below the median deviation, is on the normal side of every larger threshold, and
        the mean of squared z-scores is at most 1. The bounds leave room for rounding.
        """
        kind, number = self.limit.kind, self.limit.number
        if kind == "absolute":
            return True
        if kind == "zscore":
            return number < 1.01
        at_middle = self.side != "both" or patches % 2 == 1
        return not at_middle and number < (2 if kind == "ratio" else 0.68)

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The chosen layers of a model of `depth` blocks, ascending, each once.

        Raises:
            UsageError: a layer isn't there.
        """
        if self.layers == "last":
            return (depth - 1,)
        if self.layers == "all":
            return tuple(range(depth))
        chosen = _parse_layers(self.layers)
        if chosen[-1] >= depth:
            raise UsageError(f"--layers {self.layers}: no layer {chosen[-1]}, this model has layers 0 to {depth - 1}")
        return chosen

    def resolved(self, depth: int) -> ItaeMethod:
        """As the manifest holds it."""
        return ItaeMethod(
            layers=self.layer_indices(depth),
            source=self.source,
            threshold=self.threshold,
            side=self.side,
            attenuate=self.attenuate,
        )
