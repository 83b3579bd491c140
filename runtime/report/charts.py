"""Charts as inline SVG: sizes of clusters, scores by k, norms of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime.contract.labels import NOISE
from runtime.report import marks
from runtime.report.content import Cluster, Curve, Norms
from runtime.report.elements import Html, element, join, number

MOST_BARS = 40
"""Clusters with a bar and a line of their own; more are columns of one chart, with a table to open."""
MOST_COLUMNS = 2_000
_WIDTH, _HEIGHT = 640, 220
_LEFT, _BOTTOM, _TOP = 44, 28, 12


def cluster_sizes(clusters: Sequence[Cluster]) -> Html:
    """The number of images in each cluster."""
    if len(clusters) <= MOST_BARS:
        return _size_table(clusters)
    shown = clusters[:MOST_COLUMNS]
    left_out = len(clusters) - len(shown)
    return join(
        _size_columns(shown),
        element(
            "p",
            f"{len(clusters):,} clusters, a column each, in order of their numbers",
            f"; the first {len(shown):,} are drawn" if left_out else None,
            ".",
            class_="note",
        ),
        element("details", element("summary", "All sizes as a table"), _size_table(clusters)),
    )


def _size_table(clusters: Sequence[Cluster]) -> Html:
    total, largest = sum(one.size for one in clusters), _largest(clusters)
    has_labels = any(one.label is not None for one in clusters)
    rows = []
    for one in clusters:
        part = f"{one.label} {one.label_count / one.size:.0%}" if one.label is not None else ""
        rows.append(
            element(
                "tr",
                element("th", marks.link(one.number), scope="row"),
                element("td", _bar(one, largest) if one.number != NOISE else None, class_="bar-cell"),
                element("td", f"{one.size:,}", class_="num"),
                element("td", f"{one.size / max(total, 1):.1%}", class_="num"),
                element("td", part) if has_labels else None,
            )
        )
    header = [
        element("th", text, scope="col", class_="num" if text in ("images", "share") else None)
        for text in ("cluster", "", "images", "share")
    ]
    if has_labels:
        header.append(element("th", "mostly", scope="col"))
    table = element("table", element("thead", element("tr", header)), element("tbody", rows), class_="sizes")
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Sizes of the clusters")


def _largest(clusters: Sequence[Cluster]) -> int:
    """The size of the largest cluster; noise, which may be larger, is not a cluster."""
    return max([1, *(one.size for one in clusters if one.number != NOISE)])


def _bar(one: Cluster, largest: int) -> Html:
    color = marks.color_class(one.number)
    bars = [element("rect", width=f"{100 * one.size / largest:.2f}%", height="100%", rx=3, class_=f"{color} faint")]
    if one.label is not None:  # the part of the most frequent class is darker
        bars.append(element("rect", width=f"{100 * one.label_count / largest:.2f}%", height="100%", rx=3, class_=color))
    return element("svg", bars, class_="bar", aria_hidden="true")


def _size_columns(clusters: Sequence[Cluster]) -> Html:
    clusters = [one for one in clusters if one.number != NOISE]
    largest = _largest(clusters)
    step = (_WIDTH - _LEFT) / len(clusters)
    columns = []
    for place, one in enumerate(clusters):
        height = (_HEIGHT - _TOP - _BOTTOM) * one.size / largest
        title = element("title", f"cluster {marks.name_of(one.number)}: {one.size:,} images")
        columns.append(
            element(
                "rect",
                title,
                x=_LEFT + place * step,
                y=_HEIGHT - _BOTTOM - height,
                width=step * (0.8 if step > 3 else 1),
                height=height,
                class_=marks.color_class(one.number),
            )
        )
    smallest = min(one.size for one in clusters)
    label = f"Sizes of {len(clusters):,} clusters, from {smallest:,} to {largest:,} images"
    ticks = [(0, 0.0), *((value, value / largest) for value in _ticks(largest))]
    return _chart(label, columns, ticks, [])


def score_curve(curve: Curve) -> Html:
    """A score for each k, the chosen one marked."""
    low, high = min(curve.scores), max(curve.scores)
    reach, span = (high - low) or 1.0, max(curve.k) - min(curve.k) or 1

    def x(k: int) -> float:
        return _LEFT + 12 + (_WIDTH - _LEFT - 24) * (k - min(curve.k)) / span

    def height(score: float) -> float:
        return 0.06 + 0.86 * (score - low) / reach

    dots = [(x(k), _y(height(score)), k, score) for k, score in zip(curve.k, curve.scores, strict=True)]
    line = element("polyline", points=" ".join(f"{number(a)},{number(b)}" for a, b, *_ in dots), class_="line")
    circles = [
        element(
            "circle",
            element("title", f"k = {k}: {score:.4f}"),
            cx=a,
            cy=b,
            r=6 if k == curve.chosen else 3.5,
            class_="chosen" if k == curve.chosen else "dot",
        )
        for a, b, k, score in dots
    ]
    step = max(1, len(curve.k) // 10)
    below = [(str(k), x(k)) for k in sorted({*curve.k[::step], curve.chosen})]
    below = [one for one in below if one[0] == str(curve.chosen) or abs(one[1] - x(curve.chosen)) > 30]
    ticks = [(round(score, 4), height(score)) for score in (low, high)]
    label = f"{curve.name} for k from {min(curve.k)} to {max(curve.k)}; k = {curve.chosen} was chosen"
    rows = [
        element("tr", element("th", str(k), scope="row"), element("td", f"{score:.4f}", class_="num"))
        for k, score in zip(curve.k, curve.scores, strict=True)
    ]
    head = element("tr", element("th", "k", scope="col"), element("th", curve.name, scope="col"))
    table = element("table", element("thead", head), element("tbody", rows))
    return join(
        _chart(label, [line, *circles], ticks, below),
        element("p", f"Chosen: k = {curve.chosen}, by the {curve.name}.", class_="note"),
        element("details", element("summary", "The curve as a table"), table),
    )


def norm_histogram(norms: Norms) -> Html:
    """Norms of patches in one layer, those that are flagged on top; heights are logarithmic."""
    most = max([1, *(a + b for a, b in zip(norms.normal, norms.flagged, strict=True))])

    def height(count: int) -> float:
        return math.log1p(count) / math.log1p(most)

    step = (_WIDTH - _LEFT) / len(norms.normal)
    bars = []
    for place, (normal, flagged) in enumerate(zip(norms.normal, norms.flagged, strict=True)):
        x, width = _LEFT + place * step, step * 0.88
        low, high = norms.edges[place], norms.edges[place + 1]
        title = element("title", f"{low:.2f} to {high:.2f}: {normal:,} normal, {flagged:,} flagged")
        whole, part = _y(height(normal + flagged)), _y(height(normal))
        if flagged:
            bars.append(element("rect", title, x=x, y=whole, width=width, height=part - whole, class_="flagged"))
        if normal:
            bars.append(
                element("rect", title, x=x, y=part, width=width, height=_HEIGHT - _BOTTOM - part, class_="normal")
            )
    if norms.valley is not None:
        first, last = norms.valley
        x, width = _LEFT + first * step, (last - first) * step
        bars.insert(0, element("rect", x=x, y=_TOP, width=width, height=_HEIGHT - _BOTTOM - _TOP, class_="valley"))
    flagged, whole = sum(norms.flagged), sum(norms.flagged) + sum(norms.normal)
    source = f", {norms.source}" if norms.source else ""
    label = f"Layer {norms.layer}{source}: {flagged:,} of {whole:,} patches flagged ({flagged / max(whole, 1):.1%})"
    ticks = [(value, height(value)) for value in (0, *(10**power for power in range(7) if 10**power <= most))]
    places = range(0, len(norms.edges), max(1, len(norms.edges) // 6))
    below = [(f"{norms.edges[place]:.3g}", _LEFT + place * step) for place in places]
    caption = element("figcaption", label)
    return element("figure", _chart(label, bars, ticks, below), caption, class_="histogram")


def _y(share: float) -> float:
    """From a share of the height to a coordinate."""
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _chart(
    label: str, marks_: Sequence[Html], ticks: Sequence[tuple[float, float]], below: Sequence[tuple[str, float]]
) -> Html:
    """Axes around marks.

    Args:
        label: what the chart says, in words.
        marks_: what is drawn.
        ticks: values of the vertical axis, and their share of its height.
        below: words under the horizontal axis, and where.
    """
    lines = [
        join(
            element("line", x1=_LEFT, x2=_WIDTH, y1=_y(share), y2=_y(share), class_="rule"),
            element("text", f"{value:,}", x=_LEFT - 6, y=_y(share) + 4, class_="tick end"),
        )
        for value, share in ticks
    ]
    words = [element("text", text, x=x, y=_HEIGHT - 8, class_="tick middle") for text, x in below]
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return element("svg", lines, marks_, words, viewBox=box, class_="chart", role="img", aria_label=label)


def _ticks(largest: int) -> list[int]:
    """One to three round values up to `largest`."""
    step = 10 ** int(math.log10(largest))
    for part in (step * 5, step * 2, step, step // 2, step // 5):
        if part and largest // part >= 2:
            return list(range(part, largest + 1, part))[:4]
    return [largest]
