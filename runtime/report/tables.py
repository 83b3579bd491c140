"""Tables: run facts, models beside each other, classes against clusters."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.report import marks
from runtime.report.content import Confusion, Table
from runtime.report.elements import Html, data_uri, element, join

MOST_CELLS = 1_500
"""Largest confusion matrix that is shown in numbers; a larger one is a picture."""
_MOST_PIXELS = 16_383
"""Largest side of a WebP image, pixels."""
_MOST_PAIRS = 15
_HEAT = 9
"""Steps of colour."""
_LIGHT, _DARK = np.array((233, 239, 247)), np.array((8, 48, 107))


def facts(rows: Sequence[tuple[str, str]]) -> Html:
    """Names and values."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("table", element("tbody", lines), class_="facts")


def comparison(table: Table) -> Html:
    """Models beside each other."""
    head = element("tr", [element("th", text, scope="col") for text in table.header])
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [
                element("td", text, class_="best" if (line, column) in table.best else None)
                for column, text in enumerate(row[1:], 1)
            ],
        )
        for line, row in enumerate(table.rows)
    ]
    whole = element("table", element("thead", head), element("tbody", body), class_="comparison")
    return join(
        element("h3", table.title),
        _scroll(whole, table.title),
        element("p", table.note, class_="note") if table.note else None,
    )


def confusion(found: Confusion) -> Html:
    """Classes against clusters, each cluster in the place of the class that it was matched with."""
    order = _diagonal_order(found)
    counts = np.asarray(found.counts)[:, order]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = counts.size <= MOST_CELLS
    drawn = _cells(found, order, counts, share) if small else join(_picture(found, share), _by_class(found))
    return join(
        element(
            "p",
            "Rows are classes, columns are clusters; the stronger the colour, the larger the part of the class. "
            "Clusters stand in the order of the classes that the best matching gives them: a perfect "
            "clustering would be a diagonal.",
            class_="note",
        ),
        drawn,
        _mixed_up(found),
    )


def _diagonal_order(found: Confusion) -> list[int]:
    """The order of the columns: clusters in the order of the classes that they are matched with, the others last."""
    place = {name: number for number, name in enumerate(found.classes)}
    last = len(place)
    matched = [last if name is None else place[name] for name in found.class_of_cluster]
    return sorted(range(len(matched)), key=lambda column: (matched[column], column))


def _cells(
    found: Confusion, order: Sequence[int], counts: npt.NDArray[np.int64], share: npt.NDArray[np.float64]
) -> Html:
    head = [element("th", marks.link(found.clusters[column]), scope="col") for column in order]
    rows = []
    for row, name in enumerate(found.classes):
        cells = [
            element(
                "td",
                f"{counts[row, place]:,}" if counts[row, place] else "·",
                class_=f"h{round(share[row, place] * _HEAT)}"
                + (" matched" if found.class_of_cluster[column] == name else ""),
            )
            for place, column in enumerate(order)
        ]
        rows.append(element("tr", element("th", name, scope="row"), cells))
    corner = element("td", "class \\ cluster", class_="corner")
    table = element("table", element("thead", element("tr", corner, head)), element("tbody", rows), class_="confusion")
    return join(
        _scroll(table, "Confusion matrix"),
        element("p", "Outlined: the cluster that a class is matched with.", class_="note"),
    )


def _picture(found: Confusion, share: npt.NDArray[np.float64]) -> Html | None:
    """A picture with a pixel for each cell; None if a WebP image can't have so many."""
    if max(share.shape) > _MOST_PIXELS:
        return None
    pixels = _LIGHT + (_DARK - _LIGHT) * np.sqrt(share)[..., None]
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "WEBP", lossless=True)
    alt = f"Confusion matrix of {len(found.classes):,} classes and {len(found.clusters):,} clusters, as colours"
    width, height = share.shape[1], share.shape[0]
    return element("img", src=data_uri(file.getvalue()), alt=alt, class_="heat", width=width, height=height)


def _by_class(found: Confusion) -> Html:
    """Text beside a picture of the matrix: the name of each class, its cluster, and how much of it lies there."""
    counts = np.asarray(found.counts)
    column_of = {name: column for column, name in enumerate(found.class_of_cluster) if name is not None}
    rows = []
    for row, name in enumerate(found.classes):
        column, whole = column_of.get(name), int(counts[row].sum())
        inside = 0 if column is None else int(counts[row, column])
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                element("td", "none" if column is None else marks.link(found.clusters[column])),
                element("td", f"{inside:,} of {whole:,}", class_="num"),
                element("td", f"{inside / whole:.0%}", class_="num"),
            )
        )
    header = ("class", "cluster that it is matched with", "images there", "of the class")
    head = element("tr", [element("th", text, scope="col") for text in header])
    table = element("table", element("thead", head), element("tbody", rows))
    return element("details", element("summary", "All classes as a table"), _scroll(table, "All classes"))


def _mixed_up(found: Confusion) -> Html | None:
    """The largest cells outside of the matching, which show the classes that clusters mix."""
    counts = np.array(found.counts)
    place = {name: number for number, name in enumerate(found.classes)}
    for column, name in enumerate(found.class_of_cluster):
        if name is not None:
            counts[place[name], column] = 0
    largest = [cell for cell in np.argsort(-counts, axis=None, kind="stable")[:_MOST_PAIRS] if counts.flat[cell]]
    if not largest:
        return None
    rows = []
    for cell in largest:
        row, column = divmod(int(cell), counts.shape[1])
        whole = int(np.asarray(found.counts)[row].sum())
        matched = found.class_of_cluster[column]
        rows.append(
            element(
                "tr",
                element("th", found.classes[row], scope="row"),
                element("td", marks.link(found.clusters[column])),
                element("td", "none" if matched is None else matched),
                element("td", f"{counts[row, column]:,}", class_="num"),
                element("td", f"{counts[row, column] / whole:.0%}", class_="num"),
            )
        )
    header = ("class", "found in cluster", "which is matched with", "images", "of the class")
    head = element("tr", [element("th", text, scope="col") for text in header])
    table = element("table", element("thead", head), element("tbody", rows))
    return element("details", element("summary", "What is mixed up most"), _scroll(table, "What is mixed up most"))


def _scroll(table: Html, label: str) -> Html:
    """A box that scrolls on a narrow page, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
