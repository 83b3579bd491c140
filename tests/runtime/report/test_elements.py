"""Names of files can't change the HTML around them."""

import json

import pytest

from runtime.report.elements import Html, element, join, number, raw, script_json, visible


def test_text_and_attributes_are_escaped_and_markup_is_not_twice():
    inner = element("b", "<i>&\"'")
    assert inner == "<b>&lt;i&gt;&amp;&quot;&#x27;</b>"
    assert element("p", inner, title='"onmouseover=') == f'<p title="&quot;onmouseover=">{inner}</p>'
    assert isinstance(inner, Html)


def test_attributes_are_named_as_in_html():
    made = element("input", type="radio", checked=True, disabled=False, class_="a", aria_label="b", value=None)
    assert made == '<input type="radio" checked class="a" aria-label="b">'


def test_nothing_and_several_are_children():
    assert element("p", None, ["a", element("br")], "b") == "<p>a<br>b</p>"
    assert join("a<", None) == "a&lt;"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("a\nb\0", "a\\u000ab\\u0000"),
        ("\udcff", "\\udcff"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("é 猫 עברית", "é 猫 עברית"),
    ],
    ids=["right to left", "line separator", "control", "half of a pair", "isolates", "letters"],
)
def test_what_cannot_be_seen_is_spelt_out(text, seen):
    assert visible(text) == seen
    assert seen in element("p", text)
    assert f'"{seen}"' in element("p", title=text)


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "\u2028", "]]>", "&lt;", "é"])
def test_json_in_a_script_never_ends_it_and_reads_back(text):
    made = script_json({"name": text}, "data")
    start, end = '<script type="application/json" id="data">', "</script>"
    assert made.startswith(start)
    assert made.endswith(end)
    body = made.removeprefix(start).removesuffix(end)
    assert body.isascii()
    assert not set("<>&") & set(body)
    assert json.loads(body) == {"name": text}


@pytest.mark.parametrize("code", ["x = '</SCRIPT>'", "<!-- a"])
def test_code_that_would_end_its_own_element_is_refused(code):
    with pytest.raises(ValueError, match="would end its own"):
        raw("script", code)


@pytest.mark.parametrize(("value", "text"), [(1.0, "1"), (0.126, "0.13"), (100, "100"), (-0.5, "-0.5")])
def test_coordinates_are_short(value, text):
    assert number(value) == text
