"""The facts and remarks on a store that the reports of several commands show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.store import Store


def notes(store: Store) -> list[str]:
    """Remarks on the embeddings that a reader of the numbers needs."""
    from runtime.store.origin import random_weights

    found = []
    if weights := random_weights(store.origin):
        found.append(f"The model's weights are random ({weights}): what they show says nothing about DINOv2.")
    if not store.complete:
        found.append("The run that embeds these images has not ended: these are the embeddings that were there.")
    return found


def facts(command: str, store: Store, summary: Mapping[str, Any], seconds: float | None) -> list[tuple[str, str]]:
    """Name and value of what a report's last section shows.

    Args:
        command: the command, as it can be run again.
        store: the embeddings.
        summary: the summary of the result; some of its fields are shown.
        seconds: how long the command took so far; None if it is not known.
    """
    from runtime.store.origin import options_of

    origin, made_by = store.origin, options_of(store.origin)
    found = [
        ("command", command),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("seconds so far", "" if seconds is None else f"{seconds:.1f}"),
        ("embeddings", f"{store.path.resolve()}: {len(store):,} of width {store.width}"),
        ("model", " ".join(str(one) for one in (origin.get("model"), origin.get("model_sha256")) if one)),
        ("backbone", ", ".join(str(made_by[name]) for name in ("size", "precision", "weights") if name in made_by)),
        ("image size", " x ".join(_words(made_by.get("image_size", "")).split())),
        ("method", _method(made_by.get("method", ""))),
        ("provider", str(origin.get("provider", ""))),
    ]
    for name in ("algorithm", "metric", "seed", "inertia", "iterations"):
        if summary.get(name) is not None:
            value = summary[name]
            found.append((name, f"{value:.6g}" if isinstance(value, float) else str(value)))
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    return [(name, value) for name, value in (*found, ("versions", versions)) if value]


def _method(method: object) -> str:
    """The model's method against artifacts, in words; another program's `_store.json` may hold anything."""
    if not isinstance(method, dict):
        return str(method)
    if method.get("name") == "none":
        return "none (the plain model)"
    options = [f"{name} {_words(value)}" for name, value in method.items() if name != "name" and value is not None]
    return ", ".join([str(method.get("name", "")), *options])


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
