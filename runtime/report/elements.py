"""HTML from Python: every string is escaped where it enters an element, so that none can be forgotten."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from typing import Any

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, marks that turn the direction of text, line separators, halves of surrogate pairs."""
_VOID = frozenset({"br", "img", "input", "link", "meta"})


class Html(str):
    """Finished markup, which is not escaped again."""

    __slots__ = ()


Child = str | Iterable[str] | None
"""Text, markup (`Html`), several of either, or nothing."""


def visible(text: str) -> str:
    r"""Text whose invisible characters are written like `\u202e`, since names of files may hold any character."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element; text and the attributes' values are escaped.

    Args:
        tag: its name.
        children: what it holds; None is left out.
        attributes: `class_` is `class`, `aria_label` is `aria-label`; True is the bare name, None and False are none.
    """
    start = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Html(start if tag in _VOID else f"{start}{join(*children)}</{tag}>")


def join(*children: Child) -> Html:
    """Elements and text one after the other."""
    return Html("".join(map(_markup, children)))


def raw(tag: str, code: str, **attributes: str | bool | None) -> Html:
    """A `script` or `style` around code of our own, which HTML does not unescape; raises ValueError if it would end."""
    if f"</{tag}" in code.lower() or "<!--" in code:
        raise ValueError(f"the code would end its own <{tag}>")
    start = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Html(f"{start}{code}</{tag}>")


def script_json(data: Any, id_: str) -> Html:  # noqa: ANN401  # JSON
    r"""Data for our script: JSON in ASCII, in which `<`, `>` and `&` are `\u003c`, `\u003e` and `\u0026`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return raw("script", text, type="application/json", id=id_)


def data_uri(webp: bytes) -> str:
    """A WebP image as a URI that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return html.escape(visible(child))
    return "".join(map(_markup, child))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else number(value)
    return f' {name}="{html.escape(visible(text))}"'
