"""The page: sections in order, its style and script inside, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources

from runtime.contract.keys import Key
from runtime.report import charts, marks, pictures, tables
from runtime.report.content import Headline, Report
from runtime.report.elements import Html, element, join, raw


def render(report: Report, thumbnails: Mapping[Key, bytes | None], model_view: Callable[[Key], bytes | None]) -> str:
    """Render the whole file.

    Args:
        report: the content.
        thumbnails: the thumbnails of all images on contact sheets and on the map.
        model_view: returns the model's view of an image among the artifacts.
    """
    style, script = _asset("report.css"), _asset("report.js")
    # Nothing is loaded, sent or run but what has these hashes: not even what a name smuggled past the escaping.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = list(_sections(report, thumbnails, model_view))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,"),
        element("title", report.title),
        raw("style", style),
    )
    body = element(
        "body",
        marks.definitions(),
        element("a", "Skip to the content", href="#content", class_="skip"),
        element(
            "header", element("h1", report.title), element("p", report.lead) if report.lead else None, class_="top"
        ),
        element("nav", [element("a", title, href=f"#{id_}") for id_, title, _ in sections], aria_label="Sections"),
        element(
            "main",
            [element("section", element("h2", title), body, id=id_, class_="part") for id_, title, body in sections],
            id="content",
        ),
        element("div", id="tip", hidden=True, role="status"),
        raw("script", script),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _sections(
    report: Report, thumbnails: Mapping[Key, bytes | None], model_view: Callable[[Key], bytes | None]
) -> Iterator[tuple[str, str, Html]]:
    """Id, title and content of each section that has something to show."""
    sheets = [image for one in report.clusters for image in one.central]
    ids = _ids(report)
    if report.headlines or report.notes:
        notes = element("ul", [element("li", note) for note in report.notes], class_="notes") if report.notes else None
        tiles = element("div", [_headline(one) for one in report.headlines], class_="headlines")
        yield "summary", "Summary", join(tiles, notes)
    if report.tables:
        yield "models", "Comparison", join([tables.comparison(one) for one in report.tables])
    if report.curve is not None:
        yield "curve", "Number of clusters", charts.score_curve(report.curve)
    if report.groups:
        yield "groups", report.groups_title, pictures.groups(report.groups, thumbnails)
    if report.clusters:
        yield "sizes", "Sizes", charts.cluster_sizes(report.clusters)
    if report.map is not None and report.map.keys:
        yield "map-section", "Map", pictures.scatter(report.map, thumbnails, ids)
    if report.confusion is not None:
        yield "confusion", "Classes", tables.confusion(report.confusion)
    if sheets:
        left_out = sum(1 for one in report.clusters if one.size and not one.central)
        note = f"The images of {left_out:,} more clusters are not shown." if left_out else None
        yield (
            "clusters",
            "Clusters",
            join(
                element("p", note, class_="note") if note else None,
                pictures.contact_sheets(report.clusters, thumbnails, ids),
            ),
        )
    if report.artifacts is not None:
        yield "artifacts", "Artifacts", pictures.artifacts(report.artifacts, model_view)
    if report.facts:
        yield "facts", "Run", tables.facts(report.facts)


def _ids(report: Report) -> dict[Key, str]:
    """Ids of the images on the contact sheets, which the map refers to."""
    keys = [image.key for one in report.clusters for image in (*one.central, *one.borderline, *one.outliers)]
    return {key: f"t{place}" for place, key in enumerate(dict.fromkeys(keys))}


def _headline(one: Headline) -> Html:
    return element(
        "div",
        element("p", one.name, class_="name"),
        element("p", one.value, class_="value"),
        element("p", one.note, class_="note") if one.note else None,
        class_="headline",
    )


def _asset(name: str) -> str:
    return resources.files("runtime.report").joinpath(name).read_text("utf-8")


def _hash(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
