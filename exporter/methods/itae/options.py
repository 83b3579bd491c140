"""ITAE's options as data: their words, their domains, and what they resolve to. Source: exporter/ITAE.md 1 to 3.

The paper's own form is `ItaeConfig(threshold="absolute:θ", **PRESETS["paper"])`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

from exporter.declaration import Option, Text, Whole, check_options
from runtime.contract.errors import UsageError
from runtime.contract.manifest import ItaeMethod

Source = Literal["query", "key", "value", "residual"]
Side = Literal["high", "low", "both"]

SOURCES: tuple[Source, ...] = get_args(Source)
SIDES: tuple[Side, ...] = get_args(Side)
GROUP = "ITAE (exporter/ITAE.md says what it computes)"
"""The heading in `--help`."""
FLOAT32_MAX = 3.4028234663852886e38
MAX_TOP = 3840
"""Number of values that TensorRT's TopK gives at most."""
DEFAULT_SOURCE: Source = "residual"
DEFAULT_SIDE: Side = "high"
"""Evidence: exporter/DECISIONS.md."""
MAX_MEDIAN_PATCHES = 2 * MAX_TOP - 1
"""The median needs the upper half of all patches."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""As in JSON and C++; Python's `float` takes spaces, underscores and other scripts' digits too."""


@dataclass(frozen=True)
class Kind:
    """One word of an option, and the number or list that follows it after a colon, if one does."""

    domain: str | None = None
    """The domain in words of what follows; None if nothing follows."""
    holds: Callable[[float], bool] = lambda _: True
    is_list: bool = False
    """Whether a list of indices follows, not a number."""


THRESHOLDS = {
    "mad": Kind("a number λ ≥ 0", lambda x: x >= 0),
    "zscore": Kind("a number λ ≥ 0", lambda x: x >= 0),
    "ratio": Kind("a number λ > 1", lambda x: x > 1),
    "absolute": Kind("a number τ ≥ 0", lambda x: x >= 0),
    "positions": Kind("a list of patches", is_list=True),
}
ATTENUATIONS = {
    "min": Kind(),
    "mask": Kind(),
    "mean": Kind(),
    "scale": Kind("a number α with 0 < α < 1", lambda x: 0 < x < 1),
    "none": Kind(),
}
NEEDS_MEDIAN = ("mad", "ratio")
PRESETS = {"paper": {"layers": "last", "source": "key", "side": "low", "attenuate": "min"}}
"""Options by the name that stands for them. `paper` has no threshold, since its θ is not known; nor is its source."""


@dataclass(frozen=True)
class Choice:
    """A parsed option: its kind, and what followed it."""

    kind: str
    number: float = 0.0
    """0 if the kind takes none."""
    indices: tuple[int, ...] = ()
    """Ascending, each once; empty if the kind takes no list."""


def parse_choice(kinds: dict[str, Kind], option: str, text: str) -> Choice:
    """Parse `kind`, `kind:number` or `kind:list`.

    Raises:
        UsageError: there is no such kind, or what follows it is missing, superfluous or outside its domain.
    """
    kind, colon, rest = text.partition(":")
    if kind not in kinds:
        raise UsageError(f"{option} {text!r}: must be one of {', '.join(_form(*one) for one in kinds.items())}")
    domain = kinds[kind].domain
    if domain is None:
        if colon:
            raise UsageError(f"{option} {text!r}: {kind} takes no number")
        return Choice(kind)
    if kinds[kind].is_list:
        return Choice(kind, indices=_parse_indices(f"{option} {text!r}", f"{kind} needs {domain}", rest))
    value = float(rest) if _NUMBER.fullmatch(rest) else math.nan
    if not (abs(value) <= FLOAT32_MAX and kinds[kind].holds(value)):
        raise UsageError(f"{option} {text!r}: {kind} needs {domain} (in float32), as in {kind}:{_example(kind)}")
    return Choice(kind, value)


def _form(name: str, kind: Kind) -> str:
    return name if kind.domain is None else f"{name}:LIST" if kind.is_list else f"{name}:NUMBER"


def _example(kind: str) -> str:
    return {"mad": "5", "zscore": "3", "ratio": "2", "absolute": "30", "scale": "0.1"}[kind]


def _parse_indices(given: str, needed: str, text: str) -> tuple[int, ...]:
    """The indices of a list such as 0,5,8-11: ascending, each once.

    Raises:
        UsageError: it is no such list; the message says what was given and what is needed.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_is_index(first) and (not dash or _is_index(last))):
            raise UsageError(f"{given}: {needed} such as 0,5,8-11")
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise UsageError(f"{given}: the range {part.strip()} runs backwards")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def _is_index(text: str) -> bool:
    # Bounded, so that 0-99999999999 is refused before a set of that size is made.
    return text.isascii() and text.isdigit() and len(text) <= 6


def _parse_layers(text: str) -> tuple[int, ...]:
    return _parse_indices(f"--layers {text!r}", "must be `last`, `all`, or a list", text)


def _check_layers(_option: str, text: str) -> None:
    if text not in ("last", "all"):
        _parse_layers(text)


@dataclass(frozen=True)
class ItaeConfig:
    """Which patches are artifacts and what becomes of their logits.

    Raises:
        UsageError: a word is unknown, a number outside its domain, `absolute` has no side, or `positions` has a source,
            a side or a layer to detect in.
    """

    layers: Annotated[str, Option("last, all, or a list such as 0,5,8-11", GROUP, Text("LIST", _check_layers))] = "last"
    """Counted from 0."""
    source: Annotated[
        Source | None,
        Option(
            "the vectors whose norms are compared; residual is the input of the block "
            f"(default: {DEFAULT_SOURCE}; none with positions)",
            GROUP,
        ),
    ] = None
    threshold: Annotated[
        str,
        Option(
            "mad:λ, zscore:λ, ratio:λ (λ > 1), absolute:τ, or positions:LIST, such as positions:0,1,16-17, which are "
            "artifacts in every image",
            GROUP,
            Text("KIND:X", partial(parse_choice, THRESHOLDS)),
        ),
    ] = "ratio:3"
    side: Annotated[
        Side | None,
        Option(
            "norms that are too high, too low, or both; absolute needs high or low "
            f"(default: {DEFAULT_SIDE}; none with positions)",
            GROUP,
        ),
    ] = None
    attenuate: Annotated[
        str,
        Option(
            "min, mask, mean, scale:α (0 < α < 1), or none, which finds artifacts and changes nothing",
            GROUP,
            Text("HOW", partial(parse_choice, ATTENUATIONS)),
        ),
    ] = "min"
    detect_layer: Annotated[
        int | None,
        Option("the block whose norms decide for all chosen layers (default: each layer's own)", GROUP, Whole("N", 0)),
    ] = None
    """Not after any chosen layer; None with positions."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.limit.kind == "positions":
            for name, value in (("source", self.source), ("side", self.side), ("detect-layer", self.detect_layer)):
                if value is not None:
                    raise UsageError(
                        f"--{name} {value} is about norms, which --threshold {self.threshold} does not look at: "
                        "drop either"
                    )
            return
        if self.limit.kind == "absolute" and self.side not in ("high", "low"):
            raise UsageError(
                f"--threshold {self.threshold}: an absolute threshold needs its side, --side high or --side low"
            )
        object.__setattr__(self, "source", self.source or DEFAULT_SOURCE)
        object.__setattr__(self, "side", self.side or DEFAULT_SIDE)

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

    def detects_in(self, layer: int) -> int:
        """The layer whose norms decide for `layer`."""
        return layer if self.detect_layer is None else self.detect_layer

    def reads_queries(self, layer: int, depth: int) -> bool:
        """Whether the queries of all tokens are needed in `layer` of a model of `depth` blocks."""
        return self.source == "query" and layer in map(self.detects_in, self.layer_indices(depth))

    def may_flag_all(self, patches: int) -> bool:
        """Whether an image of `patches` can have no normal patch; where it can't, the graph needs not look.

        A patch at the median, or at or below the median deviation, is on the normal side of every larger threshold, and
        the mean of squared z-scores is at most 1. The bounds leave room for rounding.
        """
        kind, number = self.limit.kind, self.limit.number
        if kind == "absolute":
            return True
        if kind == "positions":
            return len(self.limit.indices) == patches
        if kind == "zscore":
            return number < 1.01
        at_middle = self.side != "both" or patches % 2 == 1
        return not at_middle and number < (2 if kind == "ratio" else 0.68)

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The chosen layers of a model of `depth` blocks, ascending, each once.

        Raises:
            UsageError: a layer isn't there, or comes before the one to detect in.
        """
        if self.layers == "last":
            chosen: tuple[int, ...] = (depth - 1,)
        else:
            chosen = tuple(range(depth)) if self.layers == "all" else _parse_layers(self.layers)
        if chosen[-1] >= depth:
            raise UsageError(f"--layers {self.layers}: no layer {chosen[-1]}, this model has layers 0 to {depth - 1}")
        if self.detect_layer is not None and self.detect_layer > chosen[0]:
            raise UsageError(
                f"--detect-layer {self.detect_layer}: is after layer {chosen[0]}, which --layers {self.layers} "
                f"attenuates: take a layer from 0 to {chosen[0]}"
            )
        return chosen

    def resolved(self, depth: int) -> ItaeMethod:
        """As the manifest holds it."""
        return ItaeMethod(
            layers=self.layer_indices(depth),
            source=self.source,
            threshold=self.threshold,
            side=self.side,
            attenuate=self.attenuate,
            detect_layer=self.detect_layer,
        )
