"""How clusters and classes look: a colour and a shape each, and always their number or name beside it."""

from __future__ import annotations

from runtime.contract.labels import NOISE
from runtime.report.elements import Html, element, join

COLORS, SHAPES = 10, 4
"""Forty pairs; the eleventh cluster has the first colour again, as another shape."""

_PATHS = (
    "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "M-3 -3h6v6h-6z",
    "M0 -4.2l4 7h-8z",
    "M0 -4.4l4 4.4l-4 4.4l-4 -4.4z",
    "M-3 -3l6 6M3 -3l-6 6",
)
"""Circle, square, triangle, diamond, and a cross for noise; around 0, 0, about 7 pixels."""


def name_of(cluster: int) -> str:
    """A cluster's name: its number."""
    return "noise" if cluster == NOISE else str(cluster)


def anchor(cluster: int) -> str:
    """The id of a cluster's section."""
    return f"cluster-{name_of(cluster)}"


def color_class(index: int) -> str:
    """The CSS class of the colour of a cluster or class."""
    return "noise" if index == NOISE else f"c{index % COLORS}"


def definitions() -> Html:
    """The shapes, once for the page; `use` refers to them."""
    shapes = [element("path", id=f"m{index}", d=path) for index, path in enumerate(_PATHS)]
    return element("svg", element("defs", *shapes), width=0, height=0, class_="hidden", aria_hidden="true")


def swatch(cluster: int) -> Html:
    """The mark of a cluster beside its number."""
    shape = SHAPES if cluster == NOISE else cluster // COLORS % SHAPES
    use = element("use", href=f"#m{shape}", x=8, y=8, class_=color_class(cluster))
    return element("svg", use, class_="swatch", width=16, height=16, aria_hidden="true")


def link(cluster: int) -> Html:
    """A cluster's mark and number, leading to its section."""
    return element("a", join(swatch(cluster), name_of(cluster)), href=f"#{anchor(cluster)}", class_="cluster-link")
