"""Sections that show images: contact sheets, the map, artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from runtime.contract.keys import Key
from runtime.contract.labels import NOISE
from runtime.report import charts, marks
from runtime.report.content import Artifacts, Cluster, FlaggedImage, Group, Map, Norms, Places, Shown
from runtime.report.elements import Html, data_uri, element, join, script_json, visible

Webp = Mapping[Key, bytes | None]
"""Thumbnails; None if an image can't be read."""
_EDGE = 0.03
"""Empty border of a map, as a share of its side."""


def contact_sheets(clusters: Sequence[Cluster], thumbnails: Webp, ids: Mapping[Key, str]) -> Html:
    """A section for each cluster that has images to show."""
    return join([_sheet(one, thumbnails, ids) for one in clusters if one.central])


def _sheet(one: Cluster, thumbnails: Webp, ids: Mapping[Key, str]) -> Html:
    name = marks.name_of(one.number)
    said = [f"{one.size:,} image{'' if one.size == 1 else 's'}"]
    if one.label is not None:
        said.append(f"mostly {one.label} ({one.label_count / one.size:.0%})")
    if one.number == NOISE:
        strips = [("A sample of what is in no cluster", one.central)]
    else:
        whole = len(one.central) == one.size
        strips = [
            ("All its images, most central first" if whole else "Most central", one.central),
            ("Borderline: nearly in another cluster", one.borderline),
            ("Outliers: farthest from the centre", one.outliers),
        ]
    drawn = [
        element(
            "div",
            element("h4", title),
            element("ul", [_tile(image, one, title, thumbnails, ids) for image in images], class_="tiles"),
            class_="strip",
        )
        for title, images in strips
        if images
    ]
    title = "Noise" if one.number == NOISE else f"Cluster {name}"
    head = element(
        "header", element("h3", marks.swatch(one.number), title), element("p", ", ".join(said), class_="note")
    )
    return element("section", head, element("div", drawn, class_="strips"), class_="sheet", id=marks.anchor(one.number))


def _tile(image: Shown, one: Cluster, strip: str, thumbnails: Webp, ids: Mapping[Key, str]) -> Html:
    path = image.key[1]
    said = [path, f"cluster {marks.name_of(one.number)}", strip.partition(":")[0].lower()]
    if image.label is not None:
        said.insert(1, f"class {image.label}")
    if image.distance is not None:
        said.append(f"distance {image.distance:.3f}")
    if image.nearest_other is not None:
        said.append(f"next: cluster {marks.name_of(image.nearest_other)}")
    picture = _thumbnail(image.key, "; ".join(said), thumbnails, ids[image.key])
    caption = None
    if image.nearest_other is not None:
        caption = element("a", "→ ", marks.name_of(image.nearest_other), href=f"#{marks.anchor(image.nearest_other)}")
    elif image.label is not None:
        caption = element("span", image.label, class_="other" if one.label not in (None, image.label) else None)
    return element("li", picture, caption)


def _thumbnail(key: Key, alt: str, thumbnails: Webp, id_: str | None = None) -> Html:
    """An image, or a cross if it can't be read."""
    webp = thumbnails[key]
    if webp is None:
        return element("span", "×", class_="missing", role="img", aria_label=f"{alt}: can't be read any more")
    return element("img", src=data_uri(webp), alt=alt, id=id_, loading="lazy", width=96, height=96)


def groups(found: Sequence[Group], thumbnails: Webp) -> Html:
    """A row of images for each group."""
    return join([_group(one, thumbnails) for one in found])


def _group(one: Group, thumbnails: Webp) -> Html:
    note = element("p", one.note, class_="note") if one.note else None
    tiles = [
        element(
            "li",
            _thumbnail(image.key, f"{image.key[1]}; {image.note}", thumbnails),
            element("span", image.note, class_="other" if image.is_marked else None),
        )
        for image in one.images
    ]
    head = element("header", element("h3", element("bdi", one.title)), note)
    return element("section", head, element("ul", tiles, class_="tiles"), class_="sheet")


def scatter(found: Map, thumbnails: Webp, ids: Mapping[Key, str]) -> Html:
    """The map; our script draws it from the data here, so that there is one drawing for every switch."""
    clusters = sorted({*found.clusters}, key=lambda cluster: (cluster == NOISE, cluster))
    labels = sorted({*found.labels}) if found.labels is not None else []
    cluster_at = {cluster: place for place, cluster in enumerate(clusters)}
    label_at = {label: place for place, label in enumerate(labels)}
    data = {
        "clusters": [[marks.name_of(one), found.clusters.count(one), one] for one in clusters],
        "labels": [[visible(one), (found.labels or ()).count(one), place] for place, one in enumerate(labels)],
        "layouts": [
            {"name": one.name, "note": one.note, "xy": _percent(one.positions).ravel().tolist()}
            for one in found.layouts
        ],
        "cluster": [cluster_at[one] for one in found.clusters],
        "label": [label_at[one] for one in found.labels or ()],
        "name": [visible(path) for _, path in found.keys],
        "thumbnail": [_reference(key, thumbnails, ids) for key in found.keys],
        "colors": marks.COLORS,
        "shapes": marks.SHAPES,
    }
    drawn = len(found.keys)
    sample = f"{drawn:,} images"
    if found.total > drawn:
        sample = f"{drawn:,} of {found.total:,} images, drawn at random (seed {found.seed})"
    controls = []
    if labels:
        controls.append(_choice("Colour by", "color", ["cluster", "class"]))
    if len(found.layouts) > 1:
        controls.append(_choice("Layout", "layout", [one.name for one in found.layouts]))
    label = f"Map of {sample}, coloured by cluster. Arrow keys go from image to image, Escape leaves."
    return join(
        element(
            "p",
            f"{sample}. Point at one, tap it, or go by arrow keys; a button beside the map shows one group alone, and "
            "has the number of its images on the map.",
            class_="note",
        ),
        element("div", controls, class_="controls"),
        element(
            "div",
            element("svg", id="map", role="application", tabindex="0", aria_label=label),
            element("div", element("p", id="map-note", class_="note"), element("div", id="legend"), class_="side"),
            class_="map",
        ),
        element("noscript", element("p", "The map is drawn by a script, which is switched off here.")),
        script_json(data, "map-data"),
    )


def _percent(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Positions (m, 2) as percent of a square, both axes on one scale, y downwards, two decimals."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    reach = float((high - low).max()) or 1.0
    centred = (positions - (low + high) / 2) / reach * (1 - 2 * _EDGE)
    percent: npt.NDArray[np.float64] = np.round(100 * (0.5 + centred * (1, -1)), 2)
    return percent


def _reference(key: Key, thumbnails: Webp, ids: Mapping[Key, str]) -> str:
    """A thumbnail as data, or the id of the image on a contact sheet that is the same; empty where there is none."""
    webp = thumbnails[key]
    return "" if webp is None else f"#{ids[key]}" if key in ids else data_uri(webp)


def _choice(legend: str, name: str, options: Sequence[str]) -> Html:
    buttons = [
        element("label", element("input", type="radio", name=name, value=str(place), checked=place == 0), option)
        for place, option in enumerate(options)
    ]
    return element("fieldset", element("legend", legend), buttons)


def artifacts(found: Artifacts, thumbnail: Callable[[Key], bytes | None]) -> Html:
    """Flagged patches over what the model saw, and the norms that decided."""
    several = len(found.norms) > 1
    how = f" (layer {found.norms[0].layer})" if found.norms else ""
    if several:
        how = "" if found.places is not None else " (the more layers flag a patch, the more opaque)"
    return join(
        element(
            "p",
            f"{found.model}, {found.detection}; {len(found.images)} images {found.drawn} (seed {found.seed}), as the "
            f"model sees them; red: patches that are flagged{how}.",
            class_="note",
        ),
        element("p", found.note, class_="note") if found.note else None,
        element("div", [_overlay(one, found, thumbnail(one.key)) for one in found.images], class_="overlays"),
        _places(found.places, found.grid) if found.places is not None else None,
        _norms(found.norms) if found.norms else None,
    )


def _norms(norms: Sequence[Norms]) -> Html:
    """The histograms of the layers."""
    return join(
        element("h3", "Norms of the patches"),
        element(
            "p",
            element("span", class_="key normal"),
            "normal ",
            element("span", class_="key flagged"),
            "flagged; heights are logarithmic.",
            " The band is the valley." if any(one.valley is not None for one in norms) else None,
            class_="note",
        ),
        element("div", [charts.norm_histogram(one) for one in norms], class_="histograms"),
    )


def _places(places: Places, grid: tuple[int, int]) -> Html:
    """A map of the grid: the place that is flagged in most images is opaque, the others are as their share of that."""
    rows, columns = grid
    most = max(places.share, default=0.0)
    cells = [
        element(
            "rect",
            element("title", f"row {place // columns}, column {place % columns} (patch {place}): {share:.1%}"),
            x=place % columns,
            y=place // columns,
            width=1,
            height=1,
            opacity=round(share / most, 3),
        )
        for place, share in enumerate(places.share)
        if share > 0
    ]
    label = f"Map of {rows} x {columns} places; the one flagged most often is flagged in {most:.1%} of the images"
    drawn = element("svg", cells, viewBox=f"0 0 {columns} {rows}", class_="places", role="img", aria_label=label)
    return join(element("h3", "Where in the image"), drawn, element("p", places.note, class_="note"))


def _overlay(one: FlaggedImage, found: Artifacts, webp: bytes | None) -> Html:
    rows, columns = found.grid
    flagged = [(place, share) for place, share in enumerate(one.share) if share > 0]
    patches = [
        element("rect", x=place % columns, y=place // columns, width=1, height=1, opacity=share)
        for place, share in flagged
    ]
    path = one.key[1]
    said = f"{len(flagged)} of {len(one.share)} patches flagged"
    picture: Html
    if webp is None:
        picture = element("span", "×", class_="missing", role="img", aria_label=f"{path}: can't be read any more")
    else:
        picture = element("img", src=data_uri(webp), alt=f"{path}; {said}", width=224, height=224 * rows // columns)
    drawn = element("svg", patches, viewBox=f"0 0 {columns} {rows}", preserveAspectRatio="none", aria_hidden="true")
    return element(
        "figure",
        element("div", picture, drawn, class_="overlay"),
        element("figcaption", element("bdi", path), element("br"), said),
    )
